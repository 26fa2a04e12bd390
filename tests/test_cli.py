"""The command line as a user starts it: exit codes, the path printed last, errors without a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import environment
from samples import SPEECH, facts, short_clip, tone, write_sound

from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings


@pytest.fixture(scope="module")
def own_settings(settings: Settings, triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("cli")
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "triton_url": triton.grpc_url}
    return Settings(**{name: getattr(settings, name) for name in settings.model_fields_set} | own)


def run(settings: Settings, cwd: Path, *arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lipserve", *map(str, arguments)],
        env=environment(settings, **more),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=180,
    )


def test_prepare_then_sync(own_settings: Settings, tmp_path: Path) -> None:
    clip = short_clip(tmp_path / "clip.mp4", 6)
    done = run(own_settings, tmp_path, "prepare", clip, "--avatar-id", "me", "--fps", "25")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == own_settings.avatars_dir / "me"
    assert "6 frames, 0 without a face" in done.stderr
    sound = write_sound(tmp_path / "a.wav", tone(0.5), 16000)
    done = run(own_settings, tmp_path, "sync", "me", sound, "-o", "videos/said.mp4")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]) == tmp_path / "videos/said.mp4"
    assert facts(tmp_path / "videos/said.mp4")["frames"] == 12
    assert [f.name for f in (tmp_path / "videos").iterdir()] == ["said.mp4"]


def test_errors_are_a_message_with_advice_and_exit_code_1(own_settings: Settings, tmp_path: Path) -> None:
    done = run(own_settings, tmp_path, "sync", "nobody", SPEECH)
    assert done.returncode == 1
    assert "avatar_not_found" in done.stderr
    assert "lipserve prepare" in done.stderr
    assert "Traceback" not in done.stderr
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    done = run(own_settings, tmp_path, "prepare", text, "--avatar-id", "x")
    assert (done.returncode, "not_a_video" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_wrong_settings_are_named(own_settings: Settings, tmp_path: Path) -> None:
    done = run(own_settings, tmp_path, "up", port="many")
    assert done.returncode == 2
    assert "LIPSERVE_PORT" in done.stderr


def test_the_configuration_is_shown_or_its_mistakes_are(own_settings: Settings, tmp_path: Path) -> None:
    done = run(own_settings, tmp_path, "config", "--port", 9009, max_waiting=7)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert rows["LIPSERVE_PORT"] == ["9009", "command", "line"]
    assert rows["LIPSERVE_MAX_WAITING"] == ["7", "LIPSERVE_MAX_WAITING"]
    done = run(own_settings, tmp_path, "config", max_wating=7, video_crf="best")
    assert (done.returncode, done.stdout) == (2, "")
    assert "LIPSERVE_MAX_WATING: there is no such setting; the nearest is LIPSERVE_MAX_WAITING" in done.stderr
    assert "LIPSERVE_VIDEO_CRF: " in done.stderr


def test_a_failed_sync_leaves_no_file_and_keeps_the_old_one(own_settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    out.write_bytes(b"yesterday's")
    text = tmp_path / "a.wav"
    text.write_text("no sound")
    clip = short_clip(tmp_path / "clip.mp4", 3)
    assert run(own_settings, tmp_path, "prepare", clip, "--avatar-id", "kept").returncode == 0
    assert run(own_settings, tmp_path, "sync", "kept", text, "-o", out).returncode == 1
    assert out.read_bytes() == b"yesterday's"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.wav", "clip.mp4", "out.mp4"]


def test_the_demo_runs_from_another_shell_and_prints_its_path_last(settings: Settings, tmp_path: Path) -> None:
    """With an embedded Triton of its own, and without the virtual environment's bin in PATH."""
    own = {"avatars_dir": tmp_path / "avatars", "work_dir": tmp_path / "work", "video_preset": "ultrafast"}
    given = {name: getattr(settings, name) for name in settings.model_fields_set} | own
    env = environment(Settings(**given)) | {"PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "lipserve", "demo"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    video = Path(done.stdout.splitlines()[-1])
    assert video == tmp_path / "out/demo.mp4"
    assert facts(video)["frames"] == 151
    assert [f.name for f in (tmp_path / "work").iterdir()] == ["triton.log"]

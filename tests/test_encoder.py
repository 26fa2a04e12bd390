"""The choice of an H.264 encoder. What NVENC makes of its options only a machine with it can say (`-m gpu`)."""

import logging
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from samples import facts

from gateway.engine import video_encoding
from lipserve.errors import EncoderUnavailable
from lipserve.media import Mp4Writer, VideoEncoding, choose_encoder, encoder
from lipserve.settings import Settings

HAS_NVENC = not encoder.why_not("h264_nvenc")
without_nvenc = pytest.mark.skipif(HAS_NVENC, reason="this machine has NVENC")


def broken(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    monkeypatch.setattr(encoder, "why_not", lambda name: trouble if name == "h264_nvenc" else "")


def test_libx264_always_works() -> None:
    assert encoder.why_not("libx264") == ""
    assert choose_encoder("libx264") == ("libx264", "it is configured")


def test_auto_takes_the_gpus_encoder_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "")
    assert choose_encoder("auto") == ("h264_nvenc", "it works here")
    assert choose_encoder("h264_nvenc") == ("h264_nvenc", "it is configured")


def test_auto_says_why_it_takes_libx264(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    broken(monkeypatch, "Cannot load libcuda.so.1")
    with caplog.at_level(logging.INFO):
        encoding = video_encoding(Settings(video_encoder="auto", video_preset="fast", video_crf=20, video_threads=3))
    assert encoding == VideoEncoding("libx264", "fast", 20, 3)
    assert "encoded by libx264: h264_nvenc does not work here: Cannot load libcuda.so.1" in caplog.text


def test_the_one_that_was_named_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "Cannot load libcuda.so.1")
    with pytest.raises(EncoderUnavailable, match="h264_nvenc does not work here: Cannot load") as caught:
        choose_encoder("h264_nvenc")
    assert "auto" in caught.value.hint


@without_nvenc
def test_without_a_gpu_the_reason_is_ffmpegs() -> None:
    assert "\n" not in encoder.why_not("h264_nvenc")
    assert encoder.why_not("h264_nvenc").removesuffix(".")  # "Cannot load libcuda.so.1" where there is no driver


@without_nvenc
def test_a_service_whose_encoder_does_not_work_does_not_start(exported: Path, tmp_path: Path) -> None:
    """Neither the gateway behind Triton nor the command line: one message, no traceback."""
    environment = {
        "PATH": "/usr/bin:/bin",
        "LIPSERVE_VIDEO_ENCODER": "h264_nvenc",
        "LIPSERVE_TRITON_URL": "127.0.0.1:1",
        "LIPSERVE_WORK_DIR": str(tmp_path),
        "LIPSERVE_MODELS_DIR": str(exported / "models"),
    }
    command = [sys.executable, "-m", "lipserve", "up", "--port", "0"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, cwd=exported)
    assert done.returncode == 1
    assert done.stderr.startswith("encoder_unavailable: The encoder h264_nvenc does not work here")
    assert "Traceback" not in done.stderr


@without_nvenc
def test_a_video_that_the_encoder_refuses(tmp_path: Path) -> None:
    with pytest.raises(EncoderUnavailable, match="h264_nvenc cannot be opened for 64×48"):
        Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None, encoding=VideoEncoding("h264_nvenc"))


def test_every_preset_has_its_rank() -> None:
    presets = Settings.model_fields["video_preset"].annotation.__args__  # type: ignore[union-attr]
    assert tuple(encoder.NVENC_PRESETS) == presets
    assert list(encoder.NVENC_PRESETS.values()) == [f"p{i}" for i in range(1, 8)]


@pytest.mark.parametrize("preset", encoder.NVENC_PRESETS)
def test_options(preset: encoder.Preset) -> None:
    search = {"motion-est": "dia"} if preset == "veryfast" else {}
    assert VideoEncoding("libx264", preset, 0, 3).options() == {"preset": preset, "crf": "0", "threads": "3", **search}
    nvenc = VideoEncoding("h264_nvenc", preset, 0, 3).options()
    assert (nvenc["preset"], nvenc["cq"], nvenc["b"]) == (encoder.NVENC_PRESETS[preset], "1", "0")


@pytest.mark.gpu
def test_nvenc_writes_what_is_asked_for(tmp_path: Path) -> None:
    if not HAS_NVENC:
        pytest.skip(f"no NVENC: {encoder.why_not('h264_nvenc')}")
    noise = np.random.default_rng(0).integers(16, 235, (30, 288, 256), np.uint8)
    sizes = []
    for crf in (10, 40):
        file = tmp_path / f"{crf}.mp4"
        with Mp4Writer(file, (256, 192), 25, None, encoding=VideoEncoding("h264_nvenc", crf=crf)) as video:
            for picture in noise:
                video.write(picture)
        assert (facts(file)["frames"], facts(file)["size"]) == (30, (256, 192))
        sizes.append(file.stat().st_size)
    assert sizes[0] > 1.5 * sizes[1]


def test_libx264_works_on_whole_pictures_at_a_time(tmp_path: Path) -> None:
    """Not on slices of one, for which every call would wait: x264 writes its settings into the file."""
    with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None, encoding=VideoEncoding(threads=2)) as video:
        video.write(np.full((72, 64), 128, np.uint8))
    settings = (tmp_path / "a.mp4").read_bytes()
    assert b" threads=2 " in settings
    assert b" me=dia " in settings
    assert b" sliced_threads=0 " in settings


@pytest.mark.parametrize("fails", [False, True])
def test_the_encoders_threads_end_with_the_video(fails: bool, tmp_path: Path) -> None:
    """Also those that are at work on pictures when an error ends it."""
    before = threads()

    def write() -> None:
        with Mp4Writer(tmp_path / "a.mp4", (64, 48), 25, None, encoding=VideoEncoding(threads=3)) as video:
            for level in range(40):
                video.write(np.full((72, 64), 16 + level, np.uint8))
            assert threads() > before
            if fails:
                raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more") if fails else nullcontext():
        write()
    assert threads() == before


def threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())

"""The README's curl lines and its Python, as they stand there, against a real `lipserve up` on the real Triton."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import Service, environment, service, wait_for
from samples import facts, tone, write_sound

from lipserve.embedded import EmbeddedTriton
from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ADDRESS = "127.0.0.1:8080"
SECTIONS = ("API by example", "D-ID and service API")
NEEDED = ("curl", "espeak-ng")

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason=f"needs {' and '.join(NEEDED)}, which the README's lines use"
)


def section(title: str) -> str:
    """Up to the next heading."""
    (text,) = re.findall(rf"^##+ {re.escape(title)}$(.*?)(?=^##+ )", README, re.MULTILINE | re.DOTALL)
    return str(text)


def commands(block: str) -> list[str]:
    """Of a shell block; those that go over several lines whole, comments left out."""
    found, open_ = [], ""
    for line in block.strip().splitlines():
        open_ += line + "\n"
        try:
            words = shlex.split(open_, comments=True)
        except ValueError:  # a quote or a line is not at its end yet
            continue
        if not open_.endswith("\\\n"):
            found += [open_] if words else []
            open_ = ""
    assert not open_, open_
    return found


SHELL = [
    (f"{title}-{number}", commands(block))
    for title in SECTIONS
    for number, block in enumerate(re.findall(r"^```sh\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL), 1)
]
BLOCKS = {name: block for name, block in SHELL if all("curl " in command for command in block)}


@pytest.fixture(scope="module")
def up(settings: Settings, triton: EmbeddedTriton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("readme")
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    own = {"avatars_dir": root / "avatars", "work_dir": root / "work", "storage_dir": root / "storage"}
    with service(Settings(**given | own), root / "up.log", triton_url=triton.grpc_url) as up:
        yield up


@pytest.fixture
def folder(up: Service, clip: Path, tmp_path: Path) -> Path:
    """As the repository's, with a shorter clip and sound, the avatar lucy and her picture."""
    (tmp_path / "demo").mkdir()
    shutil.copy(clip, tmp_path / "demo/lucy.mp4")
    write_sound(tmp_path / "demo/speech.flac", tone(0.4), 16000)
    with clip.open("rb") as video:
        data = {"avatar_id": "lucy", "force": "true"}
        assert up.http.post("/prepare_avatar", data=data, files={"video": video}).status_code == 201
    (tmp_path / "lucy.jpg").write_bytes(up.http.get("/avatars/lucy/preview").content)
    return tmp_path


class Shell:
    """Runs lines one after the other, and knows what their answers name."""

    def __init__(self, up: Service, folder: Path) -> None:
        self._up, self._folder = up, folder
        self.names: dict[str, str] = {}

    def run(self, command: str) -> str:
        """What it prints. A status of 400 or more is a failure."""
        if "$RESULT_URL" in command:
            self.names["RESULT_URL"] = self._result_url()
        elif "/result" in command or "-X DELETE" in command:
            self._wait_for_all()
        if "-F avatar_id=lucy -F video=" in command:
            self._up.http.delete("/avatars/lucy")
        script = 'curl() { command curl -sS --fail-with-body "$@"; }\n' + command.replace(
            ADDRESS, f"127.0.0.1:{self._up.port}"
        )
        done = subprocess.run(
            ["bash", "-euc", script],
            cwd=self._folder,
            env=environment(Settings()) | self.names,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if done.stdout.startswith("{"):
            self._learn(json.loads(done.stdout))
        return done.stdout

    def _learn(self, answer: dict[str, Any]) -> None:
        kind = str(answer.get("id", "")).split("_")[0]
        match kind:
            case "job":
                self.names["ID"] = answer["id"]
            case "tlk":
                self.names["TALK_ID"] = answer["id"]
            case "img":
                self.names["IMAGE_URL"] = answer["url"]
            case "aud":
                self.names["AUDIO_URL"] = answer["url"]

    def _wait_for_all(self) -> None:
        wait_for(lambda: all(job["completed_at"] for job in self._up.http.get("/jobs").json()["jobs"]), 60)

    def _result_url(self) -> str:
        self._wait_for_all()
        talk = self._up.http.get(f"/talks/{self.names['TALK_ID']}").json()
        assert talk["status"] == "done", talk
        return str(talk["result_url"])


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_the_curl_lines_work_as_they_stand_there(block: list[str], up: Service, folder: Path) -> None:
    shell = Shell(up, folder)
    for command in block:
        shell.run(command)
    if (said := folder / "said.mp4").exists():
        assert facts(said)["frames"] >= 10
    assert not up.http.get("/jobs", params={"state": "failed"}).json()["jobs"]


def test_there_are_curl_lines_of_every_kind() -> None:
    lines = "".join(command for block in BLOCKS.values() for command in block)
    for path in ("prepare_avatar", "lip_sync", "jobs/$ID", "images", "audios", "talks/$TALK_ID", "generate-video"):
        assert f"/{path}" in lines, path


def test_the_python_works_as_it_stands_there(
    up: Service, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", section("Python client"), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code.replace(ADDRESS, f"127.0.0.1:{up.port}"), "README.md", "exec"), {})
    for name in ("said.mp4", "job.mp4", "talk.mp4", "video.mp4"):
        assert facts(folder / name)["frames"] >= 10, name
    assert "100%" in capsys.readouterr().out

"""API keys: the file, its changes under a running gateway, the forms in which clients send a key, the command line."""

import json
import logging
import stat
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest
from processes import environment
from starlette.datastructures import Headers

from gateway import keys
from gateway.keys import Keys, presented
from lipserve.errors import InvalidParameter
from lipserve.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "storage/keys.json"


def test_a_key_is_known_by_its_name_and_kept_as_a_hash(file: Path) -> None:
    mine, yours = keys.add(file, "me"), keys.add(file, "you@example.org")
    assert mine != yours
    assert len(mine) == len("lip_") + 43  # 256 bits
    known = Keys(file)
    assert (known.owner([mine]), known.owner([yours])) == ("me", "you@example.org")
    assert [known.owner([wrong]) for wrong in ("", "x", mine[:-1], mine + "x", mine * 100, "ünï\udc80")] == [None] * 6
    assert known.owner(["x", yours]) == "you@example.org"
    assert mine not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(f.name for f in file.parent.iterdir()) == [".keys.json.lock", "keys.json"]


def test_changes_count_at_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = Keys(file)
    assert "nobody is let in" in caplog.text  # there is no file
    first = keys.add(file, "first")
    second = keys.add(file, "second")
    assert (known.owner([first]), known.owner([second])) == ("first", "second")
    keys.remove(file, "first")
    assert (known.owner([first]), known.owner([second])) == (None, "second")
    file.unlink()
    assert known.owner([second]) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2, "keys": []}',
        '{"keys": [{"name": "x", "sha256": "", "added_at": ""}]}',
    ],
)
def test_a_file_that_is_none_lets_nobody_in_and_says_so_once(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add(file, "me")
    known = Keys(file)
    file.write_text(content)
    caplog.clear()
    assert [known.owner([key]), known.owner([""]), known.owner([key])] == [None] * 3
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "nobody is let in" in caplog.text
    with pytest.raises(InvalidParameter, match="no file of keys"):
        keys.add(file, "another")  # nothing is written over
    assert file.read_text() == content


def test_a_file_that_cannot_be_read_lets_nobody_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Keys(tmp_path).owner(["x"]) is None  # a folder
    assert "cannot be read" in caplog.text


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "ä", "x" * 65, "a\n"])
def test_names_are_plain(file: Path, name: str) -> None:
    with pytest.raises(InvalidParameter, match="not allowed"):
        keys.add(file, name)
    assert not file.exists()


def test_names_are_unique_and_what_is_not_there_cannot_go(file: Path) -> None:
    keys.add(file, "me")
    with pytest.raises(InvalidParameter, match="already"):
        keys.add(file, "me")
    with pytest.raises(InvalidParameter, match="no key 'you'"):
        keys.remove(file, "you")
    assert [key.name for key in keys.read(file)] == ["me"]


def test_two_that_add_at_once_both_stay(file: Path) -> None:
    command = [sys.executable, "-c", "import sys; from pathlib import Path; from gateway import keys\n"]
    command[-1] += "for i in range(10): keys.add(Path(sys.argv[1]), sys.argv[2] + str(i))"
    adding = [subprocess.Popen([*command, str(file), name]) for name in ("a", "b")]
    assert [process.wait(60) for process in adding] == [0, 0]
    assert len(keys.read(file)) == 20


def basic(text: str) -> str:
    return "Basic " + b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer KEY"},
        {"authorization": "bearer   KEY "},
        {"authorization": basic("KEY:")},
        {"authorization": basic("user:KEY")},
        {"authorization": basic(":KEY")},
        {"authorization": basic("KEY")},
        {"authorization": "Basic KEY"},
        {"authorization": "Basic user:KEY"},
        {"authorization": "Basic dXNlckBleGFtcGxlLm9yZw==:KEY"},
        {"x-api-key": "KEY"},
        {"authorization": basic("proxy:its-own"), "x-api-key": "KEY"},
    ],
)
def test_a_key_is_found_in_every_form_that_clients_send(headers: dict[str, str]) -> None:
    assert "KEY" in list(presented(Headers(headers)))


@pytest.mark.parametrize(
    "authorization",
    ["", "KEY", "Digest KEY", "Basic", "Bearer", "Basic =", "Basic ////", "Basic \xff\xfe", "Token KEY"],
)
def test_other_forms_hold_no_key_and_do_no_harm(authorization: str) -> None:
    assert "KEY" not in list(presented(Headers({"authorization": authorization})))


def test_the_command_line_shows_a_key_once(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def run(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "lipserve", "keys", *arguments]
        return subprocess.run(command, env=environment(settings, **more), cwd=tmp_path, capture_output=True, text=True)

    done = run("add", "me", keys_file=file)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert Keys(file).owner([key]) == "me"
    listed = run("list", keys_file=file)
    added_at, name = listed.stdout.split()
    assert (name, added_at) == ("me", json.loads(file.read_text())["keys"][0]["added_at"])
    assert key not in listed.stdout + listed.stderr + done.stderr
    assert run("remove", "me", keys_file=file).returncode == 0
    assert run("list", keys_file=file).stdout == ""
    refused = run("remove", "me", keys_file=file)
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    unset = run("add", "me")
    assert unset.returncode == 1
    assert "LIPSERVE_KEYS_FILE" in unset.stderr

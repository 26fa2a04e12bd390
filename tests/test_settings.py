"""Configuration: the environment's names, what is refused, and the README's table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lipserve.settings import PLAIN_NAMES, Settings
from lipserve.terminal import settings_or_exit, settings_table

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `LIPSERVE_(\w+)` \| (.*?) \|", README.read_text(), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        expected[name.upper()] = "" if field.default in (None, "") else f"`{field.default}`"
    assert rows == expected


def test_the_readme_lists_every_plain_name() -> None:
    listed = dict(re.findall(r"`([A-Z_]+)` \(`LIPSERVE_([A-Z_]+)`\)", README.read_text()))
    assert listed == {name: field.upper() for name, field in PLAIN_NAMES.items()}


@pytest.fixture(autouse=True)
def no_other_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("LIPSERVE_") or name in PLAIN_NAMES:
            monkeypatch.delenv(name)


def test_the_environment_sets_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSERVE_PORT", "9001")
    monkeypatch.setenv("LIPSERVE_MEDIA_DIR", "/srv/media")
    settings = Settings()
    assert (settings.port, settings.media_dir) == (9001, Path("/srv/media"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "-1"), ("PORT", "http"), ("MAX_UPLOAD_MB", "0"), ("VIDEO_PRESET", "magic"), ("PROFILE", "../x")],
)
def test_values_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LIPSERVE_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize(("name", "field"), PLAIN_NAMES.items())
def test_plain_names_count_where_the_prefixed_one_is_not_set(
    monkeypatch: pytest.MonkeyPatch, name: str, field: str
) -> None:
    values = {"lazy_load": "true", "unload_idle_seconds": "30", "storage_dir": "/s", "models_dir": "/m", "host": "::"}
    if field == "unload_idle_seconds":
        monkeypatch.setenv("LAZY_LOAD", "1")
    monkeypatch.setenv(name, values.get(field, "30"))
    assert str(getattr(Settings(), field)).lower() == values.get(field, "30")
    other = "false" if field == "lazy_load" else "40"
    monkeypatch.setenv(f"LIPSERVE_{field.upper()}", other)
    assert str(getattr(Settings(), field)).lower() == other
    monkeypatch.setenv(f"LIPSERVE_{field.upper()}", "")  # as good as not set
    assert str(getattr(Settings(), field)).lower() == values.get(field, "30")


def test_what_code_gives_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIPSERVE_PORT", "1")
    monkeypatch.setenv("HOST", "h")
    settings = Settings(port=2, host="mine")
    assert (settings.port, settings.host) == (2, "mine")


def test_a_misspelt_variable_is_an_error_that_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIPSERVE_MAX_WATING", "3")
    monkeypatch.setenv("LIPSERVE_TTS_KYE", "sk-secret")
    monkeypatch.setenv("PORT", "many")
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert "sk-secret" not in str(caught.value)
    with pytest.raises(SystemExit) as ended:
        settings_or_exit(port=None)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert "LIPSERVE_MAX_WATING: there is no such setting; the nearest is LIPSERVE_MAX_WAITING" in lines
    assert "LIPSERVE_TTS_KYE: there is no such setting; the nearest is LIPSERVE_TTS_KEY" in lines
    assert [line for line in lines if line.startswith("PORT: ")]  # under the name that was used
    assert len(lines) == 3
    assert "sk-secret" not in "".join(lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate_limit": 5}, "LIPSERVE_RATE_LIMIT limits keys"),
        ({"key_concurrency": 5}, "LIPSERVE_KEY_CONCURRENCY limits keys"),
        ({"cors_origins": "*"}, "LIPSERVE_CORS_ORIGINS"),
        ({"lazy_load": True, "triton_url": "triton:8001"}, "LIPSERVE_LAZY_LOAD"),
        ({"unload_idle_seconds": 60}, "LIPSERVE_UNLOAD_IDLE_SECONDS"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        Settings(**given)


@pytest.mark.parametrize(
    "origin",
    [
        "example.org",
        "https://example.org/",
        "https://example.org/app",
        "null",
        "https://*.example.org",
        "ftp://x",
        "https://Example.org",
        "https://user@example.org",
        "https://example.org:x",
        "https://a.org https://b.org",
    ],
)
def test_what_no_browser_sends_is_no_origin(origin: str) -> None:
    with pytest.raises(ValidationError, match="is no origin"):
        Settings(cors_origins=f"https://good.org,{origin}")


def test_origins_are_taken_one_by_one() -> None:
    settings = Settings(cors_origins="https://app.example.org, http://localhost:5173,http://[::1]:80")
    assert settings.origins == ["https://app.example.org", "http://localhost:5173", "http://[::1]:80"]
    assert Settings(cors_origins="*", keys_file=Path("keys.json")).origins == ["*"]


@pytest.mark.parametrize("url", ["example.org", "file:///etc/passwd", "https://x.org/?a=b", "https://u:p@x.org", ""])
def test_a_public_url_is_a_plain_web_address(url: str) -> None:
    with pytest.raises(ValidationError, match="public_url"):
        Settings(public_url=url)
    assert Settings(public_url="https://x.org:444/lip-sync/").public_url == "https://x.org:444/lip-sync/"


def test_the_table_says_where_each_value_is_from_and_masks_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_QUEUE_SIZE", "9")
    monkeypatch.setenv("LIPSERVE_TTS_KEY", "sk-secret")
    table = settings_table(settings_or_exit(port=1234), {"port"})
    rows = {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line) for line in table.splitlines())}
    assert rows["LIPSERVE_PORT"] == ["1234", "command line"]
    assert rows["LIPSERVE_MAX_WAITING"] == ["9", "MAX_QUEUE_SIZE"]
    assert rows["LIPSERVE_TTS_KEY"] == ["**********", "LIPSERVE_TTS_KEY"]
    assert rows["LIPSERVE_PROFILE"] == ["demo", "default"]
    assert rows["LIPSERVE_TRITON_URL"] == ["default"]
    assert len(rows) == len(Settings.model_fields) + 1
    assert "sk-secret" not in table


@pytest.mark.parametrize("module", ["gateway.features", "export.bundle", "avatar_prep.faces"])
def test_onnx_runtime_is_told_not_to_report_before_it_is_imported(module: str, tmp_path: Path) -> None:
    """With a stand-in for ONNX Runtime that says what it was told when it was imported."""
    said = tmp_path / "said"
    body = f"import os, pathlib; pathlib.Path({str(said)!r}).write_text(os.environ.get('ORT_DISABLE_TELEMETRY', ''))\n"
    (tmp_path / "onnxruntime.py").write_text(body)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", f"import {module}, onnxruntime"], env=environment, check=True, cwd=ROOT)
    assert said.read_text() == "1"

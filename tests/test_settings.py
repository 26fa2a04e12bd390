"""Configuration: the environment's names, what is refused, and the README's table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lipserve.settings import Settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `LIPSERVE_(\w+)` \| (.*?) \|", README.read_text(), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        expected[name.upper()] = "" if field.default in (None, "") else f"`{field.default}`"
    assert rows == expected


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


@pytest.mark.parametrize("module", ["gateway.features", "export.bundle", "avatar_prep.faces"])
def test_onnx_runtime_is_told_not_to_report_before_it_is_imported(module: str, tmp_path: Path) -> None:
    """With a stand-in for ONNX Runtime that says what it was told when it was imported."""
    said = tmp_path / "said"
    body = f"import os, pathlib; pathlib.Path({str(said)!r}).write_text(os.environ.get('ORT_DISABLE_TELEMETRY', ''))\n"
    (tmp_path / "onnxruntime.py").write_text(body)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", f"import {module}, onnxruntime"], env=environment, check=True, cwd=ROOT)
    assert said.read_text() == "1"

"""Configuration: the environment's names, what is refused, and the README's table."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from lipserve.settings import Settings

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `LIPSERVE_(\w+)` \| (.*?) \|", README.read_text(), re.MULTILINE))
    expected = {}
    for name, field in Settings.model_fields.items():
        expected[name.upper()] = "" if field.default is None else f"`{field.default}`"
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

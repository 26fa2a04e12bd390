"""Signed links: what they open, until when, and the secret they are signed with."""

import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request

from gateway import links
from gateway.links import Links
from lipserve.errors import LinkExpired, StorageForeign

PATH = "/jobs/0a1b/result"


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the time."""

    def set_time(seconds: int) -> None:
        monkeypatch.setattr("gateway.links.time.time", lambda: float(seconds))

    set_time(1_000_000)
    return set_time


def query_of(url: str) -> str:
    return urlsplit(url).query


def test_a_link_opens_its_path_until_it_expires(at: Callable[[int], None]) -> None:
    signer = Links(b"secret", 60)
    query = query_of(signer.sign(PATH))
    at(1_000_059)
    signer.check(PATH, query)
    at(1_000_060)
    with pytest.raises(LinkExpired, match="expired"):
        signer.check(PATH, query)
    signature = query.split("signature=")[1]
    for digits in ("000000001000060", "0" * 20 + "1000060", "1000060"):
        for later in ("", "9", "9" * 20):
            with pytest.raises(LinkExpired):
                signer.check(PATH, f"expires={digits}{later}&signature={signature}")


def test_a_link_opens_nothing_else(at: Callable[[int], None]) -> None:
    signer = Links(b"secret", 60)
    query = query_of(signer.sign(PATH))
    for path in ("/jobs/0a1c/result", PATH + "/", "/jobs/0a1b", "/jobs/0a1b/result ", "/JOBS/0a1b/result", ""):
        with pytest.raises(LinkExpired, match="does not fit"):
            signer.check(path, query)
    with pytest.raises(LinkExpired, match="does not fit"):
        Links(b"another", 60).check(PATH, query)


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "expires=1000060",
        "signature=x",
        "expires=1000061&signature={signature}",
        "expires=01000060&signature=x{signature}",
        "expires=1000060&signature={signature}x",
        "expires=1000060&signature=",
        "expires=1000060&expires=9999999&signature={signature}",
        "expires=1000060&signature={signature}&signature={signature}",
        "expires=9999999&signature={signature}",
        "expires=000001000060&signature={signature}",
        "expires=-1&signature={signature}",
        "expires=1e9&signature={signature}",
        "expires=%D9%A1&signature={signature}",
        "expires=" + "9" * 5000 + "&signature={signature}",
        "expires=1000060&signature=%ff%00",
    ],
)
def test_a_link_that_was_changed_opens_nothing(at: Callable[[int], None], forged: str) -> None:
    signer = Links(b"secret", 60)
    query = query_of(signer.sign(PATH))
    assert query.startswith("expires=1000060&signature=")
    with pytest.raises(LinkExpired):
        signer.check(PATH, forged.format(signature=query.split("signature=")[1]))


def test_links_begin_as_configured_or_as_the_request_says(at: Callable[[int], None]) -> None:
    headers = [(b"host", b"lip.example.org:8080")]
    scope = {
        "type": "http",
        "scheme": "https",
        "path": "/jobs",
        "query_string": b"",
        "headers": headers,
        "root_path": "",
    }
    request = Request(scope)
    assert Links(b"s", 60).result_url(request, PATH).startswith(f"https://lip.example.org:8080{PATH}?expires=")
    public = Links(b"s", 60, "https://example.org/lip/")
    assert public.result_url(request, PATH).startswith(f"https://example.org/lip{PATH}?expires=")
    assert public.sign("/a b/ü?").startswith("https://example.org/lip/a%20b/%C3%BC%3F?expires=")


def test_the_secret_is_made_once_and_is_its_owners(tmp_path: Path) -> None:
    folder = tmp_path / "new/storage"
    made = links.secret(folder)
    assert len(made) == 32
    assert links.secret(folder) == made
    assert [f.name for f in folder.iterdir()] == [links.SECRET_FILE]
    assert stat.S_IMODE((folder / links.SECRET_FILE).stat().st_mode) == 0o600
    assert links.secret(tmp_path / "other") != made


def test_a_file_without_a_secret_signs_nothing(tmp_path: Path) -> None:
    (tmp_path / links.SECRET_FILE).write_bytes(b"")
    with pytest.raises(StorageForeign, match="no secret"):
        links.secret(tmp_path)

"""URLs from strangers: none leads inside, whatever its form; what may be fetched is, in bounded time and size.

Every connection is seen by a real server on this machine, which has a secret to tell: a form that is not refused would
bring it back.
"""

import gzip
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event

import httpcore
import pytest
from internet import PUBLIC, Answer, Internet, plain, raw, redirect, serving
from receiver import receiving

from gateway.fetching import UrlFetcher
from gateway.urls import allowed_hosts, is_public, literal, location
from lipserve.errors import Cancelled, FetchFailed, InvalidParameter, LipserveError, StorageFull, UrlNotAllowed
from lipserve.settings import Settings

SITE = "http://site.example"
BODY = bytes(range(256)) * 40


def fetcher(internet: Internet, trust: ssl.SSLContext | None = None, **settings: object) -> UrlFetcher:
    internet.names.setdefault("site.example", [[PUBLIC]])
    return UrlFetcher(Settings(**settings), internet.resolve, internet.network, trust)  # type: ignore[arg-type]


@pytest.fixture
def canary() -> Iterator[Internet]:
    with serving({}) as internet:
        yield internet


# -- what leads inside ------------------------------------------------------------------------------------------------

ADDRESS, ODD, INNER = "address is not a public one", "unusual form of an IPv4 address", "name of an internal network"
NO_NAME, NO_HOST, NO_SCHEME = "host is not a name", "host cannot be read", "not an http:// or https:// one"
SIGNS, USER, PORT = "spaces, control characters", "user name or password", "is not allowed"

# every form of getting at what is not public: why it is refused
FORBIDDEN = {
    # plain
    "http://127.0.0.1/": ADDRESS,
    "https://127.0.0.1/": ADDRESS,
    "http://127.8.8.8/": ADDRESS,
    "http://10.0.0.1/": ADDRESS,
    "http://172.16.0.1/": ADDRESS,
    "http://172.31.255.255/": ADDRESS,
    "http://192.168.1.1/": ADDRESS,
    "http://169.254.169.254/latest/meta-data/": ADDRESS,
    "http://168.63.129.16/": ADDRESS,
    "http://192.0.0.192/": ADDRESS,
    "http://100.64.0.1/": ADDRESS,
    "http://100.100.100.200/": ADDRESS,
    "http://0.0.0.0/": ADDRESS,
    "http://0.1.2.3/": ADDRESS,
    "http://224.0.0.1/": ADDRESS,
    "http://239.255.255.250/": ADDRESS,
    "http://240.0.0.1/": ADDRESS,
    "http://255.255.255.255/": ADDRESS,
    "http://192.0.2.1/": ADDRESS,
    "http://198.18.0.1/": ADDRESS,
    "http://198.51.100.7/": ADDRESS,
    "http://203.0.113.9/": ADDRESS,
    "http://192.88.99.1/": ADDRESS,
    # IPv4 as numbers
    "http://2130706433/": ODD,
    "http://0x7f000001/": ODD,
    "http://0X7F.0.0.1/": ODD,
    "http://0x7f.0.0.0x1/": ODD,
    "http://017700000001/": ODD,
    "http://0177.0.0.1/": ODD,
    "http://127.0.0.01/": ODD,
    "http://127.1/": ODD,
    "http://127.0.1/": ODD,
    "http://0/": ODD,
    "http://0x/": ODD,
    "http://256.256.256.256/": ODD,
    "http://127.0.0.1.1/": ODD,
    "http://4294967296/": ODD,
    "http://2852039166/": ODD,
    "http://0xa9fea9fe/": ODD,
    "http://0251.0376.0251.0376/": ODD,
    # IPv6
    "http://[::1]/": ADDRESS,
    "http://[0:0:0:0:0:0:0:1]/": ADDRESS,
    "http://[::]/": ADDRESS,
    "http://[::ffff:127.0.0.1]/": ADDRESS,
    "http://[::ffff:7f00:1]/": ADDRESS,
    "http://[::ffff:169.254.169.254]/": ADDRESS,
    "http://[::127.0.0.1]/": ADDRESS,
    "http://[::ffff:0:127.0.0.1]/": ADDRESS,
    "http://[64:ff9b::7f00:1]/": ADDRESS,
    "http://[64:ff9b::a9fe:a9fe]/": ADDRESS,
    "http://[64:ff9b:1::7f00:1]/": ADDRESS,
    "http://[2002:7f00:1::]/": ADDRESS,
    "http://[2002:a9fe:a9fe::1]/": ADDRESS,
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/": ADDRESS,
    "http://[2001:db8::1]/": ADDRESS,
    "http://[3fff::1]/": ADDRESS,
    "http://[fc00::1]/": ADDRESS,
    "http://[fd00:ec2::254]/": ADDRESS,
    "http://[fe80::1]/": ADDRESS,
    "http://[fec0::1]/": ADDRESS,
    "http://[ff02::1]/": ADDRESS,
    "http://[100::1]/": ADDRESS,
    "http://[5f00::1]/": ADDRESS,
    "http://[fe80::1%25eth0]/": NO_HOST,
    "http://[fe80::1%eth0]/": NO_HOST,
    "http://[::1%25lo]/": NO_HOST,
    "http://[127.0.0.1]/": "not an IPv6 address|cannot be read",
    "http://[v1.fe80::a+en1]/": "cannot be read",
    "http://[::1/": "cannot be read",
    "http://::1/": NO_HOST,
    # names
    "http://localhost/": INNER,
    "http://LOCALHOST/": INNER,
    "http://localhost./": INNER,
    "http://a.localhost/": INNER,
    "http://localhost.localdomain/": INNER,
    "http://triton/": INNER,
    "http://metadata/": INNER,
    "http://metadata.google.internal/": INNER,
    "http://printer.local/": INNER,
    "http://nas.home.arpa/": INNER,
    "http://127.0.0.1./": ADDRESS,
    "http://127.0.0.1../": NO_NAME,
    "http://./": NO_NAME,
    "http://site..example/": NO_NAME,
    "http://-x.example/": NO_NAME,
    f"http://{'a' * 64}.example/": NO_NAME,
    f"http://{'a.' * 130}example/": NO_NAME,
    # Unicode
    "http://①②⑦.⓪.⓪.①/": ADDRESS,
    "http://１２７.０.０.１/": ADDRESS,
    "http://127。0。0。1/": ADDRESS,
    "http://127．0．0．1/": ADDRESS,
    "http://127｡0｡0｡1/": ADDRESS,
    "http://ⓛocalhost/": INNER,
    "http://ｌｏｃａｌｈｏｓｔ/": INNER,
    "http://local\u00adhost/": SIGNS,
    "http://local\u200bhost/": SIGNS,
    "http://\u202e1.0.0.721/": SIGNS,
    "http://site\u2044.example/": "internationalised name",
    "http://site.example\uff0f@127.0.0.1/": "cannot be read",
    # who is the host
    "http://site.example@127.0.0.1/": USER,
    "http://site.example:80@127.0.0.1/": USER,
    "http://127.0.0.1@site.example/": USER,
    "http://user:password@site.example/": USER,
    "http://@site.example/": USER,
    "http://site.example%40127.0.0.1/": NO_HOST,
    "http://site.example%00.127.0.0.1/": NO_HOST,
    "http://127.0.0.1%2f.site.example/": NO_HOST,
    "http://site.example\\@127.0.0.1/": SIGNS,
    "http://127.0.0.1\\.site.example/": SIGNS,
    "http:\\\\127.0.0.1/": SIGNS,
    "http:/\\127.0.0.1/": SIGNS,
    "http://127.0.0.1#@site.example/": ADDRESS,
    "http://127.0.0.1?@site.example/": ADDRESS,
    "http:///127.0.0.1/": NO_HOST,
    "http:127.0.0.1": NO_SCHEME,
    "http:/127.0.0.1": NO_SCHEME,
    "//127.0.0.1/": NO_SCHEME,
    "127.0.0.1": NO_SCHEME,
    "http://": NO_HOST,
    "": NO_SCHEME,
    "http://site.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n": SIGNS,
    "http://site.example\r\n.evil/": SIGNS,
    "http://127.0.0.1\t/": SIGNS,
    "ht\ntp://127.0.0.1/": SIGNS,
    " http://127.0.0.1/": SIGNS,
    "http://127.0.0.1\x00/": SIGNS,
    # ports
    "http://site.example:8080/": PORT,
    "http://site.example:22/": PORT,
    "http://site.example:8001/": PORT,
    "http://site.example:0/": PORT,
    "http://site.example:65616/": PORT,  # 80, in 16 bits
    "http://site.example:/": NO_HOST,
    "http://site.example:+80/": NO_HOST,
    "http://site.example:８０/": "cannot be read",
    "http://site.example:80:8001/": NO_HOST,
    "http://site.example:80x/": NO_HOST,
    # schemes
    "file:///etc/passwd": NO_SCHEME,
    "file://localhost/etc/passwd": NO_SCHEME,
    "ftp://site.example/": NO_SCHEME,
    "gopher://127.0.0.1:70/_GET": NO_SCHEME,
    "data:audio/wav;base64,UklGRg==": NO_SCHEME,
    "dict://127.0.0.1:11211/stats": NO_SCHEME,
    "ws://site.example/": NO_SCHEME,
    "jar:http://127.0.0.1!/": NO_SCHEME,
    "http+unix://%2fvar%2frun%2fdocker.sock/": NO_SCHEME,
    "javascript:alert(1)": NO_SCHEME,
    "s3://bucket/key": NO_SCHEME,
    f"http://site.example/{'a' * 5000}": "longer than 4096",
}


# to one that resolves it against the URL before it, as ours does: paths of the same public host
RELATIVE = ("http:127.0.0.1", "http:/127.0.0.1", "http:///127.0.0.1/", "127.0.0.1", "http://", "")


def refused(fetch: Callable[[], object], reason: str) -> None:
    with pytest.raises(UrlNotAllowed, match=reason) as caught:
        fetch()
    assert (caught.value.kind, caught.value.status) == ("url_not_allowed", 422)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_the_table_is_a_long_one() -> None:
    assert len(FORBIDDEN) >= 130


@pytest.mark.parametrize("url", FORBIDDEN, ids=ascii)
def test_what_leads_inside_is_refused_before_any_connection(url: str, canary: Internet, tmp_path: Path) -> None:
    fetch = fetcher(canary)
    refused(lambda: fetch.check(url), FORBIDDEN[url])
    refused(lambda: fetch.fetch(url, tmp_path / "x", 1000), FORBIDDEN[url])
    refused(lambda: fetch.post(url, b"{}", {}), FORBIDDEN[url])
    assert (canary.asked, canary.connected, canary.requests) == ([], [], [])
    assert list(tmp_path.iterdir()) == []


def test_no_redirect_leads_inside(tmp_path: Path) -> None:
    """Each form again, this time as what a public server answers with."""
    redirects = {
        f"/{index}": redirect(url)
        for index, url in enumerate(FORBIDDEN)
        if url.isascii() and url.isprintable() and re.match(r"\w+://[^/]|file:", url)  # others stand in no header
    }
    redirects |= {f"/status{status}": redirect("http://127.0.0.1/", status) for status in (301, 302, 303, 307, 308)}
    redirects |= {
        "/slashes": redirect("//127.0.0.1/"),
        "/utf8": raw("HTTP/1.1 302 x\r\nLocation: http://１２７.1/\r\n\r\n".encode()),
    }
    assert len(redirects) > 100
    with serving(redirects) as internet:
        fetch = fetcher(internet)
        for index, path in enumerate(redirects):
            refused(lambda path=path: fetch.fetch(SITE + path, tmp_path / "x", 1000), "redirects to one that")  # type: ignore[misc]
            assert len(internet.requests) == index + 1  # the public server's, no other
    assert {address for address, _ in internet.connected} == {PUBLIC}
    assert list(tmp_path.iterdir()) == []


def test_redirects_that_are_read_in_two_ways_stay_with_their_host(tmp_path: Path) -> None:
    with serving({f"/{index}": redirect(url) for index, url in enumerate(RELATIVE)}) as internet:
        fetch = fetcher(internet)
        for index in range(len(RELATIVE)):
            with suppress(FetchFailed):
                assert fetch.fetch(f"{SITE}/{index}", tmp_path / "x", 1000).url.startswith(SITE + "/")
    assert {address for address, _ in internet.connected} == {PUBLIC}
    assert all(b"host: site.example\r\n" in head.lower() for head in internet.requests)


INSIDE = [
    "127.0.0.1",
    "10.1.2.3",
    "169.254.169.254",
    "::1",
    "::ffff:10.0.0.1",
    "fd00:ec2::254",
    "fe80::1%eth0",
    "nonsense",
]


@pytest.mark.parametrize("inside", INSIDE)
def test_names_that_lead_inside_are_refused(inside: str, canary: Internet, tmp_path: Path) -> None:
    canary.names = {"evil.example": [[inside]], "half.example": [[PUBLIC, inside]]}
    for host in ("evil.example", "half.example"):
        refused(lambda host=host: fetcher(canary).fetch(f"http://{host}/", tmp_path / "x", 99), "not a public")  # type: ignore[misc]
    assert canary.connected == []


def test_whether_an_inner_name_exists_is_not_told(canary: Internet, tmp_path: Path) -> None:
    canary.names = {"db.inner.example": [["10.0.0.7"]]}
    said = set()
    for host in ("db.inner.example", "other.inner.example"):
        with pytest.raises(UrlNotAllowed) as caught:
            fetcher(canary).fetch(f"http://{host}/", tmp_path / "x", 99)
        said.add(str(caught.value))
    assert len(said) == 1
    assert "10.0" not in said.pop()


def test_a_name_that_changes_its_address_is_asked_once_for_a_connection(canary: Internet, tmp_path: Path) -> None:
    canary.names = {"evil.example": [[PUBLIC], ["127.0.0.1"]]}
    fetch = fetcher(canary)
    fetch.fetch("http://evil.example/", tmp_path / "x", 99)
    assert canary.asked == ["evil.example."]
    assert canary.connected == [(PUBLIC, 80)]  # the address that was checked, not the name again
    refused(lambda: fetch.fetch("http://evil.example/", tmp_path / "x", 99), "not a public")
    assert len(canary.connected) == 1


def test_a_name_that_changes_its_address_between_redirects(tmp_path: Path) -> None:
    with serving({"/": redirect("/again")}) as internet:
        internet.names = {"evil.example": [[PUBLIC], ["10.0.0.1"]]}
        refused(lambda: fetcher(internet).fetch("http://evil.example/", tmp_path / "x", 99), "not a public")
    assert internet.connected == [(PUBLIC, 80)]


def test_the_system_is_asked_for_whole_names_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A search domain would make site.example one of site.example.cluster.local."""
    asked = []

    def getaddrinfo(host: str, *rest: object, **options: object) -> list[object]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    refused(lambda: UrlFetcher(Settings()).fetch(SITE, tmp_path / "x", 99), "not a public")
    assert asked == ["site.example."]


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving({"/": plain(BODY)}) as internet:
        assert fetcher(internet).fetch(SITE, tmp_path / "x", 99_999).size == len(BODY)
    assert internet.connected == [(PUBLIC, 80)]


def test_fetching_can_be_off(canary: Internet, tmp_path: Path) -> None:
    fetch = fetcher(canary, fetch_urls=False, fetch_allow="site.example:80")
    with pytest.raises(UrlNotAllowed, match="follows no URLs") as caught:
        fetch.check(SITE)
    assert "LIPSERVE_FETCH_URLS" in caught.value.hint
    refused(lambda: fetch.fetch(SITE, tmp_path / "x", 99), "follows no URLs")
    refused(lambda: fetch.post(SITE, b"", {}), "follows no URLs")
    assert canary.connected == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("172.15.0.1", True),
        ("172.32.0.1", True),
        ("100.128.0.1", True),
        ("223.255.255.254", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("2001:4860:4860::8888", True),
        ("2001:1ff::1", False),
        ("4000::1", False),
    ],
)
def test_the_edges_of_what_is_public(address: str, public: bool) -> None:
    found = literal(address)
    assert found is not None
    assert is_public(found) is public


# -- what may be fetched ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("HTTP://SITE.example", "http://site.example/"),
        ("http://site.example.:80/a?b=c#d", "http://site.example/a?b=c"),
        ("https://site.example:443/%7Ea//b/../c;d", "https://site.example/%7Ea//b/../c;d"),
        ("https://site.example:80/", "https://site.example:80/"),
        ("http://bücher.example/ä?ö", "http://xn--bcher-kva.example/%C3%A4?%C3%B6"),
        ("http://a_b.example/", "http://a_b.example/"),
        (f"http://{PUBLIC}/", f"http://{PUBLIC}/"),
        ("http://[2606:4700:0::1111]/", "http://[2606:4700::1111]/"),
        ("http://3com.example/", "http://3com.example/"),
        ("http://site.example?a@b", "http://site.example/?a@b"),
    ],
)
def test_public_urls_are_read_as_one_spelling(url: str, read: str) -> None:
    assert str(location(url)) == read


@pytest.mark.parametrize("setting", ["localhost", "localhost:", "http://a:80", "a b:80", "x:99999x", "[::1]", ":80"])
def test_what_is_no_host_and_port_cannot_be_allowed(setting: str) -> None:
    with pytest.raises(InvalidParameter, match="FETCH_ALLOW"):
        allowed_hosts(setting)


def test_allowed_hosts_have_one_spelling() -> None:
    assert allowed_hosts(" MinIO:9000, [0::1]:80 ,") == {("minio", 9000), ("::1", 80)}


@pytest.fixture
def site() -> Iterator[tuple[dict[str, Answer], Internet]]:
    answers: dict[str, Answer] = {}
    with serving(answers) as internet:
        yield answers, internet


Site = tuple[dict[str, Answer], Internet]


def local(internet: Internet, **settings: object) -> tuple[UrlFetcher, str]:
    """The real network and DNS, to this machine's server by leave of the settings."""
    allow = f"{internet.address}:{internet.port}"
    return UrlFetcher(Settings(fetch_allow=allow, **settings)), f"http://{allow}"  # type: ignore[arg-type]


def test_an_allowed_host_is_fetched_from_for_real(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers["/a?b=c"] = plain(BODY)
    fetch, base = local(internet)
    fetch.check(base)
    found = fetch.fetch(f"{base}/a?b=c", tmp_path / "x", len(BODY))
    assert (found.size, found.url) == (len(BODY), f"{base}/a?b=c")
    assert (tmp_path / "x").read_bytes() == BODY
    lines = internet.requests[0].decode().lower().split("\r\n")
    assert lines[0] == "get /a?b=c http/1.1"
    names = sorted(line.split(":")[0] for line in lines[1:] if line)
    assert names == ["accept", "accept-encoding", "host", "user-agent"]
    assert "accept-encoding: identity" in lines
    assert f"host: {internet.address}:{internet.port}" in lines


def test_an_allowed_name_is_resolved_by_the_system(tmp_path: Path) -> None:
    with serving({"/": plain(BODY)}, address="127.0.0.1") as internet:
        fetch = UrlFetcher(Settings(fetch_allow=f"localhost:{internet.port}"))
        assert fetch.fetch(f"http://localhost:{internet.port}", tmp_path / "x", 99_999).size == len(BODY)


def test_leave_for_one_port_is_none_for_another(site: Site, tmp_path: Path) -> None:
    _, internet = site
    fetch, _ = local(internet)
    here = internet.address
    for url in (f"http://{here}:{internet.port + 1}/", f"http://{here}/", f"http://127.0.0.1:{internet.port}/"):
        refused(lambda url=url: fetch.fetch(url, tmp_path / "x", 99), "URL's")  # type: ignore[misc]
    assert internet.requests == []


def test_a_redirect_from_an_allowed_host_is_not_allowed_more(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers["/"] = redirect(f"http://127.0.0.1:{internet.port}/secret")
    fetch, base = local(internet)
    refused(lambda: fetch.fetch(base, tmp_path / "x", 99), "redirects to one that is not allowed")
    assert len(internet.requests) == 1


def failed(fetch: Callable[[], object], reason: str) -> None:
    with pytest.raises(FetchFailed, match=reason) as caught:
        fetch()
    assert (caught.value.kind, caught.value.status) == ("fetch_failed", 422)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_three_redirects_are_followed(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers |= {"/0": redirect("/1", 301), "/1": redirect("2", 307), "/2": redirect("http://other.example/3", 308)}
    answers["/3"] = plain(BODY)
    answers["/-1"] = redirect("/0")
    internet.names["other.example"] = [["8.8.4.4"]]
    fetch = fetcher(internet)
    assert fetch.fetch(f"{SITE}/0", tmp_path / "x", 99_999).url == "http://other.example/3"
    assert [address for address, _ in internet.connected] == [PUBLIC] * 3 + ["8.8.4.4"]
    failed(lambda: fetch.fetch(f"{SITE}/-1", tmp_path / "y", 99_999), "more than 3 times")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize("length", [len(BODY) - 1, 1])
def test_a_file_larger_than_allowed(length: int, site: Site, tmp_path: Path) -> None:
    """By what is announced, and by what comes though nothing is."""
    answers, internet = site
    answers["/announced"] = plain(BODY)
    answers["/chunked"] = raw(
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%b\r\n" % (len(BODY), BODY) * 9
    )
    answers["/silent"] = raw(b"HTTP/1.0 200 x\r\n\r\n" + BODY)
    fetch, base = local(internet)
    for path in answers:
        failed(lambda path=path: fetch.fetch(base + path, tmp_path / "x", length), "larger than")  # type: ignore[misc]
        assert list(tmp_path.iterdir()) == []


def test_endless_bodies_end_at_the_limit(site: Site, tmp_path: Path) -> None:
    sent = 0

    def endless(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent += connection.send(bytes(65_536))

    answers, internet = site
    answers["/"] = endless
    fetch, base = local(internet)
    failed(lambda: fetch.fetch(base, tmp_path / "x", 1_000_000), "larger than 1 MB")
    assert sent < 30_000_000  # what the kernel's buffers hold


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nshort", "not to the end"),
        (b"HTTP/1.1 200 x\r\nContent-Length: -5\r\n\r\nsecret", "proper HTTP"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nsecret", "proper HTTP"),
        (b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "not to the end"),
        (b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nsecret", "proper HTTP"),
        (b"HTTP/1.1 200 x\r\nTransfer-Encoding: gzip\r\n\r\n", "proper HTTP"),
        (b"HTTP/1.1 200 x\r\nContent-Length: 0\r\n\r\n", "empty"),
        (b"HTTP/1.1 204 x\r\n\r\n", "answered 204"),
        (b"HTTP/1.1 206 x\r\nContent-Length: 6\r\n\r\nsecret", "answered 206"),
        (b"HTTP/1.1 404 secret\r\nContent-Length: 6\r\n\r\nsecret", "answered 404"),
        (b"HTTP/1.1 500 x\r\nContent-Length: 6\r\n\r\nsecret", "answered 500"),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n", "proper HTTP"),
        (b"", "proper HTTP"),
        (b"secret of some other protocol\r\n\r\n", "proper HTTP"),
        (b"HTTP/1.1 200 x\r\n" + b"X: " + b"x" * 300_000 + b"\r\n\r\n", "proper HTTP"),
        (b"HTTP/1.1 302 x\r\nContent-Length: 0\r\n\r\n", "more than 3 times"),
    ],
    ids=range(16),
)
def test_answers_that_are_none(answer: bytes, reason: str, site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers["/"] = raw(answer)
    fetch, base = local(internet)
    failed(lambda: fetch.fetch(base, tmp_path / "x", 10**6), reason)
    assert list(tmp_path.iterdir()) == []


def test_compressed_answers_are_refused_unread(site: Site, tmp_path: Path) -> None:
    """A bomb: 10 MB in 10 kB."""
    answers, internet = site
    answers["/"] = plain(gzip.compress(bytes(10**7)), "Content-Encoding: gzip\r\n")
    fetch, base = local(internet)
    failed(lambda: fetch.fetch(base, tmp_path / "x", 10**6), "compressed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 x\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 x\r\nX-Long: ", b"HTTP/1.1 100 x\r\n\r\n", b""],
)
def test_a_server_that_drips_is_given_up(head: bytes, site: Site, tmp_path: Path) -> None:
    """No single wait is long, in the body, the headers or before them."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(head)
        while head or connection.recv(1):  # without a word: until the other side leaves
            connection.sendall(b"HTTP/1.1 100 x\r\n\r\n" if b" 100 " in head else b"x")
            time.sleep(0.05)

    answers, internet = site
    answers["/"] = drip
    fetch, base = local(internet, fetch_timeout_seconds=1)
    start = time.monotonic()
    failed(lambda: fetch.fetch(base, tmp_path / "x", 10**6), "longer than 1 seconds")
    assert 0.9 < time.monotonic() - start < 2.5
    assert list(tmp_path.iterdir()) == []


def test_nobody_waits_for_a_name_server_longer_than_allowed(tmp_path: Path) -> None:
    over = Event()
    fetch = UrlFetcher(Settings(fetch_timeout_seconds=1), lambda host, port: [PUBLIC] if over.wait(20) else [])
    failed(lambda: fetch.fetch(SITE, tmp_path / "x", 99), "longer than 1 seconds")
    over.set()


def test_a_name_server_in_trouble_is_no_verdict(tmp_path: Path) -> None:
    def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "10.0.0.2 does not answer")

    failed(lambda: UrlFetcher(Settings(), resolve).fetch(SITE, tmp_path / "x", 99), "at the moment")


def test_cancelling_ends_a_fetch_at_once(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    cancelled = Event()

    def stall(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 x\r\nContent-Length: 9\r\n\r\nab")
        cancelled.set()
        connection.recv(1)  # until the other side leaves

    answers["/"] = stall
    fetch, base = local(internet)
    start = time.monotonic()
    with pytest.raises(Cancelled):
        fetch.fetch(base, tmp_path / "x", 99, cancelled)
    assert time.monotonic() - start < 5
    assert list(tmp_path.iterdir()) == []


def test_the_next_address_is_tried(tmp_path: Path) -> None:
    with serving({"/": plain(BODY)}) as internet:
        internet.unreachable = {"2606:4700::1"}
        internet.names["two.example"] = [["2606:4700::1", PUBLIC]]
        assert fetcher(internet).fetch("http://two.example/", tmp_path / "x", 99_999).size == len(BODY)
        internet.names["two.example"] = [["2606:4700::1"]]
        failed(lambda: fetcher(internet).fetch("http://two.example/", tmp_path / "y", 99), "cannot be reached")


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fetch = UrlFetcher(Settings(fetch_allow=f"127.0.0.1:{port}"))
    failed(lambda: fetch.fetch(f"http://127.0.0.1:{port}/", tmp_path / "x", 99), "cannot be reached")


def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers["/"] = plain(BODY)
    fetch, base = local(internet)
    (tmp_path / "x").symlink_to("/dev/full")
    with pytest.raises(StorageFull):
        fetch.fetch(base, tmp_path / "x", 10**6)


def test_fetches_leave_no_handle_or_thread(site: Site, tmp_path: Path) -> None:
    answers, internet = site
    answers |= {"/good": plain(BODY), "/bad": raw(b"nonsense\r\n\r\n"), "/large": plain(bytes(10**5))}
    fetch, base = local(internet)

    def round_trip() -> None:
        for path in ("/good", "/bad", "/large"):
            try:
                fetch.fetch(base + path, tmp_path / "x", 50_000)
            except FetchFailed:
                continue

    round_trip()
    own = {thread for thread in threading.enumerate() if thread.name.endswith("(_answer)")}
    handles = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        round_trip()
    time.sleep(0.1)
    assert len(list(Path("/proc/self/fd").iterdir())) <= handles
    assert {thread for thread in threading.enumerate() if thread.name.endswith("(_answer)")} <= own


# -- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate of site.example, good for itself alone."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    file = tmp_path_factory.mktemp("tls") / "site.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=site.example"]
    command += ["-addext", "subjectAltName=DNS:site.example", "-keyout", str(file), "-out", str(file) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
    return file


def test_tls_proves_the_name_though_the_address_was_chosen(certificate: Path, tmp_path: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=str(certificate))
    answers = {"/": plain(BODY), "/down": redirect("http://site.example/"), "/over": redirect("https://other.example/")}
    with serving(answers, server) as internet:
        internet.names["other.example"] = [["8.8.4.4"]]
        fetch = fetcher(internet, trust)
        assert fetch.fetch("https://site.example/", tmp_path / "x", 99_999).size == len(BODY)
        assert internet.connected == [(PUBLIC, 443)]
        refused(lambda: fetch.fetch("https://site.example/down", tmp_path / "y", 99), "from https to http")
        for url in ("https://site.example/over", "https://other.example/"):
            failed(lambda url=url: fetch.fetch(url, tmp_path / "y", 99), "no certificate that is valid")  # type: ignore[misc]
        failed(lambda: fetcher(internet).fetch("https://site.example/", tmp_path / "y", 99), "no certificate")
    assert not (tmp_path / "y").exists()


# -- webhooks ---------------------------------------------------------------------------------------------------------


def test_a_post_brings_the_status_and_follows_nothing(tmp_path: Path) -> None:
    answers = {
        "/ok": raw(b"HTTP/1.1 202 x\r\nContent-Length: 2\r\n\r\nok"),
        "/moved": redirect("http://127.0.0.1/"),
        "/bad": raw(b"HTTP/1.1 500 x\r\n\r\n" + b"secret" * 50_000),
        "/cut": raw(b"HTTP/1.1 200 x\r\nContent-Length: 100\r\n\r\nx"),
    }
    with serving(answers) as internet:
        fetch = fetcher(internet)
        found = [
            fetch.post(SITE + path, b'{"a":1}', {"content-type": "application/json", "x-id": "7"}) for path in answers
        ]
    assert found == [202, 302, 500, 200]
    assert len(internet.requests) == 4
    assert internet.requests[0].startswith(b"POST /ok HTTP/1.1\r\n")
    for line in (b"content-type: application/json", b"x-id: 7", b"content-length: 7", b"host: site.example"):
        assert line in internet.requests[0].lower()


# -- videos -----------------------------------------------------------------------------------------------------------


def put(fetch: UrlFetcher, url: str, file: Path, cancelled: Event | None = None) -> int:
    return fetch.put(url, file, {"content-type": "video/mp4"}, lambda *_: None, cancelled)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """More than fits into buffers on the way."""
    file = tmp_path / "film.mp4"
    with file.open("wb") as out:
        out.truncate(50_000_000)
    return file


def test_a_file_is_sent_piece_by_piece(tmp_path: Path) -> None:
    file, told = tmp_path / "a.mp4", list[tuple[int, int]]()
    file.write_bytes(BODY * 20)
    with receiving() as receiver:
        receiver.answers += [201, 302]
        fetch, url = UrlFetcher(Settings(fetch_allow=receiver.host)), f"http://{receiver.host}/a.mp4"
        assert fetch.put(url, file, {"content-type": "video/mp4"}, lambda *part: told.append(part)) == 201
        assert put(fetch, url, file) == 302  # and it was not followed
    (headers, body), _ = receiver.got
    assert (receiver.methods, body) == (["PUT", "PUT"], BODY * 20)
    assert {"content-type": "video/mp4", "content-length": str(len(body))}.items() <= headers.items()
    assert "transfer-encoding" not in headers
    assert [done for done, _ in told] == [65_536, 131_072, 196_608, len(body)]
    assert {size for _, size in told} == {len(body)}


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost/", "ftp://site.example/", "s3://bucket/a.mp4"])
def test_no_file_is_sent_inside(url: str, canary: Internet, film: Path) -> None:
    refused(lambda: put(fetcher(canary), url, film), "URL")
    canary.names["inner.example"] = [["10.0.0.1"]]
    refused(lambda: put(fetcher(canary), "http://inner.example/", film), "not a public one")
    assert canary.requests == [] and canary.connected == []


@pytest.mark.parametrize("reads", [0, 1000])
def test_a_receiver_that_takes_nothing_or_little_is_given_up(reads: int, site: Site, film: Path) -> None:
    over = Event()

    def slow(connection: socket.socket) -> None:
        while not over.wait(0.02) and (not reads or connection.recv(reads)):
            pass

    answers, internet = site
    answers["/"] = slow
    fetch, base = local(internet, fetch_timeout_seconds=1)
    start = time.monotonic()
    failed(lambda: put(fetch, base, film), "longer than 1 seconds")
    over.set()
    assert 0.9 < time.monotonic() - start < 4


def test_cancelling_ends_sending(site: Site, film: Path) -> None:
    cancelled = Event()

    def take(connection: socket.socket) -> None:
        cancelled.set()
        while connection.recv(65_536):
            pass

    answers, internet = site
    answers["/"] = take
    fetch, base = local(internet)
    with pytest.raises(Cancelled):
        put(fetch, base, film, cancelled)


def test_a_receiver_that_refuses_before_it_has_everything(site: Site, film: Path) -> None:
    answers, internet = site
    answers["/"] = raw(b"HTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n")
    fetch, base = local(internet)
    try:
        assert put(fetch, base, film) == 413
    except FetchFailed as exc:  # the connection was reset before the answer was read
        assert "broke" in exc.message or "proper HTTP" in exc.message


def test_an_answer_to_a_post_that_never_ends(tmp_path: Path) -> None:
    def endless(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(bytes(65_536))

    with serving({"/": endless}) as internet:
        assert fetcher(internet).post(SITE, b"", {}) == 200


def test_sockets_of_the_machine_are_out_of_reach(canary: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def stream(pool: httpcore.ConnectionPool, *_: object, **__: object) -> object:
        seen.append(pool._network_backend)
        raise LipserveError("enough")

    monkeypatch.setattr(httpcore.ConnectionPool, "stream", stream)
    with pytest.raises(LipserveError, match="enough"):
        fetcher(canary).post(SITE, b"", {})
    with pytest.raises(UrlNotAllowed):
        seen[0].connect_unix_socket("/var/run/docker.sock")

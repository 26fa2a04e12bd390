"""URLs from outside: which may be fetched at all, and which addresses are the public internet's. No network here.

A URL is taken apart once, by rules stricter than any client's, and every later step uses the parts: there is no second
parser that could see another host in it.
"""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import idna

from lipserve.errors import InvalidParameter, UrlNotAllowed

MAX_URL = 4096  # characters
MAX_HOST = 253  # characters, of DNS
PORTS = {"http": 80, "https": 443}

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Allowed = frozenset[tuple[str, int]]  # host as `Location` has it, port

_HINT = "Give an http or https URL of a public host, at port 80 or 443, or upload the file."
_AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:@%/?#]+)(?::([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Names that mean something inside a network or a machine; single labels do, too.
_INNER_NAMES = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "home.arpa",
    "onion",
)
_KEPT = "%/:=&?~+!$,;'@()*-._"  # of a path or query, as they are

# What is not public though `is_global` says so, in one Python version or another.
_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carriers' NAT; also a cloud's metadata, 100.100.100.200
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata, in public space
        "169.254.0.0/16",  # link-local; clouds' metadata
        "172.16.0.0/12",
        "192.0.0.0/24",  # also a cloud's metadata, 192.0.0.192
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
]
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")  # so neither ::/96, ::ffff:0:0/96, fc00::/7, fe80::/10 nor ff00::/8
_NOT_PUBLIC_V6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # Teredo, ORCHID, benchmarks
        "2001:db8::/32",
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # how a host with IPv6 alone sees IPv4


@dataclass(frozen=True)
class Location:
    """A checked URL, taken apart. `host`: an ASCII name in lower case, or an address without brackets."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, percent-encoded
    allowed: bool  # named in LIPSERVE_FETCH_ALLOW, so its address may be any

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}{self.target}"


def is_public(address: IPAddress) -> bool:
    """Whether an address is one of the public internet."""
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in network for network in _NOT_PUBLIC_V4)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_V6 and address.is_global and not any(address in network for network in _NOT_PUBLIC_V6)


def location(url: str, allow: Allowed = frozenset()) -> Location:
    """`url` taken apart. Raises UrlNotAllowed, and never says more of it than its caller knows."""
    if len(url) > MAX_URL:
        raise UrlNotAllowed(f"The URL is longer than {MAX_URL} characters.", _HINT)
    if any(c.isspace() or not c.isprintable() or c in '\\"<>^`{|}' for c in url):
        raise UrlNotAllowed("The URL has spaces, control characters or others that no URL has.", "Percent-encode them.")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise UrlNotAllowed("The URL cannot be read.", _HINT) from exc
    if parts.scheme not in PORTS or not url[len(parts.scheme) :].startswith("://"):
        raise UrlNotAllowed("The URL is not an http:// or https:// one.", _HINT)
    if "@" in parts.netloc:
        raise UrlNotAllowed("The URL has a user name or password in it.", "Use a URL without, such as a signed one.")
    found = _AUTHORITY.fullmatch(parts.netloc)
    if found is None:
        raise UrlNotAllowed("The URL's host cannot be read.", _HINT)
    port = int(found[2]) if found[2] else PORTS[parts.scheme]
    host, target = _host(found[1]), _target(parts.path, parts.query)
    allowed = (host, port) in allow
    if not allowed:
        _require_public(host)
        if port not in PORTS.values():
            raise UrlNotAllowed(f"The URL's port {port} is not allowed.", _HINT)
    return Location(parts.scheme, host, port, target, allowed)


def redirected(before: Location, to: str, allow: Allowed) -> Location:
    """Where a redirect leads. Raises UrlNotAllowed."""
    try:
        after = location(urljoin(str(before), to), allow)
    except UrlNotAllowed as exc:
        raise UrlNotAllowed("The URL redirects to one that is not allowed.", _HINT) from exc
    except ValueError as exc:
        raise UrlNotAllowed("The URL redirects to one that cannot be read.", _HINT) from exc
    if (before.scheme, after.scheme) == ("https", "http"):
        raise UrlNotAllowed("The URL redirects from https to http.", _HINT)
    return after


def allowed_hosts(setting: str) -> Allowed:
    """What LIPSERVE_FETCH_ALLOW names. Raises InvalidParameter."""
    hosts = set()
    for item in filter(None, (part.strip() for part in setting.split(","))):
        found = _AUTHORITY.fullmatch(item)
        try:
            if found is None or not found[2]:
                raise ValueError(item)
            hosts.add((_host(found[1]), int(found[2])))
        except (ValueError, UrlNotAllowed) as exc:
            raise InvalidParameter(
                f"LIPSERVE_FETCH_ALLOW: {item!r} is not a host and a port.", "Write host:port, such as minio:9000."
            ) from exc
    return frozenset(hosts)


def _host(written: str) -> str:
    """One spelling for each host. Raises UrlNotAllowed."""
    if written.startswith("["):
        try:
            return str(ipaddress.IPv6Address(written[1:-1]))
        except ValueError as exc:
            raise UrlNotAllowed("The URL's host is not an IPv6 address.", _HINT) from exc
    if len(written) > MAX_HOST + 1:
        raise UrlNotAllowed("The URL's host is not a name.", _HINT)
    host = written.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True, std3_rules=True).decode()
        except UnicodeError as exc:
            raise UrlNotAllowed("The URL's host is not an internationalised name.", _HINT) from exc
    host = host.removesuffix(".")
    labels = host.split(".")
    if len(host) > MAX_HOST or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlNotAllowed("The URL's host is not a name.", _HINT)
    if _NUMBER.fullmatch(labels[-1]):  # to many programs that makes it an IPv4 address, however odd
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as exc:
            raise UrlNotAllowed("The URL's host is an unusual form of an IPv4 address.", _HINT) from exc
    return host


def _require_public(host: str) -> None:
    address = literal(host)
    if address is not None and not is_public(address):
        raise UrlNotAllowed("The URL's address is not a public one.", _HINT)
    if address is None and ("." not in host or _ends_in(host, _INNER_NAMES)):
        raise UrlNotAllowed("The URL's host is a name of an internal network.", _HINT)


def literal(host: str) -> IPAddress | None:
    """The address that a host is, if it is no name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _ends_in(host: str, names: Collection[str]) -> bool:
    return any(host == name or host.endswith("." + name) for name in names)


def _target(path: str, query: str) -> str:
    written = (path or "/") + (f"?{query}" if query else "")
    return quote(written, safe=_KEPT)

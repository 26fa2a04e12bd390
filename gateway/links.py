"""Signed URLs that open one path, for reading, until they expire: results for players and pages that have no key.

The only module that imports itsdangerous. The secret is made at the first start and kept in the storage folder; whoever
removes it makes all links void.
"""

import hashlib
import re
import secrets
import time
from functools import partial
from pathlib import Path
from urllib.parse import parse_qs, quote

from itsdangerous import Signer
from starlette.requests import Request

from gateway.secret_file import kept_secret
from lipserve.errors import LinkExpired

SECRET_FILE = "links.secret"
SECONDS = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)  # since 1970, in the one spelling that is signed


class Links:
    """`seconds`: how long a link is good; `public_url`: what all links begin with, or None: as the request says."""

    def __init__(self, secret: bytes, seconds: int, public_url: str | None = None) -> None:
        self._signer = Signer(secret, salt="lipserve.links", key_derivation="hmac", digest_method=hashlib.sha256)
        self._seconds, self._public_url = seconds, public_url

    def result_url(self, request: Request, path: str) -> str:
        """A signed URL of this path for the sender of this request."""
        return self.sign(path, str(request.base_url))

    def sign(self, path: str, base_url: str = "") -> str:
        """A signed URL: below public_url, else below `base_url`."""
        expires = int(time.time()) + self._seconds
        signature = self._signer.get_signature(_signed(path, expires)).decode()
        base = (self._public_url or base_url).rstrip("/")
        return f"{base}{quote(path)}?expires={expires}&signature={signature}"

    def check(self, path: str, query: str) -> None:
        """Raises LinkExpired unless the query is the one that `sign` gave this path, and it is still good."""
        given = parse_qs(query)
        expires, signature = given.get("expires", []), given.get("signature", [])
        well_formed = len(expires) == len(signature) == 1 and SECONDS.fullmatch(expires[0])
        if not well_formed or not self._signer.verify_signature(_signed(path, int(expires[0])), signature[0]):
            raise LinkExpired("This link's signature does not fit it.", "Use the URL exactly as it was given.")
        if int(expires[0]) <= time.time():
            raise LinkExpired("This link has expired.", "Ask for a new one, with the key.")


def _signed(path: str, expires: int) -> str:
    return f"{expires}\n{path}"


def is_signed(query: str) -> bool:
    """Whether this request wants to be let in by its link."""
    return "signature" in parse_qs(query)


def secret(folder: Path) -> bytes:
    """The one kept in `folder`; made if there is none."""
    return kept_secret(folder / SECRET_FILE, partial(secrets.token_bytes, 32))

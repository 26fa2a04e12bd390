"""What endpoints may answer instead of what was asked for, as their descriptions list it."""

from typing import Any

from lipserve.api import ErrorBody
from lipserve.talk_api import DidError

Responses = dict[int | str, dict[str, Any]]

MEANING = {
    400: "The request cannot be read.",
    401: "A key is wanted, and no valid one was sent.",
    403: "The signed link has expired, or is not ours.",
    404: "There is no such thing, or it is not yours.",
    408: "The request's body stopped coming.",
    409: "It is in the wrong state for that.",
    413: "The request is too large.",
    416: "The video has no such range.",
    422: "A parameter or a file makes no sense; `kind` says which kind of wrong.",
    429: "Too many calls or jobs wait, or too many came with this key: see Retry-After.",
    499: "The service is shutting down.",
    500: "A defect of lipserve.",
    502: "Triton has failed at it.",
    503: "Something it needs is away or too busy; see Retry-After, if it is there.",
    507: "The disk is full.",
}
ANY = (401, 429, 500, 503)  # of every endpoint that wants a key
SENT = (400, 408, 413, 422, 507)  # where there is a body to read


def errors(*codes: int) -> Responses:
    """These, and those of every endpoint that wants a key."""
    return {code: {"model": ErrorBody, "description": MEANING[code]} for code in sorted({*ANY, *codes})}


def did_errors(*codes: int) -> Responses:
    """As `errors`, in D-ID's form. What is wrong with a request is 400 there, not 422."""
    return {code: {"model": DidError, "description": MEANING[code]} for code in sorted({*ANY, 400, *codes})}

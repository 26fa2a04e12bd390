"""What every endpoint may answer instead of what was asked for."""

from typing import Any

from pydantic import BaseModel


class ErrorBody(BaseModel):
    """Every error's answer."""

    kind: str
    message: str
    hint: str
    request_id: str


ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": ErrorBody} for code in (401, 404, 409, 413, 422, 429, 500, 502, 503, 507)
}

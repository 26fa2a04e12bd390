"""The OpenAPI document, where FastAPI's own says what is not so."""

from typing import Any

from fastapi import FastAPI

UNUSED = ("HTTPValidationError", "ValidationError")  # FastAPI's form of a 422; ours have another


def describe_errors(app: FastAPI) -> None:
    """Endpoints whose list of errors has no 422 have none."""
    undescribed = app.openapi

    def openapi() -> dict[str, Any]:
        document = undescribed()
        for operations in document["paths"].values():
            for operation in operations.values():
                if UNUSED[0] in str(operation["responses"].get("422", "")):
                    del operation["responses"]["422"]
        for name in UNUSED:
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]

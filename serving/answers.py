"""How answers go out: JSON, and each refusal and fault as a `Problem`."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
MAYBE_STORED = "it may have been stored: send it again with the same Idempotency-Key"
HEADERS = {
    401: {"www-authenticate": "Bearer"},
    429: {"retry-after": str(RETRY_AFTER_S)},
    503: {"retry-after": str(RETRY_AFTER_S)},
}
"""Of refusals, by status."""


class Refused(Exception):
    """A request that is not served; becomes a 4xx or 5xx answer.

    Args:
        field: where in the request, None where nowhere in particular.
        message: what is wrong and how to fix it.
        status: HTTP status.
        headers: beside those of the status.
    """

    def __init__(
        self, field: str | None, message: str, status: int = 422, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.field, self.message, self.status, self.headers = field, message, status, headers or {}

    def answer(self) -> Response:
        document = {"field": self.field, "message": self.message}
        return json_answer(document, self.status, {**self.headers, **HEADERS.get(self.status, {})})


def refused_of(error: Exception) -> Refused:
    """What the caller is told of an error; no stack trace and no value of the request is sent or logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(None, str(error.detail), error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors()[0])
    logger.error("a request failed: %s", type(error).__name__)
    return Refused(None, "an error on our side; it was counted", 500)


def _invalid(first: Mapping[str, Any]) -> Refused:
    if first["type"] == "json_invalid":
        return Refused(None, f"the body is not JSON: {first['ctx']['error']}", 400)
    if isinstance(first["input"], bytes):  # FastAPI read no JSON
        return Refused(None, "send the header content-type: application/json")
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"][1:]).lstrip(".")
    return Refused(field or None, first["msg"])


def json_answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(document), status, headers, media_type="application/json")

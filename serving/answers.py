"""HTTP answers: JSON, and each refusal or failure as a `Problem`."""

import logging
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
TOO_MANY = "too many requests at once: try again"
MAYBE_STORED = "the events may have been stored: send them again with the same Idempotency-Key"
_RETRY = {"retry-after": str(RETRY_AFTER_S)}
HEADERS = {401: {"www-authenticate": "Bearer"}, 429: _RETRY, 503: _RETRY}


class Refused(Exception):
    """A request that is not served; becomes a 4xx or 5xx answer with the fields of `Problem`."""

    def __init__(self, field: str | None, message: str, status: int = 422, headers: Any = None) -> None:
        super().__init__(message)
        self.field, self.message, self.status = field, message, status
        self.headers = {**(headers or {}), **HEADERS.get(status, {})}

    def answer(self) -> Response:
        return json_answer({"field": self.field, "message": self.message}, self.status, self.headers)


def refused_of(error: Exception) -> Refused:
    """The answer to an error; no stack trace or value of the request is sent or logged."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(None, str(error.detail), error.status_code, error.headers)
    if not isinstance(error, RequestValidationError):
        logger.error("a request failed: %s", type(error).__name__)
        return Refused(None, "internal error", 500)
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return Refused(None, f"the body is not JSON: {problem['ctx']['error']}", 400)
    if isinstance(problem["input"], bytes):  # FastAPI did not parse the body
        return Refused(None, "send the header content-type: application/json")
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem["loc"][1:]).lstrip(".")
    return Refused(field or None, problem["msg"])


def json_answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(document), status, headers, media_type="application/json")

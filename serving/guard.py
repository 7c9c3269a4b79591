"""ASGI middleware in front of every route: keys, limits, each error as a `Problem`."""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

BURST_S = 2.0  # a key's requests at once, in seconds of its rate
MAX_IN_FLIGHT = 128  # requests that a replica works on; further ones get 503 at once
MAX_BODY_BYTES = 4_000_000  # longest body; 1,000 histories of 100 titles fit
DOCS_FILES = ("swagger-ui.css", "swagger-ui-bundle.js", "redoc.standalone.js", "favicon.png")
PUBLIC = {  # paths that need no key and count in no limit
    *("", "/", "/page/page.css", "/page/page.js", "/healthz", "/readyz"),
    *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    *(f"/static-offline-docs/{name}" for name in DOCS_FILES),  # of the package `fastapi_offline`
}
RETRY_AFTER_S = 1
TOO_MANY = "too many requests at once: try again"
MAYBE_STORED = "the events may have been stored: send them again with the same Idempotency-Key"
_RETRY = {"retry-after": str(RETRY_AFTER_S)}
HEADERS = {401: {"www-authenticate": "Bearer"}, 429: _RETRY, 503: _RETRY}
# keys in a scope's extensions: the whole body, if the proxy (serving/proxy.py) or the guard has read it
PROXY_BODY, GUARD_BODY = "mtrec.body", "mtrec.read"


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


class TokenBucket:
    """`rate` requests per second, those of `BURST_S` at once.

    Written by hand, because a request takes 0.5 us here and 5 to 10 us with the `limits` library (measured).
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.burst = rate, max(1.0, BURST_S * rate)
        self.tokens, self.at = self.burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens, self.at = min(self.burst, self.tokens + (now - self.at) * self.rate), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Guard:
    """Wraps an ASGI app and answers its errors; without `keys` (loopback only) it admits all.

    A key may send `rate` requests per second. `in_flight` counts requests from admission to the end of the answer;
    `count_error` gets the status of each error.
    """

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], rate: float, count_error: Callable[[str], None]) -> None:
        self.app, self.count_error, self.in_flight = app, count_error, 0
        self.buckets = {_digest(key): TokenBucket(rate) for key in keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        guarded = scope["path"].removeprefix(scope.get("root_path", "")) not in PUBLIC
        answered = False

        async def watched_send(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            if guarded:
                self._admit(scope)
            self.in_flight += guarded
            try:
                await self.app(scope, await _read_body(scope, receive), watched_send)
            finally:
                self.in_flight -= guarded
        except Exception as error:  # not raised: Ray would log its text, which may contain a history
            refused = refused_of(error)
            self.count_error(str(refused.status))
            if not answered:
                await refused.answer()(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        if self.buckets:
            headers = dict(scope["headers"])
            scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            key = key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")
            bucket = self.buckets.get(_digest(key))  # a digest's prefix reveals nothing of a key
            if bucket is None:
                raise Refused(None, "an API key is needed: send the header Authorization: Bearer KEY", 401)
            if not bucket.take():
                raise Refused(None, "too many requests with this API key: try again later", 429)
        if self.in_flight >= MAX_IN_FLIGHT:
            raise Refused(None, TOO_MANY, 503)


class BufferedRequest:
    """A request's messages, which can be received again if they are `complete`."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.messages = receive, list[Message]()
        self.complete = self.disconnected = False

    async def buffer(self, max_bytes: int) -> None:
        """Receive the whole body, unless it is longer."""
        size = 0
        while not (self.complete or self.disconnected) and size <= max_bytes:
            self.messages.append(message := await self._receive_live())
            size += len(message.get("body", b""))
            self.complete = size <= max_bytes and not message.get("more_body", False)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    def replay(self) -> Receive:
        """Receives the buffered messages, then what follows them."""
        buffered = deque(self.messages)

        async def receive() -> Message:
            return buffered.popleft() if buffered else await self._receive_live()

        return receive

    async def _receive_live(self) -> Message:
        message = await self._receive()
        self.disconnected |= message["type"] == "http.disconnect"
        return message


async def _read_body(scope: Scope, receive: Receive) -> Receive:
    """Receive the body, unless the proxy has; returns what receives it again."""
    request, extensions = BufferedRequest(receive), scope.get("extensions") or {}
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if PROXY_BODY in extensions:  # a short one
        request.messages.append({"type": "http.request", "body": extensions[PROXY_BODY]})
    else:
        if not declared.isdigit() or int(declared) <= MAX_BODY_BYTES:
            await request.buffer(MAX_BODY_BYTES)
        if not (request.complete or request.disconnected):
            raise Refused(None, f"the body is longer than {MAX_BODY_BYTES:,} bytes: send less at a time", 413)
        scope["extensions"] = {**extensions, GUARD_BODY: request.body}
    return request.replay()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()

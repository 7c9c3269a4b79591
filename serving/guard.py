"""What stands before every route: body size, API keys, a rate for each key, and a bound on requests in flight.

A plain ASGI middleware. Nothing of a request is logged here: neither its body nor its key nor its path.
"""

import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mtrec_ray.serving.answers import Refused, refused_of
from mtrec_ray.serving.config import LimitsConfig

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
DOCS = "/static-offline-docs"
"""Where `fastapi_offline` serves the files of /docs and /redoc."""
OPEN = {
    *("", "/", *(f"/page/{name}" for name in PAGE_FILES), "/favicon.ico", "/healthz", "/readyz"),
    *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    *(f"{DOCS}/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "redoc.standalone.js", "favicon.png")),
}
"""Paths open to everybody; all others are guarded."""
BODY = "mtrec.body"
"""Key in a scope's extensions: the whole body, if a proxy has read it already (serving/proxy.py)."""
READ_HERE = "mtrec.read"
"""Another key there: the whole body, if the guard has read it."""


class TokenBucket:
    """`rate` requests a second on average, `burst` at once."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.tokens, self.at = float(burst), time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self.tokens, self.at = min(self.burst, self.tokens + (now - self.at) * self.rate), now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Guard:
    """Wraps an ASGI app.

    Args:
        app: what is guarded.
        keys: accepted API keys; without any, every caller is let in, which the config allows only on loopback.
        limits: sizes and rates; `in_flight` counts guarded requests, from admission to the end of the answer.
        count_error: called with the kind of each refusal.
    """

    def __init__(
        self, app: App, keys: tuple[str, ...], limits: LimitsConfig, count_error: Callable[[str], None]
    ) -> None:
        self.app, self.limits, self.count_error = app, limits, count_error
        self.buckets = {_digest(key): TokenBucket(limits.requests_per_s, limits.burst) for key in keys}
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        guarded = scope["path"].removeprefix(scope.get("root_path", "")) not in OPEN
        try:
            if guarded:
                self._admit(scope)
            self.in_flight += guarded
            try:
                await self._pass_on(scope, receive, send)
            finally:
                self.in_flight -= guarded
        except Refused as refused:
            self.count_error(str(refused.status))
            await refused.answer()(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, begun = await self._body(scope, receive), False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, _replay(body, receive), watched)
        except Exception as error:
            if not begun:  # else the app has answered; if raised, Ray would log the text, maybe a history
                raise refused_of(error) from error

    def _admit(self, scope: Scope) -> None:
        if self.buckets:
            given = _digest(_key_of(scope))
            bucket = None
            for digest, candidate in self.buckets.items():  # all of them: the time must not tell which fits
                if hmac.compare_digest(digest, given):
                    bucket = candidate
            if bucket is None:
                raise Refused(None, "an API key is needed: send the header Authorization: Bearer KEY", 401)
            if not bucket.take():
                raise Refused(None, "too many requests with this API key: try again later", 429)
        if self.in_flight >= self.limits.max_in_flight:
            raise Refused(None, "too many requests at once: try again", 503)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limits.max_body_bytes:
            raise self._too_long()
        parts, size = [], 0
        read = (scope.get("extensions") or {}).get(BODY)
        if read is not None and len(read) <= self.limits.max_body_bytes:
            return read
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.max_body_bytes:
                raise self._too_long()
            if not message.get("more_body", False):
                body = b"".join(parts)
                scope["extensions"] = {**(scope.get("extensions") or {}), READ_HERE: body}
                return body

    def _too_long(self) -> Refused:
        message = f"the body is longer than {self.limits.max_body_bytes:,} bytes: send less at a time"
        return Refused(None, message, 413)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _key_of(scope: Scope) -> str:
    headers = dict(scope["headers"])
    value = headers.get(b"authorization", b"").decode("latin-1")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receives the body once, then what comes after it: the disconnection."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again

"""ASGI middleware in front of every route: API keys, rates and limits.

Nothing of a request is logged here: neither its body nor its key nor its path.
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
PUBLIC = {
    *("", "/", *(f"/page/{name}" for name in PAGE_FILES), "/favicon.ico", "/healthz", "/readyz"),
    *("/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"),
    *(f"{DOCS}/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "redoc.standalone.js", "favicon.png")),
}
"""Paths that need no key and count in no limit."""
PROXY_BODY = "mtrec.body"
"""Key in a scope's extensions: the whole body, if the proxy has read it (serving/proxy.py)."""
GUARD_BODY = "mtrec.read"
"""Key in a scope's extensions: the whole body, if the guard has read it."""


class TokenBucket:
    """`rate` requests per second, `burst` at once.

    A request takes 0.5 microseconds; the in-memory limiters of the package `limits` took 5 to 10.
    """

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

    `in_flight` counts guarded requests from admission to the end of the answer. Without `keys` every caller is
    admitted, which the config allows only on loopback. Calls `count_error` with the status of each refusal.
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
        guarded = scope["path"].removeprefix(scope.get("root_path", "")) not in PUBLIC
        try:
            if guarded:
                self._admit(scope)
            self.in_flight += guarded
            try:
                await self._forward(scope, receive, send)
            finally:
                self.in_flight -= guarded
        except Refused as refused:
            self.count_error(str(refused.status))
            await refused.answer()(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, answered = await self._body(scope, receive), False

        async def watched_send(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self.app(scope, _replay(body, receive), watched_send)
        except Exception as error:
            if not answered:  # otherwise swallowed: Ray would log its text, which may contain a history
                raise refused_of(error) from error

    def _admit(self, scope: Scope) -> None:
        if self.buckets:
            sent, bucket = _digest(_key_of(scope)), None
            for digest, one in self.buckets.items():  # compare all, so that the time does not reveal which matches
                if hmac.compare_digest(digest, sent):
                    bucket = one
            if bucket is None:
                raise Refused(None, "an API key is needed: send the header Authorization: Bearer KEY", 401)
            if not bucket.take():
                raise Refused(None, "too many requests with this API key: try again later", 429)
        if self.in_flight >= self.limits.max_in_flight:
            raise Refused(None, "too many requests at once: try again", 503)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        longest = self.limits.max_body_bytes
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > longest:
            raise _too_long(longest)
        extensions = scope.get("extensions") or {}
        if (body := extensions.get(PROXY_BODY)) is not None and len(body) <= longest:
            return body
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b""
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > longest:
                raise _too_long(longest)
        scope["extensions"] = {**extensions, GUARD_BODY: b"".join(parts)}
        return scope["extensions"][GUARD_BODY]


def _too_long(limit: int) -> Refused:
    return Refused(None, f"the body is longer than {limit:,} bytes: send less at a time", 413)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _key_of(scope: Scope) -> str:
    headers = dict(scope["headers"])
    value = headers.get(b"authorization", b"").decode("latin-1")
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get(b"x-api-key", b"").decode("latin-1")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Receive the body once, then what follows it: the disconnection."""
    replayed = False

    async def replay() -> Message:
        nonlocal replayed
        if replayed:
            return await receive()
        replayed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay

"""Middleware of Ray Serve's HTTP proxies: another replica answers if one dies.

* A request whose replica died is sent again once, if it only reads or has an Idempotency-Key; any other gets 503. Serve
  itself retries only what no replica had started.
* Above a limit of requests in flight it answers 503 at once, because refusing later costs as much as answering.
* A short body travels in its request's scope, because calling the proxy for it costs the replica more than the forward.

Proxies find it by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` in their own environment: `mtrec serve` sets it; on a
cluster, set it before `ray start`. Behind HAProxy it has no use.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from ray.util.metrics import Counter
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtrec_ray.serving.guard import MAYBE_STORED, PROXY_BODY, TOO_MANY, BufferedRequest, Refused

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
READY_VARIABLE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
MAX_AT_PROXY = 128  # requests in flight at the proxy, unless MTREC_MAX_AT_PROXY has another limit
HEALTH = ("/healthz", "/readyz")
READ_ONLY = {"GET", "HEAD", "POST"}  # change nothing; a PUT may have been stored before the replica died
MAX_BUFFERED_BYTES, BUFFER_WITHIN_S = 4_000_000, 1.0  # longer or slower bodies cannot be sent again
MAX_IN_SCOPE_BYTES = 100_000  # longer bodies, and those of unknown length, are received by the replica


def configure_proxy_env() -> None:
    """Set `middlewares`, and time to start, for the proxies of a Ray that is started later."""
    os.environ.setdefault(VARIABLE, "mtrec_ray.serving.proxy:middlewares")
    os.environ.setdefault(READY_VARIABLE, "20")  # Serve checks three times, then kills the proxy: 60 s


def middlewares() -> list[Middleware]:
    """The proxy's middlewares."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return []
    limit = int(os.environ.get("MTREC_MAX_AT_PROXY", MAX_AT_PROXY))
    counter = Counter("mtrec_proxy_interventions", "What a proxy did by itself, by outcome.", ("outcome",))
    return [Middleware(RetryOnReplicaDeath, limit=limit, count=lambda outcome: counter.inc(1, {"outcome": outcome}))]


class RetryOnReplicaDeath:
    """Wraps the proxy, which does not answer if a replica died or the caller disconnected.

    Calls `count` with `repeated` or `refused` for each lost request, and with `too many` above the `limit`.
    """

    def __init__(self, app: ASGIApp, limit: int, count: Callable[[str], None]) -> None:
        self.app, self.limit, self.count = app, limit, count
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.in_flight >= self.limit and not scope["path"].endswith(HEALTH):  # behind any prefix
            self.count("too many")
            await Refused(None, TOO_MANY, 503).answer()(scope, receive, send)
            return
        self.in_flight += 1
        try:
            await self._forward(scope, receive, send)
        finally:
            self.in_flight -= 1

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = BufferedRequest(receive)
        with suppress(TimeoutError):
            async with asyncio.timeout(BUFFER_WITHIN_S):
                await request.buffer(MAX_BUFFERED_BYTES)
        headers, read_only = dict(scope["headers"]), scope["method"] in READ_ONLY
        length = headers.get(b"content-length", b"")
        if request.complete and length.isdigit() and 0 < int(length) <= MAX_IN_SCOPE_BYTES:
            scope = {**scope, "extensions": {**(scope.get("extensions") or {}), PROXY_BODY: request.body}}
        if request.disconnected or await self._answered(scope, request, send) or request.disconnected:
            return
        if request.complete and (read_only or b"idempotency-key" in headers):
            self.count("repeated")
            if await self._answered(scope, request, send) or request.disconnected:
                return
        self.count("refused")
        fix = "try again" if read_only else MAYBE_STORED
        lost = Refused(None, f"the replica died before it answered: {fix}", 503)
        await lost.answer()(scope, request.replay(), send)

    async def _answered(self, scope: Scope, request: BufferedRequest, send: Send) -> bool:
        """Whether an answer was sent; its head is held back until its body, which may never come."""
        head: Message | None = None
        sent = busy = False

        async def delayed_send(message: Message) -> None:
            nonlocal head, sent, busy
            if message["type"] == "http.response.start":
                is_ours = dict(message["headers"]).get(b"content-type") == b"application/json"
                head, busy = message, message["status"] == 503 and not is_ours  # Serve refuses in plain text
            elif not busy:
                if head is not None:
                    await send(head)
                    head, sent = None, True
                await send(message)

        await self.app({**scope, "headers": list(scope["headers"])}, request.replay(), delayed_send)
        if busy:
            await Refused(None, TOO_MANY, 503).answer()(scope, request.replay(), send)
        return sent or busy

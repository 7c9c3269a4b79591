"""Middleware of Ray Serve's HTTP proxies: another replica answers if one dies.

Serve retries a request that its replica never started, but answers 500 if the replica died during the work. Here such a
request is sent again once, if it only reads or has an Idempotency-Key; any other gets 503 with Retry-After.

The middleware also limits the requests in flight at the proxy, a single process that forwards some hundreds per second.
Above the limit it answers 503 at once: refusing in Serve's queue or in the replicas costs as much as answering.

A short body travels in its request's scope: otherwise the replica calls the proxy for the body and for what follows it,
which costs more than the forward. A body that arrives slowly is left to the replica, which checks the API key first.

Proxies find the middleware by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` in their own environment: `mtrec serve` sets
it; on a cluster, set it before `ray start`. Behind HAProxy it would run in the replicas, without use.
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress

from ray.util.metrics import Counter
from starlette.middleware import Middleware

from mtrec_ray.errors import UserError
from mtrec_ray.serving.answers import MAYBE_STORED, Refused
from mtrec_ray.serving.guard import PROXY_BODY, App, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
READY_VARIABLE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
READY_S = 20
"""Serve checks a new proxy three times, then kills it: it has 60 s to start."""
LIMIT_VARIABLE = "MTREC_MAX_AT_PROXY"
MAX_AT_PROXY = 128
"""Default limit of requests in flight at the proxy."""
HEALTH = ("/healthz", "/readyz")
TOO_MANY = "too many requests at once: try again"
READ_ONLY = {"GET", "HEAD", "POST"}
"""Methods of this API that change nothing; a PUT may have been stored before the replica died."""
MAX_BUFFERED_BYTES = 4_000_000
BUFFER_WITHIN_S = 1.0
"""Requests with longer bodies, and those that take longer to arrive, cannot be sent again."""
MAX_IN_SCOPE_BYTES = 100_000
"""Longer bodies, and those of unknown length, are received by the replica."""


def configure_proxy_env() -> None:
    """Set `middlewares`, and time to start, for the proxies of a Ray that is started later."""
    os.environ.setdefault(VARIABLE, "mtrec_ray.serving.proxy:middlewares")
    os.environ.setdefault(READY_VARIABLE, str(READY_S))


def middlewares() -> list[Middleware]:
    """The proxy's middlewares; UserError if the limit is not a number."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return []
    limit = os.environ.get(LIMIT_VARIABLE, str(MAX_AT_PROXY))
    if not limit.isdigit() or limit == "0":
        raise UserError(f"{LIMIT_VARIABLE} is {limit!r}: give a number of requests, 1 or more")
    counter = Counter("mtrec_proxy_interventions", "What a proxy did by itself, by outcome.", ("outcome",))
    count = lambda outcome: counter.inc(1, {"outcome": outcome})  # noqa: E731
    return [Middleware(RetryOnReplicaDeath, limit=int(limit), count=count)]


class RetryOnReplicaDeath:
    """Wraps the proxy, which returns without an answer if a replica died.

    It does so too if the caller disconnected. At most `limit` requests are in flight, not counting health checks. Calls
    `count` with `repeated` or `refused` for each lost request, and with `too many` above the limit.
    """

    def __init__(self, app: App, limit: int, count: Callable[[str], None]) -> None:
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
            await self._forward(scope, BufferedRequest(receive), send)
        finally:
            self.in_flight -= 1

    async def _forward(self, scope: Scope, request: "BufferedRequest", send: Send) -> None:
        await request.buffer()
        length = dict(scope["headers"]).get(b"content-length", b"")
        if request.complete and length.isdigit() and 0 < int(length) <= MAX_IN_SCOPE_BYTES:
            scope = {**scope, "extensions": {**(scope.get("extensions") or {}), PROXY_BODY: request.body()}}
        if request.disconnected:
            return
        if await self._answered(scope, request, send) or request.disconnected:
            return
        keyed = any(name == b"idempotency-key" for name, _ in scope["headers"])
        if (scope["method"] in READ_ONLY or keyed) and request.complete:
            self.count("repeated")
            request.rewind()
            if await self._answered(scope, request, send) or request.disconnected:
                return
        self.count("refused")
        fix = "try again" if scope["method"] in READ_ONLY else MAYBE_STORED
        lost = Refused(None, f"the replica died before it answered: {fix}", 503)
        await lost.answer()(scope, request.receive, send)

    async def _answered(self, scope: Scope, request: "BufferedRequest", send: Send) -> bool:
        """Whether an answer was sent; its head is held back until its body, which may never come."""
        head: Message | None = None
        sent = busy = False

        async def delayed_send(message: Message) -> None:
            nonlocal head, sent, busy
            if message["type"] == "http.response.start":
                head, busy = message, _is_refusal_of_serve(message)
                return
            if busy:
                return
            if head is not None:
                await send(head)
                head, sent = None, True
            await send(message)

        await self.app({**scope, "headers": list(scope["headers"])}, request.receive, delayed_send)
        if busy:
            await Refused(None, TOO_MANY, 503).answer()(scope, request.receive, send)
        return sent or busy


def _is_refusal_of_serve(head: Message) -> bool:
    return head["status"] == 503 and dict(head["headers"]).get(b"content-type") != b"application/json"


class BufferedRequest:
    """A request's messages, kept so that they can be received again if they are `complete`."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._messages, self._next = receive, list[Message](), 0
        self.complete = self.disconnected = False

    async def buffer(self) -> None:
        """Receive the whole body, unless it is too long or too slow."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(BUFFER_WITHIN_S):
                while not (self.complete or self.disconnected) and size <= MAX_BUFFERED_BYTES:
                    self._messages.append(message := await self._live_receive())
                    size += len(message.get("body", b""))
                    self.complete = size <= MAX_BUFFERED_BYTES and not message.get("more_body", False)

    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._messages)

    def rewind(self) -> None:
        self._next = 0

    async def receive(self) -> Message:
        if self._next == len(self._messages):
            return await self._live_receive()
        self._next += 1
        return self._messages[self._next - 1]

    async def _live_receive(self) -> Message:
        message = await self._receive()
        self.disconnected |= message["type"] == "http.disconnect"
        return message

"""A middleware of Ray Serve's HTTP proxies: when a replica dies, its requests are answered by another one.

Serve itself retries a request that its replica never began, but answers 500 if the replica died while working on it.
Here such a request is sent to another replica, once, if it only reads or has an Idempotency-Key; otherwise it is
answered 503 with Retry-After. Serve's own 503 becomes a `Problem` with Retry-After too.

The middleware also bounds how long requests wait at the proxy, a single process that passes on some hundreds a second:
while `MTREC_MAX_AT_PROXY` requests are under way (an environment variable of the proxy, 128 if unset), it answers any
other at once with 503. Refusing them later, in the replicas or in Serve's queue, costs as much as answering them.

A short body travels in its request's scope. Otherwise the replica would ask the proxy for the body, and then for what
follows it, and these two calls cost more than the forward. A body that arrives slowly is left to the replica, which
checks the caller's key first.

Proxies find their middlewares by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` in their own environment. `mtrec serve`
sets it for the Ray that it starts; on a cluster, set it before `ray start`. With `RAY_SERVE_ENABLE_HA_PROXY=1` the
middlewares would run in the replicas, where there is no other replica to turn to and no proxy to relieve, so then there
are none.
"""

import asyncio
import os
from collections.abc import Callable

from ray.util.metrics import Counter
from starlette.middleware import Middleware

from mtrec_ray.errors import UserError
from mtrec_ray.serving.answers import MAYBE_STORED, Refused
from mtrec_ray.serving.guard import BODY, App, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEALTH = ("/healthz", "/readyz")
READY_VARIABLE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
READY_S = 20
"""Serve asks a new proxy three times whether it is ready, then kills it: this gives it 60 s in all."""
LIMIT_VARIABLE = "MTREC_MAX_AT_PROXY"
MAX_AT_PROXY = 128
TOO_MANY = "too many requests at once: try again"
ONLY_READ = {"GET", "HEAD", "POST"}
"""Methods of this API that change nothing; a PUT may have been stored before the replica died."""
MAX_KEPT_BYTES = 4_000_000
"""Longer bodies are not kept, so they cannot be sent again."""
MAX_IN_SCOPE_BYTES = 100_000
"""The replica asks for longer bodies, and for those of unknown length."""
BODY_WITHIN_S = 1.0
"""It also asks for those that have not arrived by then."""


def configure_proxy_env() -> None:
    """Let the proxies of a Ray started later use `middlewares`, and give them time to start on a busy machine."""
    os.environ.setdefault(VARIABLE, "mtrec_ray.serving.proxy:middlewares")
    os.environ.setdefault(READY_VARIABLE, str(READY_S))


def middlewares() -> list[Middleware]:
    """What the variable names, none behind HAProxy; UserError if the limit is not a number."""
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        return []
    limit = os.environ.get(LIMIT_VARIABLE, str(MAX_AT_PROXY))
    if not limit.isdigit() or limit == "0":
        raise UserError(f"{LIMIT_VARIABLE} is {limit!r}: give a number of requests, 1 or more")
    counter = Counter("mtrec_proxy_interventions", "What a proxy did by itself, by outcome.", ("outcome",))
    return [
        Middleware(RetryOnReplicaDeath, limit=int(limit), count=lambda outcome: counter.inc(1, {"outcome": outcome}))
    ]


class RetryOnReplicaDeath:
    """Wraps the proxy, which ends without an answer when a replica died, and when the caller left.

    Args:
        app: the proxy.
        limit: most requests under way at once, apart from health checks.
        count: called with `repeated` or `refused` for each lost request, and with `too many` above the limit.
    """

    def __init__(self, app: App, limit: int, count: Callable[[str], None]) -> None:
        self.app, self.limit, self.count = app, limit, count
        self.under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.under_way >= self.limit and not scope["path"].endswith(HEALTH):  # behind any prefix
            self.count("too many")
            await Refused(None, TOO_MANY, 503).answer()(scope, receive, send)
            return
        self.under_way += 1
        try:
            await self._pass_on(scope, Request(receive), send)
        finally:
            self.under_way -= 1

    async def _pass_on(self, scope: Scope, request: "Request", send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and 0 < int(length) <= MAX_IN_SCOPE_BYTES:
            body = await request.body(BODY_WITHIN_S)
            if request.left:
                return
            if body is not None:
                scope = {**scope, "extensions": {**(scope.get("extensions") or {}), BODY: body}}
        if await self._answered(scope, request, send) or request.left:
            return
        keyed = any(name == b"idempotency-key" for name, _ in scope["headers"])
        if (scope["method"] in ONLY_READ or keyed) and request.whole:
            self.count("repeated")
            request.rewind()
            if await self._answered(scope, request, send) or request.left:
                return
        self.count("refused")
        fix = "try again" if scope["method"] in ONLY_READ else MAYBE_STORED
        lost = Refused(None, f"the replica ended before it answered: {fix}", 503)
        await lost.answer()(scope, request.receive, send)

    async def _answered(self, scope: Scope, request: "Request", send: Send) -> bool:
        """Whether an answer was sent; its head is held back until its body, which may never come."""
        head: Message | None = None
        begun = busy = False

        async def watched(message: Message) -> None:
            nonlocal head, begun, busy
            if message["type"] == "http.response.start":
                head, busy = message, _is_serves_own_refusal(message)
                return
            if busy:
                return
            if head is not None:
                await send(head)
                head, begun = None, True
            await send(message)

        await self.app({**scope, "headers": list(scope["headers"])}, request.receive, watched)
        if busy:
            await Refused(None, TOO_MANY, 503).answer()(scope, request.receive, send)
        return begun or busy


def _is_serves_own_refusal(head: Message) -> bool:
    return head["status"] == 503 and dict(head["headers"]).get(b"content-type") != b"application/json"


class Request:
    """A request's messages, kept so that they can be received again."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._kept, self._next, self._bytes = receive, list[Message](), 0, 0
        self.left = False
        """The caller is gone."""

    @property
    def whole(self) -> bool:
        """All of it can be received again."""
        return self._bytes <= MAX_KEPT_BYTES

    def rewind(self) -> None:
        self._next = 0

    async def body(self, within_s: float) -> bytes | None:
        """The whole body, None if it does not come in time; `receive` then starts again from the first message."""
        parts, more = list[bytes](), True
        try:
            async with asyncio.timeout(within_s):
                while more and not self.left:
                    message = await self.receive()
                    parts.append(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            return None
        finally:
            self.rewind()
        return b"".join(parts)

    async def receive(self) -> Message:
        if self._next < len(self._kept):
            self._next += 1
            return self._kept[self._next - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            return message
        self._bytes += len(message.get("body", b""))
        if self.whole:
            self._kept.append(message)
            self._next += 1
        return message

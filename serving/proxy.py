"""What stands in each of Ray Serve's HTTP proxies: a replica that dies with a request costs its caller a moment.

Serve itself repeats a request that its replica never began, and answers 500 to one whose replica died with it. Here
that one is sent to another replica, once, when it only reads or has an Idempotency-Key; else it is answered 503 with
Retry-After. Serve's own 503 becomes a `Problem` with Retry-After too.

A proxy answers 503 by itself, at once, when `MTREC_MAX_AT_PROXY` requests are under way (128, or what that variable of
its environment says): it is one process, which passes on some hundreds a second, so this bounds how long the others
wait. To refuse them in the replicas or in Serve's queue costs as much as to answer them.

A short body travels with its request's scope, so that the replica need not wait until it has asked the proxy for it,
and ask again for what comes behind it: the two calls cost more than the forward. A body that is slow to come is left to
the replica, which looks at the caller's key first.

Proxies take their middlewares from `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` in their own environment: `mtrec serve`
sets it for the Ray that it starts; on a cluster it stands before `ray start`. With `RAY_SERVE_ENABLE_HA_PROXY=1` the
replicas themselves would put these before their own HTTP server, where there is no other replica to send a request to
and no proxy to relieve, so there are none.
"""

import asyncio
import os
from collections.abc import Callable

from ray.util.metrics import Counter
from starlette.middleware import Middleware

from mtrec_ray.errors import UserError
from serving.answers import MAYBE_STORED, Refused
from serving.guard import BODY, App, Message, Receive, Scope, Send

VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
HEALTH = ("/healthz", "/readyz")
READY_VARIABLE = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
READY_S = 20
"""Serve asks a new proxy three times whether it is ready and then kills it; 60 s are what it waits for one in all."""
LIMIT_VARIABLE = "MTREC_MAX_AT_PROXY"
MAX_AT_PROXY = 128
TOO_MANY = "too many requests at once: try again"
ONLY_READ = {"GET", "HEAD", "POST"}
"""Methods of this API that change nothing; what is put may have been stored before the replica died."""
MAX_KEPT_BYTES = 4_000_000
"""Longer bodies are not kept to be sent again."""
MAX_IN_SCOPE_BYTES = 100_000
"""Longer bodies, or of a length that is not told, are asked for by the replica."""
BODY_WITHIN_S = 1.0
"""So are those that are not there by then."""


def configure_proxy_env() -> None:
    """Let the proxies of a Ray started afterwards use `middlewares`, and leave them time to start on a busy machine."""
    os.environ.setdefault(VARIABLE, "serving.proxy:middlewares")
    os.environ.setdefault(READY_VARIABLE, str(READY_S))


def middlewares() -> list[Middleware]:
    """What the variable names, none behind HAProxy; UserError where the limit is no number."""
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
    """Wraps the proxy, which ends without an answer when a replica died with a request, and when its caller left.

    Args:
        app: the proxy.
        limit: requests under way at once, beside those for health.
        count: called with `repeated` or `refused` for each lost request, with `too many` for one above the limit.
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
        mend = "try again" if scope["method"] in ONLY_READ else MAYBE_STORED
        lost = Refused(None, f"the replica ended before it answered: {mend}", 503)
        await lost.answer()(scope, request.receive, send)

    async def _answered(self, scope: Scope, request: "Request", send: Send) -> bool:
        """Whether an answer went out; its head waits for its body, which may never come."""
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
    """A request's messages, kept to be received again."""

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
        """All of it, None where it does not come in time; `receive` gives again what came, and then the rest."""
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

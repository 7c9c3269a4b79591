"""What becomes of requests whose replica dies with them, with a proxy that ends as Serve's does."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

from mtrec_ray.errors import UserError
from mtrec_ray.serving import proxy
from mtrec_ray.serving.config import LimitsConfig
from mtrec_ray.serving.endpoint import build
from mtrec_ray.serving.guard import PROXY_BODY, Guard, Message, Receive, Scope, Send
from mtrec_ray.serving.proxy import RetryOnReplicaDeath, middlewares

OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
FULL = {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}


class Proxy:
    """Ends `deaths` times without an answer, after the head where `head`, then answers with the body it got."""

    def __init__(self, deaths: int, head: bool = False, answer: dict[str, Any] = OK) -> None:
        self.deaths, self.head, self.answer = deaths, head, answer
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        scope["headers"].append((b"x-request-id", b"1"))  # as the proxy does
        body = await body_of(receive)
        if len(self.scopes) <= self.deaths:
            if self.head:
                await send(self.answer)
            return
        await send(self.answer)
        await send({"type": "http.response.body", "body": body})


async def body_of(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def through(app: Proxy) -> tuple[TestClient, Counter[str]]:
    counts: Counter[str] = Counter()
    return TestClient(RetryOnReplicaDeath(app, 1, lambda outcome: counts.update([outcome]))), counts


@pytest.mark.parametrize("head", [False, True])
def test_a_lost_question_is_asked_again_as_it_was(head):
    app = Proxy(1, head)
    client, counts = through(app)
    answer = client.post("/v1/recommend", content=iter([b"par", b"ts"]))
    assert (answer.status_code, answer.content) == (200, b"parts")
    assert counts == {"repeated": 1}
    assert [sum(name == b"x-request-id" for name, _ in scope["headers"]) for scope in app.scopes] == [1, 1]


@pytest.mark.parametrize(
    ("method", "deaths", "size", "counted"),
    [
        ("POST", 2, 1, {"repeated": 1, "refused": 1}),
        ("PUT", 1, 1, {"refused": 1}),
        ("POST", 1, proxy.MAX_BUFFERED_BYTES + 1, {"refused": 1}),
    ],
    ids=["lost twice", "may have been stored", "too long to keep"],
)
def test_what_cannot_be_asked_again_is_refused_for_now(method, deaths, size, counted):
    client, counts = through(Proxy(deaths))
    answer = client.request(method, "/", content=b"x" * size)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    fix = (
        "the events may have been stored: send them again with the same Idempotency-Key"
        if method == "PUT"
        else "try again"
    )
    assert answer.json() == {"field": None, "message": f"the replica died before it answered: {fix}"}
    assert counts == counted


def test_events_with_a_key_are_sent_again():
    client, counts = through(Proxy(1))
    answer = client.put("/v1/users/ann/events", content=b"x", headers={"Idempotency-Key": "one"})
    assert (answer.status_code, counts) == (200, {"repeated": 1})


def test_nothing_is_asked_again_or_said_when_the_caller_left():
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    app = Proxy(9)
    scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    asyncio.run(RetryOnReplicaDeath(app, 1, lambda _: pytest.fail("counted"))(scope, gone, send))
    assert app.scopes == []


def test_serves_own_refusal_becomes_a_problem_and_ours_stays():
    client, counts = through(Proxy(0, answer=FULL))
    answer = client.post("/", content=b"dropped due to backpressure")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"field": None, "message": "too many requests at once: try again"}
    client, _ = through(Proxy(0, answer={**OK, "status": 503}))
    assert client.post("/", content=b'{"mine": 1}').json() == {"mine": 1}
    assert not counts


def test_above_the_limit_only_health_is_asked():
    app = Proxy(0)
    again = RetryOnReplicaDeath(app, 1, lambda outcome: counts.update([outcome]))
    client, counts = TestClient(again), Counter[str]()
    again.in_flight = 1
    answer = client.post("/v1/recommend", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["field"]) == (503, "1", None)
    assert client.post("/mtrec/v1/recommend", content=b"x").status_code == 503
    assert client.get("/healthz").status_code == client.get("/mtrec/readyz").status_code == 200
    again.in_flight = 0
    assert client.post("/v1/recommend", content=b"x").status_code == 200
    assert (again.in_flight, counts) == (0, {"too many": 2})


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_limit_that_is_none_is_named(monkeypatch, limit):
    monkeypatch.setenv(proxy.LIMIT_VARIABLE, limit)
    with pytest.raises(UserError, match=f"MTREC_MAX_AT_PROXY is '{limit}'"):
        middlewares()


def test_the_proxies_find_it_by_its_name(monkeypatch):
    for variable in (proxy.VARIABLE, proxy.READY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    proxy.configure_proxy_env()
    assert proxy.os.environ.pop(proxy.VARIABLE) == "mtrec_ray.serving.proxy:middlewares"
    assert proxy.os.environ.pop(proxy.READY_VARIABLE) == "20"
    assert [one.cls for one in middlewares()] == [RetryOnReplicaDeath]


def test_replicas_that_haproxy_asks_have_none(monkeypatch):
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert middlewares() == []


def test_the_queue_is_bounded_and_its_refusals_say_when_to_return():
    application = build({"bundle": "b", "host": "127.0.0.1", "limits": {"max_queued": 7}})
    deployment = application._bound_deployment
    assert (deployment.max_queued_requests, deployment.backpressure_config.retry_after_s) == (7, 1)


@pytest.mark.parametrize(
    ("content", "in_scope"),
    [
        (b"parts", b"parts"),
        (iter([b"par", b"ts"]), None),
        (b"p" * (proxy.MAX_IN_SCOPE_BYTES + 1), None),
        (b"", None),
    ],
    ids=["short", "of no told length", "long", "none"],
)
def test_a_short_body_travels_with_its_scope_and_can_be_received_too(content, in_scope):
    app = Proxy(1)
    client, _ = through(app)
    answer = client.post("/v1/recommend", content=content)
    assert answer.content == (content if isinstance(content, bytes) else b"parts")
    assert [scope.get("extensions", {}).get(PROXY_BODY) for scope in app.scopes] == [in_scope] * 2


def received_with(messages: list[Message], then: Message | None) -> tuple[Proxy, RetryOnReplicaDeath, list[Message]]:
    """A request that tells of 10 bytes and sends these messages, then that one or nothing more; what was answered."""
    app, sent = Proxy(0), list[Message]()
    again = RetryOnReplicaDeath(app, 1, lambda _: pytest.fail("counted"))

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        if then is None:
            await asyncio.sleep(3600)
        assert then is not None
        return then

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"10")]}
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await again(scope, receive, send)

    asyncio.run(run())
    return app, again, sent


def test_half_a_body_whose_caller_left_is_nobodys():
    half: Message = {"type": "http.request", "body": b"first", "more_body": True}
    app, again, sent = received_with([half], {"type": "http.disconnect"})
    assert (app.scopes, sent, again.in_flight) == ([], [], 0)


def test_a_slow_body_is_left_to_the_replica_whole(monkeypatch):
    monkeypatch.setattr(proxy, "BUFFER_WITHIN_S", 0.05)
    half: Message = {"type": "http.request", "body": b"first", "more_body": True}
    app, again, _ = received_with([half], None)
    assert [PROXY_BODY in (scope.get("extensions") or {}) for scope in app.scopes] == [
        False
    ]  # the replica refuses it or waits
    assert again.in_flight == 0

    async def late() -> list[Message]:
        came: asyncio.Queue[Message] = asyncio.Queue()
        came.put_nowait(half)
        request = proxy.BufferedRequest(came.get)
        await request.buffer()
        assert not request.complete
        came.put_nowait({"type": "http.request", "body": b"second", "more_body": False})
        return [await request.receive(), await request.receive()]

    assert [message["body"] for message in asyncio.run(late())] == [b"first", b"second"]


@pytest.mark.parametrize(("limit", "status"), [(5, 200), (4, 413)])
def test_a_replica_asks_for_no_body_that_came_with_its_scope(limit, status):
    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        await send({"type": "http.response.body", "body": await body_of(receive)})

    async def serves_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        async def never() -> Message:
            raise AssertionError("asked for the body")

        guard = Guard(replica, (), LimitsConfig(max_body_bytes=limit), lambda kind: None)
        await guard({**scope, "path": "/v1/recommend"}, never, send)

    answer = TestClient(RetryOnReplicaDeath(serves_proxy, 1, lambda outcome: None)).post(
        "/v1/recommend", content=b"parts"
    )
    assert answer.status_code == status
    assert status != 200 or answer.content == b"parts"

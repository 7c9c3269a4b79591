"""Requests of a replica that dies, with a proxy that ends as Serve's does."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from mtrec_ray.serving import proxy
from mtrec_ray.serving.guard import PROXY_BODY, Guard
from mtrec_ray.serving.proxy import RetryOnReplicaDeath, middlewares

OK = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
FULL = {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain; charset=utf-8")]}


class Proxy:
    """Returns without an answer `deaths` times, after the head if `head`; then answers with the body it received."""

    def __init__(self, deaths: int, head: bool = False, answer: dict[str, Any] = OK) -> None:
        self.deaths, self.head, self.answer = deaths, head, answer
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        scope["headers"].append((b"x-request-id", b"1"))  # as Serve's proxy does
        body = await body_of(receive)
        if len(self.scopes) <= self.deaths:
            if self.head:
                await send(self.answer)
            return
        await send(self.answer)
        await send({"type": "http.response.body", "body": body})


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def through(app: Proxy) -> tuple[TestClient, Counter[str]]:
    counts: Counter[str] = Counter()
    return TestClient(RetryOnReplicaDeath(app, 1, lambda outcome: counts.update([outcome]))), counts


@pytest.mark.parametrize(("method", "head"), [("POST", False), ("POST", True), ("PUT", False)])
def test_lost_read_and_events_with_a_key_are_sent_again_unchanged(method, head):
    app = Proxy(1, head)
    client, counts = through(app)
    headers = {"Idempotency-Key": "one"} if method == "PUT" else {}
    answer = client.request(method, "/v1/recommend", content=iter([b"par", b"ts"]), headers=headers)
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
    ids=["lost twice", "may have been stored", "too long to buffer"],
)
def test_request_that_cannot_be_repeated_gets_503(method, deaths, size, counted):
    client, counts = through(Proxy(deaths))
    answer = client.request(method, "/", content=b"x" * size)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    stored = "the events may have been stored: send them again with the same Idempotency-Key"
    fix = stored if method == "PUT" else "try again"
    assert answer.json() == {"field": None, "message": f"the replica died before it answered: {fix}"}
    assert counts == counted


def test_own_refusal_of_serve_becomes_a_problem_and_ours_stays():
    client, counts = through(Proxy(0, answer=FULL))
    answer = client.post("/", content=b"dropped due to backpressure")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json() == {"field": None, "message": "too many requests at once: try again"}
    client, _ = through(Proxy(0, answer={**OK, "status": 503}))
    assert client.post("/", content=b'{"mine": 1}').json() == {"mine": 1}
    assert not counts


def test_above_the_limit_only_health_checks_are_forwarded():
    client, counts = through(Proxy(0))
    retry: Any = client.app
    retry.in_flight = 1
    answer = client.post("/v1/recommend", content=b"x")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["field"]) == (503, "1", None)
    assert client.post("/mtrec/v1/recommend", content=b"x").status_code == 503
    assert client.get("/healthz").status_code == client.get("/mtrec/readyz").status_code == 200
    retry.in_flight = 0
    assert client.post("/v1/recommend", content=b"x").status_code == 200
    assert (retry.in_flight, counts) == (0, {"too many": 2})


def test_environment_names_the_middleware_but_not_behind_haproxy(monkeypatch):
    for variable in (proxy.VARIABLE, proxy.READY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    proxy.configure_proxy_env()
    assert proxy.os.environ.pop(proxy.VARIABLE) == "mtrec_ray.serving.proxy:middlewares"
    assert proxy.os.environ.pop(proxy.READY_VARIABLE) == "20"
    assert [one.cls for one in middlewares()] == [RetryOnReplicaDeath]
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert middlewares() == []


@pytest.mark.parametrize(
    ("content", "in_scope"),
    [
        (b"parts", b"parts"),
        (iter([b"par", b"ts"]), None),
        (b"p" * (proxy.MAX_IN_SCOPE_BYTES + 1), None),
        (b"", None),
    ],
    ids=["short", "of unknown length", "long", "none"],
)
def test_short_body_is_in_the_scope_and_can_be_received_too(content, in_scope):
    app = Proxy(1)
    client, _ = through(app)
    answer = client.post("/v1/recommend", content=content)
    assert answer.content == (content if isinstance(content, bytes) else b"parts")
    assert [scope.get("extensions", {}).get(PROXY_BODY) for scope in app.scopes] == [in_scope] * 2


FIRST: Message = {"type": "http.request", "body": b"first", "more_body": True}
SECOND: Message = {"type": "http.request", "body": b"second", "more_body": False}
SCOPE: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"11")]}


@pytest.mark.parametrize("messages", [[], [FIRST]], ids=["before the body", "within the body"])
def test_request_of_a_disconnected_caller_is_neither_forwarded_nor_answered(messages):
    async def receive() -> Message:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    app = Proxy(9)
    retry = RetryOnReplicaDeath(app, 1, lambda _: pytest.fail("counted"))
    asyncio.run(retry({**SCOPE}, receive, send))
    assert (app.scopes, retry.in_flight) == ([], 0)


def test_slow_body_is_received_by_the_replica(monkeypatch):
    monkeypatch.setattr(proxy, "BUFFER_WITHIN_S", 0.05)
    app = Proxy(0)
    retry = RetryOnReplicaDeath(app, 1, lambda _: pytest.fail("counted"))
    sent: list[Message] = []

    async def run() -> None:
        messages: asyncio.Queue[Message] = asyncio.Queue()
        messages.put_nowait(FIRST)

        async def send(message: Message) -> None:
            sent.append(message)

        request = asyncio.create_task(retry({**SCOPE}, messages.get, send))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.5)
        assert [PROXY_BODY in (scope.get("extensions") or {}) for scope in app.scopes] == [False]
        messages.put_nowait(SECOND)
        await request

    asyncio.run(run())
    assert (sent[-1]["body"], retry.in_flight) == (b"firstsecond", 0)


def test_guard_takes_a_body_from_the_scope():
    async def replica(scope: Scope, receive: Receive, send: Send) -> None:
        await send(OK)
        await send({"type": "http.response.body", "body": await body_of(receive)})

    async def proxy_of_serve(scope: Scope, receive: Receive, send: Send) -> None:
        async def never() -> Message:
            raise AssertionError("asked for the body")

        guard = Guard(replica, (), 1.0, lambda kind: None)
        await guard({**scope, "path": "/v1/recommend"}, never, send)

    client = TestClient(RetryOnReplicaDeath(proxy_of_serve, 1, lambda outcome: None))
    answer = client.post("/v1/recommend", content=b"parts")
    assert (answer.status_code, answer.content) == (200, b"parts")

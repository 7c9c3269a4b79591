"""The fast path of recommendations answers, counts and logs as FastAPI's route does."""

from collections import defaultdict
from typing import Any

import pytest
from starlette.testclient import TestClient

from mtrec_ray.serving import api as api_module
from mtrec_ray.serving import guard
from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.pointer import LiveEngine
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.telemetry import Telemetry

BODY = b'{"history": ["t01"], "territory": "north"}'
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(bundle_uri, store) -> Service:
    return Service(LiveEngine(bundle_uri), store, Telemetry())


@pytest.fixture
def both_ways(service, monkeypatch) -> Any:
    """Sends a request with and without the fast path; returns both outcomes and whether the first took it."""
    api = build_api(service, (), 200.0)
    route = api.app.app

    def send(body: bytes, method: str = "POST", root_path: str = "", headers: Any = JSON) -> tuple[Any, Any, bool]:
        seen: list[Any] = []
        routed: list[bool] = []
        for closed in (False, True):
            counted: list[str] = []

            async def watched(*asgi: Any, closed: bool = closed) -> None:
                routed.append(closed)
                await route(*asgi)

            with monkeypatch.context() as patch:
                patch.setattr(service.telemetry, "error", counted.append)
                patch.setattr(api, "count_error", counted.append)
                patch.setattr(service.telemetry.latency, "pending", defaultdict(list))
                patch.setattr(api.app, "app", watched)
                if closed:
                    patch.setattr(api_module, "_is_json_recommend", lambda _: False)
                client = TestClient(api, root_path=root_path, raise_server_exceptions=False)
                answer = client.request(method, f"{root_path}/v1/recommend", content=body, headers=headers)
                stages = {name: len(times) for name, times in service.telemetry.latency.pending.items()}
            seen.append((answer.status_code, answer.content, dict(answer.headers), counted, stages))
        return seen[0], seen[1], False not in routed

    return send


@pytest.mark.parametrize(
    ("body", "status", "fast"),
    [
        (b'{"history": ["t01", "t02"], "territory": "north"}', 200, True),
        (b'{"history": ["t01"], "territory": "south", "ignore": ["age"], "attributes": {"age": "old"}}', 200, True),
        (b'{"user_id": "ann", "territory": "south", "ignore": ["gender", "age"], "k": 3}', 200, True),
        (b'{"user_id": "nobody", "territory": "south", "k": "3"}', 200, True),
        (b'{"user_id": "ann", "territory": "nowhere"}', 422, True),
        (b'{"user_id": "ann", "territory": "north", "ignored": []}', 422, False),
        (b'{"user_id": "ann", "history": ["t01"], "territory": "north"}', 422, False),
        (b'{"history": ["\\ud800"], "territory": "north"}', 422, False),
        (b'{"history": ["t01"]', 400, False),
        (b"", 422, False),
        (BODY[:-1] + b" " * api_module.MAX_FAST_BYTES + b"}", 200, False),
    ],
)
def test_answers_are_equal_and_invalid_or_long_bodies_take_the_route(both_ways, body, status, fast):
    first, second, by_fast_path = both_ways(body)
    assert (by_fast_path, first[0], first) == (fast, status, second)
    assert ("recommend" in first[-1]) == (fast or status == 200)


@pytest.mark.parametrize(
    ("request_", "status", "fast"),
    [
        ({"headers": {"content-type": "application/json; charset=UTF-8"}}, 200, True),
        ({"headers": {"content-type": "text/plain"}}, 422, False),
        ({"headers": [("content-type", "application/json")] * 2}, 200, False),
        ({"method": "PUT"}, 405, False),
        ({"root_path": "/under"}, 200, True),
    ],
)
def test_other_types_and_methods_take_the_route(both_ways, request_, status, fast):
    first, second, by_fast_path = both_ways(BODY, **request_)
    assert (by_fast_path, first[0], first) == (fast, status, second)


def test_body_read_by_the_proxy_takes_the_route(both_ways, monkeypatch):
    read_body = guard._read_body

    async def from_proxy(scope: Any, receive: Any) -> Any:
        return await read_body(scope | {"extensions": {guard.PROXY_BODY: BODY}}, receive)

    monkeypatch.setattr(guard, "_read_body", from_proxy)
    first, second, by_fast_path = both_ways(b"")
    assert (by_fast_path, first[0], first) == (False, 200, second)


def test_failing_model_is_counted_and_logged_alike_and_tried_once(both_ways, monkeypatch, caplog):
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("t01 in a message")

    monkeypatch.setattr(Engine, "recommend", fail)
    first, second, by_fast_path = both_ways(BODY)
    assert (by_fast_path, first[0], first) == (True, 500, second)
    assert (first[3], len(calls), b"t01" in first[1]) == (["500"], 2, False)
    assert [record.getMessage() for record in caplog.records] == ["a request failed: RuntimeError"] * 2

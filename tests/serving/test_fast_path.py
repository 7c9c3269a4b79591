"""The fast path of recommendations answers as FastAPI's route does."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from mtrec_ray.serving import fast_path, guard
from mtrec_ray.serving.api import build_api
from mtrec_ray.serving.config import LimitsConfig
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.live import LiveEngine
from mtrec_ray.serving.service import Service
from mtrec_ray.serving.store import UserState, open_store
from mtrec_ray.serving.telemetry import Telemetry

BODY = b'{"history": ["t01"], "territory": "north"}'
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def service(bundle_uri, tmp_path_factory) -> Service:
    store = open_store(str(tmp_path_factory.mktemp("fast") / "store"))
    store.put_many([("ann", UserState(("t01", "gone"), {"gender": "F"}, "north", b""))])
    return Service(LiveEngine(bundle_uri, 1.0), store, Telemetry(), batch_rows=8)


@pytest.fixture(scope="module")
def api(service) -> Any:
    return build_api(service, (), LimitsConfig())


class Seen(NamedTuple):
    """What a caller and Prometheus see of an answer."""

    status: int
    body: bytes
    headers: dict[str, str]
    counted: list[str]
    stages: Mapping[str, float]


@pytest.fixture
def both_ways(service, api, monkeypatch) -> Any:
    """Sends a request with and without the fast path; the third value is whether the first answer came by it."""

    def send(body: bytes, method: str = "POST", root_path: str = "", headers: Any = JSON) -> tuple[Seen, Seen, bool]:
        seen, routed = [], []
        for closed in (False, True):
            with monkeypatch.context() as patch:
                counted: list[str] = []
                patch.setattr(service.telemetry, "error", counted.append)
                patch.setattr(api, "count_error", counted.append)
                patch.setattr(service.telemetry.latency, "pending", {})
                if closed:
                    patch.setattr(fast_path, "_is_recommend", lambda _: False)
                route = api.app.app

                async def watched(*asgi: Any, route: Any = route, closed: bool = closed) -> None:
                    routed.append(closed)
                    await route(*asgi)

                patch.setattr(api.app, "app", watched)
                client = TestClient(api, root_path=root_path, raise_server_exceptions=False)
                answer = client.request(method, f"{root_path}/v1/recommend", content=body, headers=headers)
                stages = {name: sum(counts[:-1]) for name, counts in service.telemetry.latency.pending.items()}
            seen.append(Seen(answer.status_code, answer.content, dict(answer.headers), counted, stages))
        return seen[0], seen[1], False not in routed

    return send


@pytest.mark.parametrize(
    ("body", "fast"),
    [
        (b'{"history": ["t01", "t02"], "territory": "north"}', True),
        (b'{"history": ["t01", "gone"], "territory": "south", "ignore": ["age"], "attributes": {"age": "old"}}', True),
        (b'{"user_id": "ann", "territory": "south", "ignore": ["gender", "age"], "k": 3}', True),
        (b'{"user_id": "nobody", "territory": "south", "k": "3"}', True),
        (b'{"user_id": "ann", "territory": "nowhere"}', True),
        (b'{"user_id": "ann", "territory": "north", "ignore": ["shoe size"]}', True),
        (b'{"user_id": "ann", "territory": "north", "ignored": []}', False),
        (b'{"user_id": "ann", "history": ["t01"], "territory": "north"}', False),
        (b'{"history": ["\\ud800"], "territory": "north"}', False),
        (b'{"history": [1], "territory": "north"}', False),
        (b'{"history": ["t01"], "territory": "north", "k": 0}', False),
        (b'{"history": ["t01"]', False),
        (b"", False),
        (BODY[:-1] + b" " * fast_path.MAX_BYTES + b"}", False),
    ],
)
def test_answers_are_equal_and_invalid_or_long_bodies_take_the_route(both_ways, body, fast):
    first, second, by_fast_path = both_ways(body)
    assert by_fast_path == fast
    assert first == second
    assert ("recommend" in first.stages) == (fast or len(body) > fast_path.MAX_BYTES)
    assert (first.status == 200) == (not first.counted)


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
    assert (by_fast_path, first.status, first) == (fast, status, second)


def test_body_read_by_the_proxy_takes_the_route(both_ways, api, monkeypatch):
    behind = api._body

    async def from_proxy(scope: Any, receive: Any) -> bytes:
        scope["extensions"] = {guard.PROXY_BODY: BODY}
        return await behind(scope, receive)

    monkeypatch.setattr(api, "_body", from_proxy)
    first, second, by_fast_path = both_ways(b"")
    assert (by_fast_path, first.status, first) == (False, 200, second)


def test_failing_model_is_counted_and_logged_alike_and_tried_once(both_ways, monkeypatch, caplog):
    calls = []

    def fail(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("t01 in a message")

    monkeypatch.setattr(Engine, "recommend", fail)
    first, second, by_fast_path = both_ways(BODY)
    assert by_fast_path
    assert first == second
    assert (first.status, first.counted, len(calls)) == (500, ["500"], 2)
    assert [record.getMessage() for record in caplog.records] == ["a request failed: RuntimeError"] * 2
    assert b"t01" not in first.body

"""The short way of recommendations against FastAPI's, and requests that meet in one forward."""

import asyncio
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from mtrec_ray.bundle.manifest import Bundle
from serving import batcher, short_way
from serving.api import build_api
from serving.batcher import Batcher
from serving.config import LimitsConfig
from serving.engine import Engine, Query
from serving.live import LiveEngine
from serving.open_store import open_store
from serving.service import Service
from serving.store import UserState
from serving.telemetry import Telemetry
from tests.serving.bundles import write_bundle

HISTORY = {"history": ["t01", "t02", "t03"], "territory": "north"}
WORDS = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("short") / "bundle"))


@pytest.fixture(scope="module")
def api(bundle, tmp_path_factory) -> Any:
    store = open_store(str(tmp_path_factory.mktemp("short store") / "store"))
    store.put_many([("ann", UserState(("t01", "gone"), {"gender": "F"}, "north", b""))])
    return build_api(Service(LiveEngine(bundle, 1.0), store, Telemetry(), batch_rows=8), (), LimitsConfig())


@pytest.fixture
def both_ways(api, monkeypatch) -> Any:
    """Asks twice, the second time with the short way closed; says whether the first answer came by it."""
    client, longer = TestClient(api), []
    route = short_way.ShortWay._answer

    async def watched(self: short_way.ShortWay, body: bytes) -> bytes | None:
        answer = await route(self, body)
        longer.append(answer is None)
        return answer

    def ask(body: bytes, **headers: str) -> tuple[Any, Any, bool]:
        longer.clear()
        with monkeypatch.context() as patch:
            patch.setattr(short_way.ShortWay, "_answer", watched)
            first = client.post("/v1/recommend", content=body, headers=WORDS | headers)
        with monkeypatch.context() as patch:
            patch.setattr(short_way, "_is_ours", lambda _: False)
            second = client.post("/v1/recommend", content=body, headers=WORDS | headers)
        return first, second, longer == [False]

    return ask


@pytest.mark.parametrize(
    ("body", "short"),
    [
        (b'{"history": ["t01", "t02"], "territory": "north"}', True),
        (b'{"history": ["t01", "gone"], "territory": "south", "ignore": ["age"], "attributes": {"age": "old"}}', True),
        (b'{"user_id": "ann", "territory": "south", "ignore": ["gender", "age"], "k": 3}', True),
        (b'{"user_id": "nobody", "territory": "south", "k": "3"}', True),
        (b'{"user_id": "ann", "territory": "nowhere"}', False),
        (b'{"user_id": "ann", "territory": "north", "ignore": ["shoe size"]}', False),
        (b'{"user_id": "ann", "territory": "north", "ignored": []}', False),
        (b'{"user_id": "ann", "history": ["t01"], "territory": "north"}', False),
        (b'{"history": ["\\ud800"], "territory": "north"}', False),
        (b'{"history": [1], "territory": "north"}', False),
        (b'{"history": ["t01"], "territory": "north", "k": 0}', False),
        (b'{"history": ["t01"]', False),
        (b"", False),
    ],
)
def test_both_ways_answer_alike(both_ways, body, short):
    first, second, by_the_short_way = both_ways(body)
    assert by_the_short_way == short
    assert (first.status_code, first.content) == (second.status_code, second.content)
    assert dict(first.headers) == dict(second.headers)
    assert first.is_success == short


def test_another_kind_of_body_is_left_to_the_route(both_ways):
    body = b'{"history": ["t01"], "territory": "north"}'
    for kind, status in (("text/plain", 422), ("application/json; charset=utf-8", 200)):
        first, second, by_the_short_way = both_ways(body, **{"content-type": kind})
        assert not by_the_short_way
        assert (first.status_code, first.content) == (status, second.content)


def test_a_failing_model_is_answered_and_counted_by_the_route(api, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("t01 in a message")

    counted: list[str] = []
    monkeypatch.setattr(Engine, "recommend", fail)
    monkeypatch.setattr(Telemetry, "error", lambda _, kind: counted.append(kind))
    answer = TestClient(api, raise_server_exceptions=False).post("/v1/recommend", json=HISTORY)
    assert (answer.status_code, counted) == (500, ["500"])
    assert "t01" not in answer.text


@pytest.fixture
def engine(bundle) -> Engine:
    return Engine(Bundle.open(bundle))


def batches_of(engine: Engine, calls: list[tuple[float, int]]) -> tuple[list[int], list[float]]:
    """(delay, queries) of concurrent calls -> rows of each forward, seconds that each call took."""
    forwards: list[int] = []

    async def run() -> list[float]:
        collected = Batcher(8, lambda queries: forwards.append(len(queries)))

        async def call(delay: float, count: int) -> float:
            await asyncio.sleep(delay)
            start = time.perf_counter()
            answers = await collected.run(engine, [Query((1, 2), (0, 0), place % 4, 0, 5) for place in range(count)])
            assert len(answers) == count
            return time.perf_counter() - start

        return await asyncio.gather(*(call(*one) for one in calls))

    took = asyncio.run(run())
    return forwards, took


CROWD = [(0.0, 1)] * 5


def test_those_that_come_alone_wait_for_as_many_as_met_lately(engine, monkeypatch):
    monkeypatch.setattr(batcher, "LINGER_S", 0.5)
    forwards, took = batches_of(engine, [*CROWD, (0.1, 1), (0.12, 1), (0.14, 1)])
    assert forwards == [5, 3]
    assert took[-3] >= 0.4
    monkeypatch.setattr(batcher, "LINGER_S", 30.0)
    forwards, took = batches_of(engine, [*CROWD, *[(0.1 + place / 100, 1) for place in range(5)]])
    assert (forwards, max(took) < 10) == ([5, 5], True)


def test_nobody_waits_where_few_met_or_came_with_many_queries(engine, monkeypatch):
    monkeypatch.setattr(batcher, "LINGER_S", 30.0)
    for calls, expected in (
        ([(0.0, 1)] * 3 + [(0.1, 1), (0.2, 1)], [3, 1, 1]),
        ([(0.0, 20), (0.1, 1), (0.2, 1)], [8, 8, 4, 1, 1]),
        ([*CROWD, (0.1, 1), (0.2, 3)], [5, 4]),
    ):
        forwards, took = batches_of(engine, calls)
        assert (forwards, max(took) < 10) == (expected, True)

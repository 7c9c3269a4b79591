"""The short way of recommendations against FastAPI's, and requests that meet in one forward."""

import asyncio
from typing import Any, NamedTuple

import pytest
from starlette.testclient import TestClient

from mtrec_ray.bundle.manifest import Bundle
from serving import batcher, guard, short_way
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

WORDS = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> str:
    return str(write_bundle(tmp_path_factory.mktemp("short") / "bundle"))


@pytest.fixture(scope="module")
def service(bundle, tmp_path_factory) -> Service:
    store = open_store(str(tmp_path_factory.mktemp("short store") / "store"))
    store.put_many([("ann", UserState(("t01", "gone"), {"gender": "F"}, "north", b""))])
    return Service(LiveEngine(bundle, 1.0), store, Telemetry(), batch_rows=8)


@pytest.fixture(scope="module")
def api(service) -> Any:
    return build_api(service, (), LimitsConfig())


class Seen(NamedTuple):
    """What an answer's reader and Prometheus see of it."""

    status: int
    body: bytes
    headers: dict[str, str]
    counted: list[str]
    stages: dict[str, int]


@pytest.fixture
def both_ways(service, api, monkeypatch) -> Any:
    """Asks twice, the second time with the short way closed; says whether the first answer came by it."""

    def ask(body: bytes, method: str = "POST", root_path: str = "", headers: Any = WORDS) -> tuple[Seen, Seen, bool]:
        seen, passed_on = [], []
        for closed in (False, True):
            with monkeypatch.context() as patch:
                counted: list[str] = []
                patch.setattr(service.telemetry, "error", counted.append)
                patch.setattr(service.telemetry.latency, "waiting", {})
                if closed:
                    patch.setattr(short_way, "_is_ours", lambda _: False)
                route = api.app.app

                async def watched(*asgi: Any, route: Any = route, closed: bool = closed) -> None:
                    passed_on.append(closed)
                    await route(*asgi)

                patch.setattr(api.app, "app", watched)
                client = TestClient(api, root_path=root_path, raise_server_exceptions=False)
                answer = client.request(method, f"{root_path}/v1/recommend", content=body, headers=headers)
                stages = {name: sum(counts.buckets) for name, counts in service.telemetry.latency.waiting.items()}
            seen.append(Seen(answer.status_code, answer.content, dict(answer.headers), counted, stages))
        return seen[0], seen[1], False not in passed_on

    return ask


@pytest.mark.parametrize(
    ("body", "short"),
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
    ],
)
def test_both_ways_answer_alike(both_ways, body, short):
    first, second, by_the_short_way = both_ways(body)
    assert by_the_short_way == short
    assert first == second
    assert ("recommend" in first.stages) == short  # refused before the route
    assert (first.status == 200) == (not first.counted)


def test_what_is_not_plain_is_left_to_the_route(both_ways):
    body, twice = b'{"history": ["t01"], "territory": "north"}', [("content-type", "application/json")] * 2
    for asked, status, short in (
        ({"headers": {"content-type": "application/json; charset=UTF-8"}}, 200, True),
        ({"headers": {"content-type": "text/plain"}}, 422, False),
        ({"headers": twice}, 200, False),
        ({"method": "PUT"}, 405, False),
        ({"root_path": "/under"}, 200, True),
    ):
        first, second, by_the_short_way = both_ways(body, **asked)
        assert (by_the_short_way, first.status) == (short, status), asked
        assert first == second
    long = b'{"history": ["t01"], "territory": "north"' + b" " * short_way.MAX_BYTES + b"}"
    assert both_ways(long)[2] is False


def test_what_a_proxy_read_takes_the_longer_way(both_ways, api, monkeypatch):
    behind = api._body

    async def brought(scope: Any, receive: Any) -> bytes:
        scope["extensions"] = {guard.BODY: b'{"history": ["t01"], "territory": "north"}'}
        return await behind(scope, receive)

    monkeypatch.setattr(api, "_body", brought)
    first, second, by_the_short_way = both_ways(b"")
    assert (by_the_short_way, first.status, first) == (False, 200, second)


def test_a_failing_model_is_answered_counted_and_named_alike_and_tried_once(both_ways, monkeypatch, caplog):
    asked = []

    def fail(*_: object) -> None:
        asked.append(1)
        raise RuntimeError("t01 in a message")

    monkeypatch.setattr(Engine, "recommend", fail)
    first, second, by_the_short_way = both_ways(b'{"history": ["t01"], "territory": "north"}')
    assert by_the_short_way
    assert first == second
    assert (first.status, first.counted, len(asked)) == (500, ["500"], 2)
    assert [record.getMessage() for record in caplog.records] == ["a request failed: RuntimeError"] * 2
    assert b"t01" not in first.body


@pytest.fixture
def engine(bundle) -> Engine:
    return Engine(Bundle.open(bundle))


def batches_of(engine: Engine, calls: list[tuple[float, int]]) -> list[int]:
    """(delay, queries) of concurrent calls -> rows of each forward."""
    forwards: list[int] = []

    async def run() -> None:
        collected = Batcher(8, lambda queries: forwards.append(len(queries)))

        async def call(delay: float, count: int) -> None:
            await asyncio.sleep(delay)
            assert len(await collected.run(engine, queries(count))) == count

        async with asyncio.timeout(20):
            await asyncio.gather(*(call(*one) for one in calls))

    asyncio.run(run())
    return forwards


def queries(count: int) -> list[Query]:
    return [Query((1, 2), (0, 0), place % 4, 0, 5) for place in range(count)]


CROWD = [(0.0, 1)] * 5


@pytest.fixture
def slow_clock(monkeypatch) -> None:
    """What is waited for is waited for beyond the test's own end; what is remembered is so until then."""
    monkeypatch.setattr(batcher, "LINGER_S", 60.0)
    monkeypatch.setattr(batcher, "LATELY_S", 60.0)


def test_lone_queries_wait_for_as_many_as_met_lately(engine, slow_clock):
    assert batches_of(engine, [*CROWD, *[(0.1 + place / 100, 1) for place in range(5)]]) == [5, 5]


def test_they_wait_no_longer_than_that(engine, slow_clock, monkeypatch):
    monkeypatch.setattr(batcher, "LINGER_S", 1.0)
    assert batches_of(engine, [*CROWD, (0.1, 1), (0.12, 1), (0.14, 1)]) == [5, 3]


@pytest.mark.parametrize(
    ("calls", "forwards"),
    [
        ([(0.0, 1)] * 3 + [(0.1, 1), (0.3, 1)], [3, 1, 1]),
        ([(0.0, 20), (0.1, 1), (0.3, 1)], [8, 8, 4, 1, 1]),
        ([*CROWD, (0.1, 1), (0.3, 3)], [5, 4]),
    ],
)
def test_nobody_waits_where_few_met_or_came_with_many_queries(engine, slow_clock, calls, forwards):
    assert batches_of(engine, calls) == forwards


def test_those_who_met_long_ago_are_not_waited_for(engine, slow_clock, monkeypatch):
    monkeypatch.setattr(batcher, "LATELY_S", 0.05)
    assert batches_of(engine, [*CROWD, (0.3, 1), (0.5, 1)]) == [5, 1, 1]


def test_a_caller_that_leaves_while_waiting_leaves_the_others_their_answers(engine, slow_clock):
    async def run() -> list[int]:
        forwards: list[int] = []
        collected = Batcher(8, lambda asked: forwards.append(len(asked)))
        await asyncio.gather(*(collected.run(engine, queries(1)) for _ in range(5)))
        waiting = [asyncio.create_task(collected.run(engine, queries(1))) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting[1:], *(collected.run(engine, queries(1)) for _ in range(2)))
        return forwards

    assert asyncio.run(run()) == [5, 4]


def test_a_forward_is_of_one_engine(engine, slow_clock, tmp_path):
    other = Engine(Bundle.open(str(write_bundle(tmp_path / "other", 1))))

    async def run() -> list[list[int]]:
        collected = Batcher(8, lambda _: None)
        await asyncio.gather(*(collected.run(engine, queries(1)) for _ in range(4)))
        async with asyncio.timeout(20):
            found = await asyncio.gather(*(collected.run(one, queries(1)) for one in (engine, engine, other, engine)))
        return [ranked.titles for (ranked,) in found]

    (mine,), (theirs,) = engine.recommend(queries(1)), other.recommend(queries(1))
    assert mine.titles != theirs.titles
    assert asyncio.run(run()) == [mine.titles, mine.titles, theirs.titles, mine.titles]

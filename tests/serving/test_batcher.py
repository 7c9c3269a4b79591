"""Requests that meet in one forward, those that wait for others, and those that wait for nobody."""

import asyncio

import pytest

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.serving import batcher
from mtrec_ray.serving.batcher import Batcher
from mtrec_ray.serving.engine import Engine, Query
from tests.serving.bundles import write_bundle


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    return Engine(Bundle.open(str(write_bundle(tmp_path_factory.mktemp("batcher") / "bundle"))))


def batches_of(engine: Engine, calls: list[tuple[float, int]]) -> list[int]:
    """(delay, queries) of concurrent calls -> rows of each forward."""
    forwards: list[int] = []

    async def run() -> None:
        collected = Batcher(8, lambda queries: forwards.append(len(queries)))

        async def call(delay: float, count: int) -> None:
            await asyncio.sleep(delay)
            assert len(await collected.recommend(engine, queries(count))) == count

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
    monkeypatch.setattr(batcher, "MAX_WAIT_S", 60.0)
    monkeypatch.setattr(batcher, "RECENT_S", 60.0)


def test_lone_queries_wait_for_as_many_as_met_lately(engine, slow_clock):
    assert batches_of(engine, [*CROWD, *[(0.1 + place / 100, 1) for place in range(5)]]) == [5, 5]


def test_a_wait_that_ended_early_leaves_no_timer(engine, slow_clock):
    async def run() -> bool:
        collected = Batcher(8, lambda _: None)
        await asyncio.gather(*(collected.recommend(engine, queries(1)) for _ in range(5)))
        first = asyncio.create_task(collected.recommend(engine, queries(1)))
        await asyncio.sleep(0.01)
        timer = collected.timer
        assert timer is not None
        await asyncio.gather(first, *(collected.recommend(engine, queries(1)) for _ in range(4)))
        return timer.cancelled()

    assert asyncio.run(run())


def test_they_wait_no_longer_than_that(engine, slow_clock, monkeypatch):
    monkeypatch.setattr(batcher, "MAX_WAIT_S", 1.0)
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
    monkeypatch.setattr(batcher, "RECENT_S", 0.05)
    assert batches_of(engine, [*CROWD, (0.3, 1), (0.5, 1)]) == [5, 1, 1]


def test_a_caller_that_leaves_while_waiting_leaves_the_others_their_answers(engine, slow_clock):
    async def run() -> list[int]:
        forwards: list[int] = []
        collected = Batcher(8, lambda asked: forwards.append(len(asked)))
        await asyncio.gather(*(collected.recommend(engine, queries(1)) for _ in range(5)))
        waiting = [asyncio.create_task(collected.recommend(engine, queries(1))) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            await asyncio.gather(*waiting[1:], *(collected.recommend(engine, queries(1)) for _ in range(2)))
        return forwards

    assert asyncio.run(run()) == [5, 4]


def test_a_forward_is_of_one_engine(engine, slow_clock, tmp_path):
    other = Engine(Bundle.open(str(write_bundle(tmp_path / "other", 1))))

    async def run() -> list[list[int]]:
        collected = Batcher(8, lambda _: None)
        await asyncio.gather(*(collected.recommend(engine, queries(1)) for _ in range(4)))
        async with asyncio.timeout(20):
            found = await asyncio.gather(
                *(collected.recommend(one, queries(1)) for one in (engine, engine, other, engine))
            )
        return [ranked.titles for (ranked,) in found]

    (mine,), (theirs,) = engine.recommend(queries(1)), other.recommend(queries(1))
    assert mine.titles != theirs.titles
    assert asyncio.run(run()) == [mine.titles, mine.titles, theirs.titles, mine.titles]

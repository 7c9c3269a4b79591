"""When the batcher answers queries in one forward, and when a query waits for others."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.serving import batcher
from mtrec_ray.serving.batcher import Batcher
from mtrec_ray.serving.engine import Engine, Query
from tests.serving.bundles import write_bundle

CROWD = [(0.0, 1)] * 5


@pytest.fixture(scope="module")
def engine(bundle_uri) -> Engine:
    return Engine(Bundle.open(bundle_uri))


@pytest.fixture
def slow_clock(monkeypatch) -> None:
    """Waits and memory last longer than a test."""
    monkeypatch.setattr(batcher, "MAX_WAIT_S", 60.0)
    monkeypatch.setattr(batcher, "RECENT_S", 60.0)
    monkeypatch.setattr(batcher, "MAX_ROWS", 8)


def queries(count: int) -> list[Query]:
    return [Query((1, 2), (0, 0), index % 4, 0, 5) for index in range(count)]


def sizes_of_forwards(work: Callable[[Batcher], Awaitable[object]]) -> list[int]:
    sizes: list[int] = []

    async def run() -> None:
        async with asyncio.timeout(20):
            await work(Batcher(lambda asked: sizes.append(len(asked))))

    asyncio.run(run())
    return sizes


def forwards_of(engine: Engine, calls: list[tuple[float, int]]) -> list[int]:
    """Rows of each forward for concurrent calls of (delay, queries)."""

    async def work(collected: Batcher) -> None:
        async def call(delay: float, count: int) -> None:
            await asyncio.sleep(delay)
            assert len(await collected.recommend(engine, queries(count))) == count

        await asyncio.gather(*(call(*one) for one in calls))

    return sizes_of_forwards(work)


@pytest.mark.parametrize(
    ("calls", "forwards"),
    [
        ([*CROWD, *[(0.1 + index / 100, 1) for index in range(5)]], [5, 5]),
        ([(0.0, 1)] * 3 + [(0.1, 1), (0.3, 1)], [3, 1, 1]),
        ([(0.0, 20), (0.1, 1), (0.3, 1)], [8, 8, 4, 1, 1]),
        ([*CROWD, (0.1, 1), (0.3, 3)], [5, 4]),
    ],
    ids=["after a crowd", "after few", "after a call of many", "with a call of many"],
)
def test_single_queries_wait_for_as_many_as_a_recent_crowd(engine, slow_clock, calls, forwards):
    assert forwards_of(engine, calls) == forwards


@pytest.mark.parametrize(
    ("constant", "seconds", "calls", "forwards"),
    [
        ("MAX_WAIT_S", 1.0, [(0.1, 1), (0.12, 1), (0.14, 1)], [5, 3]),
        ("RECENT_S", 0.05, [(0.3, 1), (0.5, 1)], [5, 1, 1]),
    ],
)
def test_waits_and_memory_are_limited(engine, slow_clock, monkeypatch, constant, seconds, calls, forwards):
    monkeypatch.setattr(batcher, constant, seconds)
    assert forwards_of(engine, [*CROWD, *calls]) == forwards


async def crowd(collected: Batcher, engine: Engine, count: int = 5) -> None:
    await asyncio.gather(*(collected.recommend(engine, queries(1)) for _ in range(count)))


def test_cancelled_caller_leaves_others_their_answers(engine, slow_clock):
    async def work(collected: Batcher) -> None:
        await crowd(collected, engine)
        waiting = [asyncio.create_task(collected.recommend(engine, queries(1))) for _ in range(3)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        await asyncio.sleep(0.01)
        await crowd(collected, engine, 2)
        await asyncio.gather(*waiting[1:])

    assert sizes_of_forwards(work) == [5, 4]


def test_forward_has_one_engine(engine, slow_clock, tmp_path):
    other = Engine(Bundle.open(str(write_bundle(tmp_path / "other", 1))))
    (mine,), (theirs,) = engine.recommend(queries(1)), other.recommend(queries(1))
    assert mine.titles != theirs.titles

    async def work(collected: Batcher) -> None:
        await crowd(collected, engine, 4)
        found = await asyncio.gather(*(collected.recommend(one, queries(1)) for one in (engine, engine, other, engine)))
        assert [ranked.titles for (ranked,) in found] == [mine.titles, mine.titles, theirs.titles, mine.titles]

    assert sizes_of_forwards(work) == [4, 2, 1, 1]

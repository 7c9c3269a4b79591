"""The store in a Redis that stops, hangs or denies a command."""

import asyncio
import signal
import time
from collections.abc import Awaitable
from typing import Any

import numpy as np
import pytest

from mtrec_ray.serving.store import Store, StoreUnavailable, UserState, open_store
from tests.serving.stores import ANNA, put, using


def test_gets_many_users_in_one_round_trip(redis_server):
    """The server reads once for all commands of a call."""
    redis_server.client.flushall()
    put(redis_server.url, {f"u{i}": ANNA for i in range(50)})
    client = redis_server.client

    def reads_and_calls() -> tuple[int, int, int]:
        stats, calls = client.info("stats"), client.info("commandstats")
        times = [calls.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("get", "lrange")]
        return stats["total_reads_processed"], *times

    async def work(store: Store) -> None:
        await store.ping()  # connects
        before = reads_and_calls()
        assert await store.get([f"u{i}" for i in range(50)]) == [ANNA] * 50
        reads, gets, ranges = np.subtract(reads_and_calls(), before)
        assert (reads, gets, ranges) == (1 + 2, 50, 50)  # with the two INFO between the counts

    using(redis_server.url, work)


async def unavailable(*calls: Awaitable[Any], match: str = "Redis at") -> list[str]:
    """Messages of calls that all must raise StoreUnavailable."""
    messages = []
    for call in calls:
        with pytest.raises(StoreUnavailable, match=match) as caught:
            await call
        messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("idle", [False, True])
def test_that_stops_is_unavailable_at_once_and_used_again_after_its_start(redis_server, idle):
    async def work(store: Store) -> None:
        await asyncio.gather(*(store.append("anna", ["t1"]) for _ in range(10)))  # several connections
        redis_server.stop()
        if not idle:
            start = time.monotonic()
            calls = store.get(["anna"]), store.append("anna", ["t2"]), store.ping(), store.sample(1)
            await unavailable(*calls, match=f"Redis at {redis_server.url}")
            assert time.monotonic() - start < 5.0
            with pytest.raises(StoreUnavailable):
                store.put_many([("anna", ANNA)])
        await asyncio.to_thread(redis_server.start)
        assert await asyncio.gather(*(store.get(["anna"]) for _ in range(10))) == [[None]] * 10
        assert await store.append("anna", ["t3"]) == 1
        assert store.put_many([("anna", ANNA)]) == 1

    using(redis_server.url, work)


def test_errors_are_unavailable_and_contain_no_history(redis_server):
    async def work(store: Store) -> list[str]:
        messages = await unavailable(store.get(["anna"]), store.append("anna", ["title-1"]))
        with pytest.raises(StoreUnavailable) as caught:
            store.put_many([("bob", UserState(("title-1",)))])
        return [*messages, str(caught.value)]

    client = redis_server.client
    client.flushall()
    client.set("mtrec:history:anna", "no list")
    client.execute_command("ACL", "SETUSER", "default", "-SET", "-set")
    try:
        messages = using(redis_server.url, work)
    finally:
        client.execute_command("ACL", "SETUSER", "default", "+@all")
        client.flushall()
    assert ["WRONGTYPE" in message for message in messages] == [True, True, False]
    assert not [message for message in messages for value in ("anna", "bob", "title-1") if value in message]


def test_that_hangs_is_waited_for_no_longer_than_the_timeout(redis_server):
    async def work() -> None:
        store = open_store(redis_server.url)
        await store.ping()
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            start = time.monotonic()
            await unavailable(store.get(["anna"]), store.append("anna", ["t1"]), store.ping())
            assert time.monotonic() - start < 10.0
        finally:
            redis_server.process.send_signal(signal.SIGCONT)
        while True:  # it first answers those who left
            try:
                await store.ping()
                return
            except StoreUnavailable:
                await asyncio.sleep(0.05)

    asyncio.run(work())


def test_keys_have_our_prefix_and_no_expiry_by_default(redis_server):
    client = redis_server.client
    client.flushall()
    client.set("other", "untouched")
    put(redis_server.url, {"anna": ANNA, "empty": UserState()})
    assert using(redis_server.url, lambda store: store.sample(5)) == ["anna"]
    keys = {key.decode() for key in client.scan_iter()}
    assert keys == {"other", "mtrec:profile:anna", "mtrec:history:anna", "mtrec:profile:empty"}
    assert {client.ttl(key) for key in keys} == {-1}

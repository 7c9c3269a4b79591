"""Calls of a store, each in an event loop of its own; imports no torch, so that processes start quickly."""

import asyncio
import struct
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mtrec_ray.serving.store import Store, UserState, open_store

Result = TypeVar("Result")

EMBEDDING = struct.pack("<3e", 0.5, -2.0, 65504.0)
ANNA = UserState(("t1", "t2", "t1"), {"gender": "F", "age": "25-34"}, "US", EMBEDDING)


def using(url: str, work: Callable[[Store], Awaitable[Result]], expire_s: float | None = None) -> Result:
    """`work` on the store at `url`, opened and closed around it."""

    async def run() -> Result:
        store = open_store(url, expire_s=expire_s, timeout_s=5.0)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(run())


def get(url: str, *user_ids: str) -> list[UserState | None]:
    return using(url, lambda store: store.get(user_ids))


def append(url: str, user_id: str, *title_ids: str) -> int:
    return using(url, lambda store: store.append(user_id, title_ids))


def put(url: str, states: dict[str, UserState], expire_s: float | None = None) -> int:
    async def work(store: Store) -> int:
        await store.ping()
        return store.put_many(states.items())

    return using(url, work, expire_s)


def append_pairs(url: str, name: str, count: int) -> None:
    """What a process appends to one user that others append to."""

    async def work(store: Store) -> None:
        for i in range(count):
            await store.append("shared", [f"{name}-{i}", f"{name}-{i}b"])

    using(url, work)

"""`mtrec store load`: copy a lake's users into the online store, bucket by bucket.

1. read one bucket's users with their histories           Ray tasks
2. store them, replacing what was stored before           in the tasks (Redis) or in this process (local folder)
"""

import asyncio
from collections import Counter
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.serving.config import StoreLoadConfig
from mtrec_ray.serving.store import MAX_STORED_EVENTS, Store, UserState, is_folder, open_store, without_password


@dataclass(frozen=True)
class LoadResult:
    """What was stored."""

    store: str
    counts: dict[str, int]

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per count."""
        return pd.DataFrame(list(self.counts.items()), columns=["metric", "value"])

    def document(self) -> dict[str, Any]:
        return {"version": 1, "store": self.store, **self.counts}

    def tables(self) -> list[RenderableType]:
        return [facts_table(f"Store {self.store}", {key.replace("_", " "): n for key, n in self.counts.items()})]


def load_store(config: StoreLoadConfig, progress: ProgressCallback | None = None) -> LoadResult:
    """Store every user of the lake; stored users that are not in the lake stay as they are.

    Events appended after the lake was built are lost. UserError for no lake, or a store that cannot be reached.
    """
    lake = Lake.open(config.lake)
    buckets = range(lake.manifest.num_buckets)
    options: dict[str, Any] = {"stage": "loading users", "progress": progress}
    counts = Counter[str]()
    _run(_ping(config.store))  # before any work starts
    if is_folder(config.store):  # on a cluster, tasks see other machines' folders
        store = open_store(config.store, expire_s=config.expire_s)
        try:
            for _, states in map_tasks(bucket_states, buckets, lake, **options):
                counts.update(_put(store, states))
        finally:
            _run(store.close())
    else:
        for _, stored in map_tasks(_load_bucket, buckets, lake, config, **options):
            counts.update(stored)
    return LoadResult(without_password(config.store), dict(counts))


def bucket_states(index: int, lake: Lake) -> list[tuple[str, UserState]]:
    """Users of one bucket with their last events in time order; ties keep their order."""
    names = list(lake.manifest.attributes)
    embedded = lake.manifest.embeddings.user_width > 0
    rows = Bucket.read(lake, index, (*names, "embedding") if embedded else tuple(names))
    order = np.lexsort((rows.event_time, rows.event_user))  # stable, so ties keep their stored order
    ends = np.cumsum(np.bincount(rows.event_user, minlength=len(rows.keys)))
    starts = np.maximum(ends - MAX_STORED_EVENTS, np.concatenate([[0], ends[:-1]]))
    history = lake.title_ids.take(pa.array(rows.event_title[order])).to_pylist()
    states = []
    for user, start, end in zip(rows.users.to_pylist(), starts, ends, strict=True):
        attributes = {name: user[name] for name in names if user[name] is not None}
        state = UserState(tuple(history[start:end]), attributes, user["territory"], user.get("embedding", b""))
        states.append((user["user_id"], state))
    return states


def _load_bucket(index: int, lake: Lake, config: StoreLoadConfig) -> dict[str, int]:
    return _put(open_store(config.store, expire_s=config.expire_s), bucket_states(index, lake))


def _put(store: Store, states: list[tuple[str, UserState]]) -> dict[str, int]:
    return {
        "users": store.put_many(states),
        "events": sum(len(state.history) for _, state in states),
        "users_without_events": sum(not state.history for _, state in states),
        "users_with_embedding": sum(bool(state.embedding) for _, state in states),
    }


def _run(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to the end in a thread: in a notebook, this one runs a loop already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, coroutine).result()


async def _ping(url: str) -> None:
    store = open_store(url)
    try:
        await store.ping()
    finally:
        await store.close()

"""`mtrec store load`: copy a lake's users into the online store, bucket by bucket.

1. read one bucket's users with their histories           Ray tasks
2. store them, replacing what was stored before           in the tasks (Redis) or in this process (local folder)
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.serving.config import StoreLoadConfig
from mtrec_ray.serving.store import Store, StoreUnavailable, UserState, is_folder, open_store, without_password

if TYPE_CHECKING:
    import pandas as pd

States = list[tuple[str, UserState]]


@dataclass(frozen=True)
class LoadResult:
    """What was stored: `users`, `events`, `users_without_events`, `users_with_embedding`."""

    store: str
    counts: dict[str, int]

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row per count."""
        import pandas as pd

        return pd.DataFrame(list(self.counts.items()), columns=["metric", "value"])

    def document(self) -> dict[str, Any]:
        return {"version": 1, "store": self.store, **self.counts}

    def tables(self) -> list[RenderableType]:
        table = Table(title=f"Store {self.store}", show_header=False)
        for name, count in self.counts.items():
            table.add_row(name.replace("_", " "), f"{count:,}")
        return [table]


def load_store(config: StoreLoadConfig, progress: ProgressCallback | None = None) -> LoadResult:
    """Store every user of the lake; stored users that are not in the lake stay as they are.

    Events that were appended after the lake was built are lost. UserError for no lake, a wrong URL, or a store that
    cannot be reached.
    """
    lake = Lake.open(config.lake)
    counts = Counter[str]()
    try:
        asyncio.run(_ping(config.store))  # before any work starts
        for stored in _load_buckets(config, lake, progress):
            counts.update(stored)
    except StoreUnavailable as error:
        raise UserError(str(error)) from error
    return LoadResult(without_password(config.store), dict(counts))


def bucket_states(index: int, lake: Lake, title_ids: pa.Array, max_events: int) -> States:
    """Users of one bucket with their last events in time order; ties keep their order."""
    names = list(lake.manifest.attributes)
    embedded = lake.manifest.embeddings.user_width > 0
    rows = Bucket.read(lake, index, title_ids, (*names, "embedding") if embedded else tuple(names))
    order = np.lexsort((rows.event_time, rows.event_user))  # stable, so ties keep their stored order
    ends = np.cumsum(np.bincount(rows.event_user, minlength=len(rows.keys)))
    starts = np.maximum(ends - max_events, np.concatenate([[0], ends[:-1]]))
    catalogue = title_ids.to_pylist()
    history = [catalogue[title] for title in rows.event_title[order]]
    columns = {name: rows.users[name].to_pylist() for name in rows.users.column_names}
    return [
        (
            columns["user_id"][user],
            UserState(
                history=tuple(history[starts[user] : ends[user]]),
                attributes={name: columns[name][user] for name in names if columns[name][user] is not None},
                territory=columns["territory"][user],
                embedding=columns["embedding"][user] if embedded else b"",
            ),
        )
        for user in range(len(rows.keys))
    ]


def _load_buckets(config: StoreLoadConfig, lake: Lake, progress: ProgressCallback | None) -> Iterator[dict[str, int]]:
    """Counts of each stored bucket."""
    buckets, title_ids = range(lake.manifest.num_buckets), lake.titles["title_id"].combine_chunks()
    options: dict[str, Any] = {"stage": "loading users", "progress": progress}
    if not is_folder(config.store):
        for _, counts in map_tasks(_load_bucket, buckets, lake, title_ids, config, **options):
            yield counts
        return
    store = open_store(config.store, expire_s=config.expire_s)  # here: on a cluster, tasks see other machines' folders
    try:
        for _, states in map_tasks(bucket_states, buckets, lake, title_ids, config.max_events, **options):
            yield _put(store, states)
    finally:
        asyncio.run(store.close())


def _load_bucket(index: int, lake: Lake, title_ids: pa.Array, config: StoreLoadConfig) -> dict[str, int]:
    store = open_store(config.store, expire_s=config.expire_s)
    try:
        return _put(store, bucket_states(index, lake, title_ids, config.max_events))
    except StoreUnavailable as error:
        raise UserError(str(error)) from error  # Ray passes on a UserError as it is


def _put(store: Store, states: States) -> dict[str, int]:
    return {
        "users": store.put_many(states),
        "events": sum(len(state.history) for _, state in states),
        "users_without_events": sum(not state.history for _, state in states),
        "users_with_embedding": sum(bool(state.embedding) for _, state in states),
    }


async def _ping(url: str) -> None:
    store = open_store(url)
    try:
        await store.ping()
    finally:
        await store.close()

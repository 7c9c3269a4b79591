"""From a lake to the online store, bucket by bucket: only some are in memory, however many users there are.

1. read one bucket's users with their whole histories     Ray tasks
2. store them, replacing what was stored before           in the tasks (Redis), or here (a folder of this machine)
"""

import asyncio
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.serving.load_config import StoreLoadConfig
from mtrec_ray.serving.open_store import open_store
from mtrec_ray.serving.store import Store, StoreUnavailable, UserState, is_folder

States = list[tuple[str, UserState]]
Counts = dict[str, int]


def load_store(config: StoreLoadConfig, progress: ProgressCallback | None = None) -> dict[str, int]:
    """Store every user of the lake; stored users that are not in the lake stay as they are.

    Events appended since the lake was built are lost.

    Returns:
        `users`, `events` (stored), `users_without_events`, `users_with_embedding`.

    Raises:
        UserError: no lake, a wrong url, or a store that cannot be reached.
    """
    lake = Lake.open(config.lake)
    title_ids = lake.titles["title_id"].combine_chunks()
    counts = Counter[str]()
    load = _into_folder if is_folder(config.store) else _by_tasks
    try:
        asyncio.run(_ping(config))
        for stored in load(config, lake, title_ids, progress):
            counts.update(stored)
    except StoreUnavailable as error:
        raise UserError(str(error)) from error
    return dict(counts)


def bucket_states(index: int, lake: Lake, title_ids: pa.Array, max_events: int) -> States:
    """Users of one bucket with their last events in time order; simultaneous events keep the lake's order."""
    names = list(lake.manifest.attributes)
    embedded = lake.manifest.embeddings.user_width > 0
    rows = Bucket.read(lake, index, title_ids, (*names, "embedding") if embedded else tuple(names))
    order = np.lexsort((rows.event_time, rows.event_user))  # stable: ties stay as they are stored
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


def _by_tasks(
    config: StoreLoadConfig, lake: Lake, title_ids: pa.Array, progress: ProgressCallback | None
) -> Iterator[Counts]:
    """Tasks of all machines read and store; yields what each bucket held."""
    buckets = range(lake.manifest.num_buckets)
    shared = (lake, title_ids, config)
    for _, stored in map_tasks(_load_bucket, buckets, *shared, stage="loading users", progress=progress):
        yield stored


def _into_folder(
    config: StoreLoadConfig, lake: Lake, title_ids: pa.Array, progress: ProgressCallback | None
) -> Iterator[Counts]:
    """Tasks read and this process stores: on a cluster each task would fill a folder of its own machine."""
    buckets = range(lake.manifest.num_buckets)
    shared = (lake, title_ids, config.max_events)
    store = open_store(config.store, expire_s=config.expire_s)
    try:
        for _, states in map_tasks(bucket_states, buckets, *shared, stage="loading users", progress=progress):
            yield _put(store, states)
    finally:
        asyncio.run(store.close())


def _load_bucket(index: int, lake: Lake, title_ids: pa.Array, config: StoreLoadConfig) -> Counts:
    store = open_store(config.store, expire_s=config.expire_s)
    try:
        return _put(store, bucket_states(index, lake, title_ids, config.max_events))
    except StoreUnavailable as error:
        raise UserError(str(error)) from error  # Ray brings a UserError back as it is


def _put(store: Store, states: States) -> Counts:
    return {
        "users": store.put_many(states),
        "events": sum(len(state.history) for _, state in states),
        "users_without_events": sum(not state.history for _, state in states),
        "users_with_embedding": sum(bool(state.embedding) for _, state in states),
    }


async def _ping(config: StoreLoadConfig) -> None:
    """Raise StoreUnavailable before any work starts."""
    store = open_store(config.store)
    try:
        await store.ping()
    finally:
        await store.close()

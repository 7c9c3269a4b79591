"""Users' histories as they were at several recent points in time.

Legend: `U` users, `H` histories of each, `L` history length, `m` sensitive attributes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mtrec_ray.columns import concatenate_rows
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.sequences import TEST_EVENT, SequenceConfig, UserSplit, left_aligned, sequences_of

SHORTEST = 2  # events


@dataclass(frozen=True)
class RecentHistories:
    """Histories of each user, the one before the test event first."""

    keys: np.ndarray  # (U,) uint64
    attribute_index: np.ndarray  # (U, m) int64, -1 = unknown
    history: np.ndarray  # (U, H, L) int64 titles, oldest first, filled with -1


def read_recent_histories(
    lake: Lake,
    config: SequenceConfig,
    split: UserSplit,
    length: int,
    buckets: Iterable[int],
    fraction: float,
    per_user: int,
    events_between: int,
) -> RecentHistories:
    """`per_user` histories of a `fraction` of a split's users, drawn by `sampling_hash`.

    Each ends `events_between` events earlier than the one before; closer together, or equal, for users with few events.
    """
    parts = []
    for sequences in sequences_of(lake, config, buckets, split, fraction):
        starts, ends = sequences.offsets[:-1], sequences.held_out_at(TEST_EVENT)
        step = np.minimum(events_between, (ends - starts - SHORTEST) / max(1, per_user - 1))  # (U,)
        histories = []
        for number in range(per_user):
            stops = ends - np.floor(number * step).astype(np.int64)
            first = np.maximum(stops - length, starts)
            histories.append(left_aligned(sequences.title_index, first, stops - first, length))
        part = RecentHistories(
            keys=sequences.keys,
            attribute_index=sequences.attribute_index.astype(np.int64),
            history=np.stack(histories, axis=1),
        )
        parts.append(part)
    return concatenate_rows(parts)

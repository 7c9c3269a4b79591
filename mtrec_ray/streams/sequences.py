"""Users' histories in time order, their held-out events, audit and train split (paper B).

Legend: `N` users of a bucket, `U` of them long enough, `E` their events, `L` history length, `T` titles, `m`
sensitive attributes.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.columns import MAX_CELLS, concatenate_rows, take_rows
from mtrec_ray.config import Config, advanced
from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Lake

VALIDATION_EVENT, TEST_EVENT = 2, 1
"""Leave-one-out by time: position of the held-out events, counted from the end (paper B, 3.1)."""
NUM_HELD_OUT = 2
FILLER = -1
UserSplit = Literal["all", "audit", "train", "train_lower", "train_upper"]
"""Which users: `train_lower` and `train_upper` are the halves of the train split, for cross-fitting."""


class SequenceConfig(Config):
    """Whose histories are read, and whose attribute values training may not see."""

    min_events: int = Field(default=10, ge=4)
    """Users with fewer events are left out (paper B, 3.1)."""
    audit_fraction: float = Field(default=0.3, gt=0, lt=1)
    """Fraction of users in the audit split: only attackers see their attribute values."""
    split_seed: int = advanced(0)
    """Seed of the audit split; the same for all compared runs, or attackers meet users that were trained on."""


@dataclass(frozen=True)
class Sequences:
    """Users with enough events, their histories in one flat array."""

    keys: np.ndarray  # (U,) uint64
    territory: np.ndarray  # (U,) int32
    attribute_index: np.ndarray  # (U, m) int16 index of each declared value, -1 = unknown
    title_index: np.ndarray  # (E,) int32, in time order within a user; events with equal timestamps in the lake's order
    timestamp: np.ndarray  # (E,) datetime64[us]
    offsets: np.ndarray  # (U + 1,) int64: user u's events are offsets[u]:offsets[u + 1]

    @staticmethod
    def read(
        lake: Lake, bucket: int, config: SequenceConfig, split: UserSplit = "all", fraction: float = 1.0
    ) -> "Sequences":
        """Histories of a `fraction` of a bucket's users in a split, drawn by `sampling_hash`."""
        names = list(lake.manifest.attributes)
        rows = Bucket.read(lake, bucket, tuple(names))
        counts = np.bincount(rows.event_user, minlength=len(rows.keys))
        chosen = (counts >= config.min_events) & in_split(rows.keys, config, split)  # (N,)
        chosen &= sampling_hash(rows.keys, config) < fraction
        attribute_index = np.full((len(chosen), len(names)), FILLER, dtype=np.int16)
        for a, (name, values) in enumerate(lake.manifest.attributes.items()):
            index = pc.index_in(rows.users[name], value_set=pa.array(values))
            attribute_index[:, a] = index.fill_null(FILLER).to_numpy()
        order = np.lexsort((rows.event_time, rows.event_user))  # stable: ties stay as they are stored
        order = order[chosen[rows.event_user[order]]]
        return Sequences(
            keys=rows.keys[chosen],
            territory=rows.territory[chosen],
            attribute_index=attribute_index[chosen],
            title_index=rows.event_title[order],
            timestamp=rows.event_time[order],
            offsets=np.concatenate([[0], np.cumsum(counts[chosen])]),
        )

    @property
    def num_positions(self) -> np.ndarray:
        """(U,) events that training predicts: all but a user's first and the held-out ones."""
        return np.diff(self.offsets) - 1 - NUM_HELD_OUT

    @property
    def tie_group(self) -> np.ndarray:
        """(E,) int64, equal for neighbours with one timestamp and growing with time within a user."""
        return np.cumsum(np.diff(self.timestamp, prepend=self.timestamp[:1]) != np.timedelta64(0))

    def history_before(self, held_out: int, length: int) -> np.ndarray:
        """(U, length) int64 last titles before a held-out event (0: of all), oldest first."""
        ends = self.offsets[1:] - held_out
        starts = np.maximum(ends - length, self.offsets[:-1])
        return left_aligned(self.title_index, starts, ends - starts, length)

    def held_out_title(self, held_out: int) -> np.ndarray:
        """(U,) int32 title of VALIDATION_EVENT or TEST_EVENT."""
        return self.title_index[self.offsets[1:] - held_out]


@dataclass(frozen=True)
class HeldOutUsers:
    """Users with a held-out event and the history before it."""

    keys: np.ndarray  # (U,) uint64
    territory: np.ndarray  # (U,) int32
    attribute_index: np.ndarray  # (U, m) int64, -1 = unknown
    audit_split: np.ndarray  # (U,) bool: only attackers see the attribute values
    history: np.ndarray  # (U, L) int64 titles before the event, oldest first, filled with -1
    target: np.ndarray  # (U,) int64 the held-out title
    other_titles: np.ndarray  # (E,) int64 the users' other titles, user by user
    other_counts: np.ndarray  # (U,) int64

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, users: np.ndarray) -> "HeldOutUsers":
        """Some of the users, (U,) bool."""
        titles = self.other_titles[np.repeat(users, self.other_counts)]
        return replace(take_rows(self, users, unchanged=["other_titles"]), other_titles=titles)

    def chunks(self, num_titles: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(users, (users, T) bool of their other titles), a bounded number of cells at a time."""
        ends = np.concatenate([[0], np.cumsum(self.other_counts)])
        size = max(1, MAX_CELLS // num_titles)
        for start in range(0, max(1, len(self)), size):
            stop = min(start + size, len(self))
            seen = np.zeros((stop - start, num_titles), dtype=bool)
            row = np.repeat(np.arange(stop - start), self.other_counts[start:stop])
            seen[row, self.other_titles[ends[start] : ends[stop]]] = True
            yield slice(start, stop), seen


def in_split(keys: np.ndarray, config: SequenceConfig, split: UserSplit) -> np.ndarray:
    """(N,) bool: users of a split, by a hash of their keys (N,)."""
    audit, middle = config.audit_fraction, (1 + config.audit_fraction) / 2
    low, high = {
        "all": (0, 1),
        "audit": (0, audit),
        "train": (audit, 1),
        "train_lower": (audit, middle),
        "train_upper": (middle, 1),
    }[split]
    draws = uniforms(keys, "attacked", config.split_seed)  # the salt is older than today's words
    return (draws >= low) & (draws < high)


def sampling_hash(keys: np.ndarray, config: SequenceConfig) -> np.ndarray:
    """(N,) in [0, 1): the users below a fraction are a random sample of that fraction."""
    return uniforms(keys, "held out sample", config.split_seed)


def left_aligned(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray, length: int) -> np.ndarray:
    """(S, length) int64 rows values[start:start + size], filled with -1 on the right."""
    columns = np.arange(length)
    index = np.minimum(starts[:, None] + columns, max(len(values) - 1, 0))
    return np.where(columns < sizes[:, None], values[index], FILLER).astype(np.int64)


def read_held_out(
    lake: Lake, config: SequenceConfig, held_out: int, length: int, buckets: Iterable[int], fraction: float = 1.0
) -> HeldOutUsers:
    """A `fraction` of the users, drawn by `sampling_hash`, and their held-out event.

    `held_out` is VALIDATION_EVENT or TEST_EVENT, `length` the longest history given.
    """
    parts = []
    for sequences in sequences_of(lake, config, buckets, "all", fraction):
        is_other = np.ones(len(sequences.title_index), dtype=bool)
        is_other[sequences.offsets[1:] - held_out] = False
        part = HeldOutUsers(
            keys=sequences.keys,
            territory=sequences.territory,
            attribute_index=sequences.attribute_index.astype(np.int64),
            audit_split=in_split(sequences.keys, config, "audit"),
            history=sequences.history_before(held_out, length),
            target=sequences.held_out_title(held_out).astype(np.int64),
            other_titles=sequences.title_index[is_other].astype(np.int64),
            other_counts=np.diff(sequences.offsets) - 1,
        )
        parts.append(part)
    return concatenate_rows(parts)


def sequences_of(
    lake: Lake, config: SequenceConfig, buckets: Iterable[int], split: UserSplit, fraction: float
) -> Iterator[Sequences]:
    """Sampled histories of each bucket; without buckets, nobody's."""
    for bucket, of_users in [(bucket, fraction) for bucket in buckets] or [(0, 0.0)]:
        yield Sequences.read(lake, bucket, config, split, of_users)

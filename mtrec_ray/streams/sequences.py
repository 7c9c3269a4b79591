"""Sequences of paper B: users' whole histories in time order, what is held out of them, and who is kept for attackers.

Legend: `N` users of a bucket, `U` of them long enough, `E` their events, `m` sensitive attributes.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Lake

VALIDATION_EVENT, TEST_EVENT = 2, 1
"""Leave-one-out by time: place of the held-out events, counted from the end (paper B, 3.1)."""
NUM_HELD_OUT = 2
FILLER = -1


class SequenceConfig(Config):
    """Whose histories are read, and whose attribute values only attackers may see."""

    min_events: int = Field(default=10, ge=4)
    """Users with fewer events are left out (paper B, 3.1)."""
    audit_fraction: float = Field(default=0.3, gt=0, lt=1)
    """Share of users kept for attackers: no eliminator and no discriminator is trained on them or sees their values. An
    eliminator trained on few users hides little, an audit of few users has wide intervals. Of 3,250 users of a strongly
    planted gender: best attackers' AUC 0.60 and 0.64 (two lakes) with 0.5, 0.57 and 0.59 with 0.33, 0.54 and 0.55 with
    0.25."""
    split_seed: int = 0
    """Seed of that split; keep it the same for all runs that are compared, or trained-on users are attacked."""
    ties: Literal["drawn", "stored"] = "drawn"
    """Order of events of one timestamp in training: drawn anew each epoch, or the lake's where it means something."""
    train_half: Literal["both", "lower", "upper"] = "both"
    """Which half of the other users is trained on; the rest counts as attacked too (searches cross-fit with it)."""


@dataclass(frozen=True)
class Sequences:
    """Users with enough events, their histories in one flat array."""

    keys: np.ndarray
    """(U,) uint64."""
    territory: np.ndarray
    """(U,) int32."""
    attribute_index: np.ndarray
    """(U, m) int16 index of each declared value, -1 = unknown."""
    title_index: np.ndarray
    """(E,) int32, in time order within a user; events of one timestamp in the lake's order."""
    timestamp: np.ndarray
    """(E,) datetime64[us]."""
    offsets: np.ndarray
    """(U + 1,) int64: user u's events are offsets[u]:offsets[u + 1]."""

    @staticmethod
    def read(lake: Lake, bucket: int, config: SequenceConfig) -> "Sequences":
        """Those of one bucket."""
        names = list(lake.manifest.attributes)
        rows = Bucket.read(lake, bucket, lake.titles["title_id"].combine_chunks(), tuple(names))
        counts = np.bincount(rows.event_user, minlength=len(rows.keys))
        kept = counts >= config.min_events  # (N,)
        order = np.lexsort((rows.event_time, rows.event_user))  # stable: ties stay as they are stored
        order = order[kept[rows.event_user[order]]]
        return Sequences(
            keys=rows.keys[kept],
            territory=rows.territory[kept],
            attribute_index=_attribute_index(lake, rows.users, names)[kept],
            title_index=rows.event_title[order],
            timestamp=rows.event_time[order],
            offsets=np.concatenate([[0], np.cumsum(counts[kept])]),
        )

    @property
    def num_users(self) -> int:
        return len(self.keys)

    @property
    def num_positions(self) -> np.ndarray:
        """(U,) events that training predicts: all but a user's first and the held-out ones."""
        return np.diff(self.offsets) - 1 - NUM_HELD_OUT

    @property
    def tie_group(self) -> np.ndarray:
        """(E,) int64, equal for neighbours of one timestamp and growing with time within a user."""
        return np.cumsum(np.diff(self.timestamp, prepend=self.timestamp[:1]) != np.timedelta64(0))

    def only(self, users: np.ndarray) -> "Sequences":
        """Some of the users, (U,) bool."""
        lengths = np.diff(self.offsets)
        events = np.repeat(users, lengths)
        return Sequences(
            keys=self.keys[users],
            territory=self.territory[users],
            attribute_index=self.attribute_index[users],
            title_index=self.title_index[events],
            timestamp=self.timestamp[events],
            offsets=np.concatenate([[0], np.cumsum(lengths[users])]),
        )

    def history_before(self, held_out: int, length: int) -> np.ndarray:
        """(U, length) int64: the last titles before a held-out event, oldest first, -1 behind them.

        Args:
            held_out: VALIDATION_EVENT, TEST_EVENT, or 0 for the whole history.
            length: longest history.
        """
        ends = self.offsets[1:] - held_out
        starts = np.maximum(ends - length, self.offsets[:-1])
        return left_aligned(self.title_index, starts, ends - starts, length)

    def held_out_title(self, held_out: int) -> np.ndarray:
        """(U,) int32 title of VALIDATION_EVENT or TEST_EVENT."""
        return self.title_index[self.offsets[1:] - held_out]


def in_audit_split(keys: np.ndarray, config: SequenceConfig) -> np.ndarray:
    """(N,) bool: users whose attribute values only attackers see."""
    draws, fraction = uniforms(keys, "attacked", config.split_seed), config.audit_fraction
    attacked = draws < fraction
    if config.train_half != "both":
        attacked |= (draws < (1 + fraction) / 2) != (config.train_half == "lower")
    return attacked


def left_aligned(values: np.ndarray, starts: np.ndarray, sizes: np.ndarray, length: int) -> np.ndarray:
    """(S, length) int64 rows values[start:start + size], -1 behind them.

    Left-aligned, so that a short history looks like the first columns of every window a model was trained on, and the
    filler is invisible to every event behind a causal mask.
    """
    columns = np.arange(length)
    index = np.minimum(starts[:, None] + columns, max(len(values) - 1, 0))
    return np.where(columns < sizes[:, None], values[index], FILLER).astype(np.int64)


def _attribute_index(lake: Lake, users: pa.Table, names: list[str]) -> np.ndarray:
    """(N, m) int16."""
    columns = np.full((users.num_rows, len(names)), FILLER, dtype=np.int16)
    for a, name in enumerate(names):
        values = pa.array(lake.manifest.attributes[name])
        columns[:, a] = pc.index_in(users[name], value_set=values).fill_null(FILLER).to_numpy()
    return columns

"""Users and the event held out of their history, for validation, test and audit.

Legend: `U` users, `V` histories, several a user, `L` history length, `N` titles, `m` sensitive attributes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np

from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.sequences import VALIDATION_EVENT, SequenceConfig, Sequences, in_audit_split, left_aligned

MAX_CELLS = 4_000_000
"""Users x titles of a chunk."""


@dataclass(frozen=True)
class HeldOutUsers:
    """Users and what comes before their held-out event."""

    keys: np.ndarray
    """(U,) uint64."""
    territory: np.ndarray
    """(U,) int32."""
    attribute_index: np.ndarray
    """(U, m) int64, -1 = unknown."""
    audit_split: np.ndarray
    """(U,) bool: only attackers see the attribute values."""
    history: np.ndarray
    """(U, L) int64 titles before the event, oldest first, -1 behind them."""
    target: np.ndarray
    """(U,) int64 the held-out title."""
    other_titles: np.ndarray
    """(E,) int64 the users' other titles, user by user."""
    other_counts: np.ndarray
    """(U,) int64."""

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, users: np.ndarray) -> "HeldOutUsers":
        """Some of the users, (U,) bool."""
        titles = self.other_titles[np.repeat(users, self.other_counts)]
        rest = {f.name: getattr(self, f.name)[users] for f in fields(self) if f.name != "other_titles"}
        return HeldOutUsers(other_titles=titles, **rest)

    @staticmethod
    def concatenate(parts: "list[HeldOutUsers]") -> "HeldOutUsers":
        """The users of all parts."""
        names = [f.name for f in fields(HeldOutUsers)]
        return HeldOutUsers(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def chunks(self, num_titles: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(users, (users, N) bool of their other titles), a bounded number of cells at a time."""
        ends = np.concatenate([[0], np.cumsum(self.other_counts)])
        size = max(1, MAX_CELLS // num_titles)
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            seen = np.zeros((stop - start, num_titles), dtype=bool)
            row = np.repeat(np.arange(stop - start), self.other_counts[start:stop])
            seen[row, self.other_titles[ends[start] : ends[stop]]] = True
            yield slice(start, stop), seen


def read_held_out(
    lake: Lake, config: SequenceConfig, held_out: int, length: int, buckets: Iterable[int], fraction: float = 1.0
) -> HeldOutUsers:
    """Users of some buckets.

    Args:
        lake: the lake.
        config: which histories are long enough.
        held_out: VALIDATION_EVENT or TEST_EVENT.
        length: longest history given.
        buckets: what to read.
        fraction: share of the users, by hash, so that what is kept does not grow with the lake.
    """
    parts = [_read_bucket(lake, config, held_out, length, bucket, fraction) for bucket in buckets]
    parts = parts or [_read_bucket(lake, config, held_out, length, 0, 0.0)]
    return HeldOutUsers.concatenate(parts)


def sampling_hash(keys: np.ndarray, config: SequenceConfig) -> np.ndarray:
    """(U,) in [0, 1): users whose lot lies below a share are a sample of that share."""
    return uniforms(keys, "held out sample", config.split_seed)


@dataclass(frozen=True)
class Prefixes:
    """Histories, each as it was at several points in time, of users whose attribute values may be seen."""

    keys: np.ndarray
    """(V,) uint64 whose."""
    attribute_index: np.ndarray
    """(V, m) int64, -1 = unknown."""
    history: np.ndarray
    """(V, L) int64 titles, oldest first, -1 behind them."""


def read_prefixes(
    lake: Lake, config: SequenceConfig, length: int, buckets: Iterable[int], fraction: float, per_user: int
) -> Prefixes:
    """The history before the validation event and at `per_user` - 1 points drawn by hash, without held-out events."""
    parts = [_read_prefixes(lake, config, length, bucket, fraction, per_user) for bucket in buckets]
    parts = parts or [_read_prefixes(lake, config, length, 0, 0.0, per_user)]
    return Prefixes(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Prefixes)})


def _read_prefixes(
    lake: Lake, config: SequenceConfig, length: int, bucket: int, fraction: float, per_user: int
) -> Prefixes:
    sequences = Sequences.read(lake, bucket, config)
    drawn = sampling_hash(sequences.keys, config) < fraction
    sequences = sequences.only(drawn & ~in_audit_split(sequences.keys, config))
    starts, whole = sequences.offsets[:-1], np.diff(sequences.offsets) - VALIDATION_EVENT  # (U,)
    histories = []
    for number in range(per_user):
        place = uniforms(sequences.keys, "prefix", config.split_seed, number) if number else np.ones(len(whole))
        least = np.minimum(length, whole)
        ends = starts + least + np.floor(place * (whole - least)).astype(np.int64)
        first = np.maximum(ends - length, starts)
        histories.append(left_aligned(sequences.title_index, first, ends - first, length))
    return Prefixes(
        keys=np.tile(sequences.keys, per_user),
        attribute_index=np.tile(sequences.attribute_index.astype(np.int64), (per_user, 1)),
        history=np.concatenate(histories),
    )


def _read_bucket(
    lake: Lake, config: SequenceConfig, held_out: int, length: int, bucket: int, fraction: float
) -> HeldOutUsers:
    sequences = Sequences.read(lake, bucket, config)
    sequences = sequences.only(sampling_hash(sequences.keys, config) < fraction)
    is_other = np.ones(len(sequences.title_index), dtype=bool)
    is_other[sequences.offsets[1:] - held_out] = False
    return HeldOutUsers(
        keys=sequences.keys,
        territory=sequences.territory,
        attribute_index=sequences.attribute_index.astype(np.int64),
        audit_split=in_audit_split(sequences.keys, config),
        history=sequences.history_before(held_out, length),
        target=sequences.held_out_title(held_out).astype(np.int64),
        other_titles=sequences.title_index[is_other].astype(np.int64),
        other_counts=np.diff(sequences.offsets) - 1,
    )

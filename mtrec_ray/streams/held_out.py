"""Users and the event held out of their history, for validation, test and audit.

Legend: `U` users, `V` histories, several a user, `L` history length, `N` titles, `m` sensitive attributes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mtrec_ray.columns import MAX_CELLS, concatenate_rows, take_rows
from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.sequences import VALIDATION_EVENT, SequenceConfig, Sequences, UserSplit, in_split, left_aligned


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
        """(users, (users, N) bool of their other titles), a bounded number of cells at a time."""
        ends = np.concatenate([[0], np.cumsum(self.other_counts)])
        size = max(1, MAX_CELLS // num_titles)
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            seen = np.zeros((stop - start, num_titles), dtype=bool)
            row = np.repeat(np.arange(stop - start), self.other_counts[start:stop])
            seen[row, self.other_titles[ends[start] : ends[stop]]] = True
            yield slice(start, stop), seen


@dataclass(frozen=True)
class Prefixes:
    """Histories of users of the train split, each as it was at several points in time."""

    keys: np.ndarray  # (V,) uint64 of the user
    attribute_index: np.ndarray  # (V, m) int64, -1 = unknown
    history: np.ndarray  # (V, L) int64 titles, oldest first, filled with -1


def read_held_out(
    lake: Lake, config: SequenceConfig, held_out: int, length: int, buckets: Iterable[int], fraction: float = 1.0
) -> HeldOutUsers:
    """A `fraction` of the users, drawn by `sampling_hash`, and their held-out event.

    `held_out` is VALIDATION_EVENT or TEST_EVENT, `length` the longest history given.
    """
    parts = []
    for sequences in _sequences_of(lake, config, buckets, "all", fraction):
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


def read_prefixes(
    lake: Lake,
    config: SequenceConfig,
    length: int,
    buckets: Iterable[int],
    fraction: float,
    per_user: int,
    split: UserSplit = "train",
) -> Prefixes:
    """Histories before the validation event and `per_user` - 1 earlier ones, drawn by hash."""
    parts = []
    for sequences in _sequences_of(lake, config, buckets, split, fraction):
        starts, sizes = sequences.offsets[:-1], np.diff(sequences.offsets) - VALIDATION_EVENT  # (U,)
        shortest, histories = np.minimum(length, sizes), []
        for number in range(per_user):
            draws = uniforms(sequences.keys, "prefix", config.split_seed, number) if number else np.ones(len(sizes))
            ends = starts + shortest + np.floor(draws * (sizes - shortest)).astype(np.int64)
            first = np.maximum(ends - length, starts)
            histories.append(left_aligned(sequences.title_index, first, ends - first, length))
        part = Prefixes(
            keys=np.tile(sequences.keys, per_user),
            attribute_index=np.tile(sequences.attribute_index.astype(np.int64), (per_user, 1)),
            history=np.concatenate(histories),
        )
        parts.append(part)
    return concatenate_rows(parts)


def _sequences_of(
    lake: Lake, config: SequenceConfig, buckets: Iterable[int], split: UserSplit, fraction: float
) -> Iterator[Sequences]:
    """Sampled histories of each bucket; without buckets, nobody's."""
    for bucket, of_users in [(bucket, fraction) for bucket in buckets] or [(0, 0.0)]:
        yield Sequences.read(lake, bucket, config, split, of_users)

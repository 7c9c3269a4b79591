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
from mtrec_ray.lake.bucket import Bucket, pair_code
from mtrec_ray.lake.manifest import Lake

VALIDATION_EVENT, TEST_EVENT = 2, 1
"""Leave-one-out by time: the last event and the one before, of new titles unless rewatching counts (paper B, 3.1).

Training learns from all events before them: with 51% repeats (synthetic), NDCG@10 of new titles was 0.304 so, and 0.294
where repeats were not predicted."""
FILLER = -1
UserSplit = Literal["all", "audit", "train", "train_lower", "train_upper", "probed", "unprobed"]
"""Which users: `train_lower` and `train_upper` are the halves of the train split, for cross-fitting; `probed` is a
tenth of it that is not trained on where a probe decides when training ends, `unprobed` the rest."""
PROBED_FRACTION = 0.1


class SequenceConfig(Config):
    """Which histories are read, what is held out, and whose attributes training may not see."""

    min_events: int = Field(default=10, ge=4)
    """Users with fewer events are left out (paper B, 3.1)."""
    max_events: int = advanced(2500, ge=4)
    """A longer history is cut to its most recent events, so that one account cannot dominate training."""
    exclude_seen: bool = advanced(True)
    """Hold out a user's last two new titles and rank unseen ones, as recommendations leave seen titles out; false where
    rewatching counts. Training, audits and searches measure so, and serving's default follows."""
    audit_fraction: float = Field(default=0.3, gt=0, lt=1)
    """Fraction of users in the audit split: only attackers see their attribute values."""
    split_seed: int = advanced(0)
    """Seed of the audit split; the same for all compared runs, or attackers meet users that were trained on."""


@dataclass(frozen=True)
class Sequences:
    """Users with enough events; their histories up to the test event, in one flat array."""

    keys: np.ndarray  # (U,) uint64
    territory: np.ndarray  # (U,) int32
    attribute_index: np.ndarray  # (U, m) int16 index of each declared value, -1 = unknown
    title_index: np.ndarray  # (E,) int32, in time order within a user; events with equal timestamps in the lake's order
    timestamp: np.ndarray  # (E,) datetime64[us]
    offsets: np.ndarray  # (U + 1,) int64: user u's events are offsets[u]:offsets[u + 1]
    validation_at: np.ndarray  # (U,) int64 index of the validation event
    left_out: int  # users with enough events, but nothing to hold out, or to train on before it
    users_cut: int  # with more than `max_events`
    events_cut: int  # of theirs, which are not read

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
        order = np.lexsort((rows.event_time, rows.event_user))  # stable: ties stay as they are stored
        order = order[chosen[rows.event_user[order]]]
        may_hold_out = np.ones(len(order), dtype=bool)
        if config.exclude_seen:
            may_hold_out = first_of_each(pair_code(rows.event_user[order], rows.event_title[order]))
        spans = history_spans(may_hold_out, counts[chosen], config.max_events)
        users, events = np.flatnonzero(chosen)[spans.kept], np.flatnonzero(spans.read)
        attribute_index = np.full((len(users), len(names)), FILLER, dtype=np.int16)
        for a, (name, values) in enumerate(lake.manifest.attributes.items()):
            index = pc.index_in(rows.users[name], value_set=pa.array(values))
            attribute_index[:, a] = index.fill_null(FILLER).to_numpy()[users]
        order = order[events]
        return Sequences(
            keys=rows.keys[users],
            territory=rows.territory[users],
            attribute_index=attribute_index,
            title_index=rows.event_title[order],
            timestamp=rows.event_time[order],
            offsets=np.concatenate([[0], np.cumsum(spans.sizes)]),
            validation_at=np.searchsorted(events, spans.validation_at),
            left_out=int((~spans.kept).sum()),
            users_cut=spans.users_cut,
            events_cut=spans.events_cut,
        )

    @property
    def num_positions(self) -> np.ndarray:
        """(U,) events that training predicts: from the second to before the validation event."""
        return self.validation_at - self.offsets[:-1] - 1

    @property
    def tie_group(self) -> np.ndarray:
        """(E,) int64, equal for neighbours with one timestamp and growing with time within a user."""
        return np.cumsum(np.diff(self.timestamp, prepend=self.timestamp[:1]) != np.timedelta64(0))

    def held_out_at(self, held_out: int) -> np.ndarray:
        """(U,) int64 index of VALIDATION_EVENT or TEST_EVENT."""
        return self.validation_at if held_out == VALIDATION_EVENT else self.offsets[1:] - TEST_EVENT

    def history_before(self, held_out: int, length: int) -> np.ndarray:
        """(U, length) int64 last titles before a held-out event, oldest first."""
        ends = self.held_out_at(held_out)
        starts = np.maximum(ends - length, self.offsets[:-1])
        return left_aligned(self.title_index, starts, ends - starts, length)

    def held_out_title(self, held_out: int) -> np.ndarray:
        """(U,) int32 title of VALIDATION_EVENT or TEST_EVENT."""
        return self.title_index[self.held_out_at(held_out)]


@dataclass(frozen=True)
class HeldOutUsers:
    """Users with a held-out event and the history before it."""

    keys: np.ndarray  # (U,) uint64
    territory: np.ndarray  # (U,) int32
    attribute_index: np.ndarray  # (U, m) int64, -1 = unknown
    audit_split: np.ndarray  # (U,) bool: only attackers see the attribute values
    history: np.ndarray  # (U, L) int64 titles before the event, oldest first, filled with -1
    target: np.ndarray  # (U,) int64 the held-out title
    target_time: np.ndarray  # (U,) datetime64[us] when it was watched
    other_titles: np.ndarray  # (E,) int64 titles that are not ranked, user by user: the others that were watched
    other_counts: np.ndarray  # (U,) int64

    def __len__(self) -> int:
        return len(self.keys)

    def only(self, users: np.ndarray) -> "HeldOutUsers":
        """Some of the users, (U,) bool."""
        titles = self.other_titles[np.repeat(users, self.other_counts)]
        return replace(take_rows(self, users, unchanged=["other_titles"]), other_titles=titles)

    def chunks(self, num_titles: int) -> Iterator[tuple[slice, np.ndarray]]:
        """(users, (users, T) bool of titles that are not ranked), in bounded numbers of cells."""
        ends = np.concatenate([[0], np.cumsum(self.other_counts)])
        size = max(1, MAX_CELLS // num_titles)
        for start in range(0, max(1, len(self)), size):
            stop = min(start + size, len(self))
            seen = np.zeros((stop - start, num_titles), dtype=bool)
            row = np.repeat(np.arange(stop - start), self.other_counts[start:stop])
            seen[row, self.other_titles[ends[start] : ends[stop]]] = True
            yield slice(start, stop), seen


@dataclass(frozen=True)
class HistorySpans:
    """Which of N users' E events are read, and where their validation events stand."""

    kept: np.ndarray  # (N,) bool: users with two events to hold out and two before them
    read: np.ndarray  # (E,) bool: events of kept users up to the test event
    sizes: np.ndarray  # (U,) events of each kept user that are read
    validation_at: np.ndarray  # (U,) index among the E events
    users_cut: int  # kept users with more than `max_events`
    events_cut: int  # of theirs, which are not read


def first_of_each(codes: np.ndarray) -> np.ndarray:
    """(E,) bool: whether a code is the first of its value."""
    first = np.zeros(len(codes), dtype=bool)
    first[np.unique(codes, return_index=True)[1]] = True
    return first


def history_spans(may_hold_out: np.ndarray, counts: np.ndarray, max_events: int) -> HistorySpans:
    """Hold out each user's last two events that may be; read up to `max_events` to the last.

    (E,) bool of events, user by user in time order; (N,) events of each user, of which the first may be held out.
    """
    ends = np.cumsum(counts)
    starts, eligible = ends - counts, np.flatnonzero(may_hold_out)
    last = np.searchsorted(eligible, ends) - 1  # (N,) place of each user's test event among the eligible
    stops, validation_at = eligible[last] + 1, eligible[np.maximum(last - 1, 0)]
    first = np.maximum(starts, stops - max_events)
    kept, owner = validation_at >= first + 2, np.repeat(np.arange(len(counts)), counts)
    is_cut, index = kept & (first > starts), np.arange(len(may_hold_out))
    return HistorySpans(
        kept=kept,
        read=kept[owner] & (first[owner] <= index) & (index < stops[owner]),
        sizes=(stops - first)[kept],
        validation_at=validation_at[kept],
        users_cut=int(is_cut.sum()),
        events_cut=int((first - starts)[is_cut].sum()),
    )


def in_split(keys: np.ndarray, config: SequenceConfig, split: UserSplit) -> np.ndarray:
    """(N,) bool: users of a split, by a hash of their keys (N,)."""
    audit, middle = config.audit_fraction, (1 + config.audit_fraction) / 2
    probed = audit + PROBED_FRACTION * (1 - audit)
    low, high = {
        "all": (0, 1),
        "audit": (0, audit),
        "train": (audit, 1),
        "train_lower": (audit, middle),
        "train_upper": (middle, 1),
        "probed": (audit, probed),
        "unprobed": (probed, 1),
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
        sizes, target = np.diff(sequences.offsets), sequences.held_out_title(held_out)
        owner = np.repeat(np.arange(len(sizes)), sizes)
        is_other = (sequences.title_index != target[owner]) & config.exclude_seen
        part = HeldOutUsers(
            keys=sequences.keys,
            territory=sequences.territory,
            attribute_index=sequences.attribute_index.astype(np.int64),
            audit_split=in_split(sequences.keys, config, "audit"),
            history=sequences.history_before(held_out, length),
            target=target.astype(np.int64),
            target_time=sequences.timestamp[sequences.held_out_at(held_out)],
            other_titles=sequences.title_index[is_other].astype(np.int64),
            other_counts=np.bincount(owner[is_other], minlength=len(sizes)),
        )
        parts.append(part)
    return concatenate_rows(parts)


def sequences_of(
    lake: Lake, config: SequenceConfig, buckets: Iterable[int], split: UserSplit, fraction: float
) -> Iterator[Sequences]:
    """Sampled histories of each bucket; without buckets, nobody's."""
    for bucket, of_users in [(bucket, fraction) for bucket in buckets] or [(0, 0.0)]:
        yield Sequences.read(lake, bucket, config, split, of_users)

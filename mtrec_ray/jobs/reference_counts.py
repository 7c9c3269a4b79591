"""What references are fitted and chosen on, counted bucket by bucket.

They are fitted on what training users discovered in the training window. Their settings are chosen on validation users
and the evaluation days or, without validation users, on training users whose last discoveries in the window are held
out; never on test users.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from mtrec_ray.columns import MAX_CELLS
from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.jobs.shards import NEGATIVES_SEED
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.interactions import history_matrix
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.sampling import TRAIN, VALIDATION, split_of
from mtrec_ray.streams.scored_users import ScoringChunk, read_candidates, scoring_chunks

POPULARITY = "popularity"
LAST_FRACTION = 0.2  # of a training user's discoveries, held out where there are no validation users


@dataclass(frozen=True)
class ReferenceTask:
    """What the tasks of a bucket need."""

    lake: Lake
    plan: PairPlan  # of a run: calendar and user split
    catalogues: Mapping[int, Catalogue]  # by day, 0 the training window
    known_until: Mapping[int, datetime]  # by evaluation day
    recent: Mapping[str, int]  # popularity of the last days
    kept: np.ndarray  # (T,) bool titles that item-kNN and EASE know
    by_territory: bool
    tuning_rate: float  # of the validation users or, without, the training users
    ials_rate: float  # of the training users; 0 without iALS
    num_negatives: int | None

    @cached_property
    def window(self) -> tuple[datetime, datetime]:
        return self.plan.calendar.day_bounds(0)

    @property
    def on_validation(self) -> bool:
        return self.plan.sample.validation_fraction > 0


@dataclass(frozen=True)
class TuningChunk:
    """Scored users that settings are chosen on."""

    day: int
    users: ScoringChunk


@dataclass
class ReferenceCounts:
    """Sums over buckets, but for a sample of users."""

    grams: list[sp.csr_matrix]  # (T, T) users in common: one, or by territory
    tuned_grams: list[sp.csr_matrix]  # the part of training users on whom settings are chosen; empty without
    recent: dict[tuple[str, datetime], np.ndarray]  # (territories, T) discoveries of the last days before
    choice_popularity: dict[str, np.ndarray]  # the same and of the window, without the users of `tuned_grams`
    histories: sp.csr_matrix  # (sample, T) for iALS
    tuned: np.ndarray  # (sample,) bool: settings are chosen on that user
    chunks: list[TuningChunk]

    def merge(self, other: "ReferenceCounts") -> "ReferenceCounts":
        self.grams = [a + b for a, b in zip(self.grams, other.grams, strict=True)]
        self.tuned_grams = [a + b for a, b in zip(self.tuned_grams, other.tuned_grams, strict=True)]
        for key, cells in other.recent.items():
            self.recent[key] = self.recent[key] + cells  # what a task returns is read-only
        for name, cells in other.choice_popularity.items():
            self.choice_popularity[name] = self.choice_popularity[name] + cells
        self.histories = sp.csr_matrix(sp.vstack([self.histories, other.histories]))
        self.tuned = np.concatenate([self.tuned, other.tuned])
        self.chunks += other.chunks
        return self


def count_references(index: int, task: ReferenceTask) -> ReferenceCounts:
    """Count one bucket."""
    bucket = Bucket.read(task.lake, index, ("embedding",))
    split, num_titles = split_of(bucket.keys, task.plan.sample), len(task.kept)
    draws = uniforms(bucket.keys, "references are tuned on")
    tuned = (split == (VALIDATION if task.on_validation else TRAIN)) & (draws < task.tuning_rate)
    history = history_matrix(bucket, bucket.discoveries(*task.window), num_titles)
    kept = sp.csr_matrix(history @ sp.diags(task.kept.astype(np.float64)))
    kept.eliminate_zeros()
    groups = range(len(task.lake.manifest.territories)) if task.by_territory else [None]

    def grams(users: np.ndarray) -> list[sp.csr_matrix]:
        own = [kept[users if group is None else users & (bucket.territory == group)] for group in groups]
        return [sp.csr_matrix((rows.T @ rows).astype(np.float32)) for rows in own]

    def popularity(users: np.ndarray, days: int, until: datetime) -> np.ndarray:
        return _discoveries(bucket, users, until - timedelta(days=days), until, task)

    training, (start, end) = split == TRAIN, task.window
    untuned = training & ~tuned
    choice_popularity = {} if task.on_validation else {POPULARITY: _discoveries(bucket, untuned, start, end, task)}
    if not task.on_validation:
        choice_popularity |= {name: popularity(untuned, days, end) for name, days in task.recent.items()}
    ends = set(task.known_until.values())
    sampled = np.flatnonzero(training & (uniforms(bucket.keys, "ials") < task.ials_rate))
    chunks = _validation_chunks if task.on_validation else _held_out_chunks
    return ReferenceCounts(
        grams=grams(training),
        tuned_grams=[] if task.on_validation else grams(tuned),
        recent={(name, end): popularity(training, days, end) for name, days in task.recent.items() for end in ends},
        choice_popularity=choice_popularity,
        histories=sp.csr_matrix(history[sampled].astype(np.float32)),
        tuned=tuned[sampled],
        chunks=list(chunks(index, bucket, np.flatnonzero(tuned), task)),
    )


def _discoveries(bucket: Bucket, users: np.ndarray, start: datetime, end: datetime, task: ReferenceTask) -> np.ndarray:
    """(territories, T) discoveries of some users, (N,) bool."""
    counts = np.zeros((len(task.lake.manifest.territories), len(task.kept)), dtype=np.int64)
    events = bucket.discoveries(start, end)
    events = events[users[bucket.event_user[events]]]
    np.add.at(counts, (bucket.territory[bucket.event_user[events]], bucket.event_title[events]), 1)
    return counts


def _validation_chunks(index: int, bucket: Bucket, rows: np.ndarray, task: ReferenceTask) -> Iterator[TuningChunk]:
    """Validation users on the evaluation days, as test users are scored."""
    fixed = read_candidates(task.lake, index)
    for day, until in task.known_until.items():
        history = history_matrix(bucket, bucket.discoveries(task.window[0], until), len(task.kept))
        for chunk in scoring_chunks(task.lake, bucket, rows, task.catalogues[day], fixed, history):
            if task.num_negatives is not None:
                chunk = chunk.with_sampled_negatives(task.num_negatives, NEGATIVES_SEED)
            yield TuningChunk(day, chunk)


def _held_out_chunks(index: int, bucket: Bucket, rows: np.ndarray, task: ReferenceTask) -> Iterator[TuningChunk]:
    """Training users without their last discoveries of the window, which are the positives.

    Where the lake fixes candidates, as many negatives are drawn as its lists have titles.
    """
    chosen = np.zeros(len(bucket.keys), dtype=bool)
    chosen[rows] = True
    events = bucket.discoveries(*task.window)
    events = events[chosen[bucket.event_user[events]]]
    user, title = bucket.event_user[events], bucket.event_title[events]
    order = np.lexsort((mix(bucket.keys[user], "held out", title.astype(np.uint64)), bucket.event_time[events], user))
    counts = np.bincount(user, minlength=len(bucket.keys))
    left = np.cumsum(counts)[user[order]] - np.arange(len(order))  # discoveries of the user from this one on
    last = np.zeros(len(events), dtype=bool)
    last[order] = left <= np.maximum(1, LAST_FRACTION * counts[user[order]])
    listed = _list_lengths(index, bucket, task)
    history = history_matrix(bucket, events[~last], len(task.kept))
    labels = history_matrix(bucket, events[last], len(task.kept))
    for territory, offer in enumerate(task.catalogues[0].offers):
        own = np.flatnonzero(chosen & (counts > 0) & (bucket.territory == territory))
        for part in np.array_split(own, max(1, -(-len(own) * max(1, len(offer)) // MAX_CELLS))):
            chunk = ScoringChunk(
                territory=territory,
                rows=part,
                keys=bucket.keys[part],
                embedding=np.zeros((len(part), 0), dtype=np.float16),
                activity=np.zeros(len(part), dtype=np.int64),
                seen=np.zeros((len(part), len(offer)), dtype=bool),
                title_index=offer,
                candidates=np.ones((len(part), len(offer)), dtype=bool),
                labels=labels[part][:, offer].toarray() > 0,
                history=history[part],
            )
            num_negatives = task.num_negatives
            if listed[part].any():
                num_negatives = int(np.median(listed[part][listed[part] > 0]))
            if num_negatives is not None:
                chunk = chunk.with_sampled_negatives(num_negatives, NEGATIVES_SEED)
            yield TuningChunk(0, chunk)


def _list_lengths(index: int, bucket: Bucket, task: ReferenceTask) -> np.ndarray:
    """(N,) titles in each user's fixed list of candidates; 0 without one."""
    found, fixed = np.zeros(len(bucket.keys), dtype=np.int64), read_candidates(task.lake, index)
    if fixed is not None:
        lengths = dict(zip(fixed["user_id"].to_pylist(), map(len, fixed["title_ids"].to_pylist()), strict=True))
        found[:] = [lengths.get(user, 0) for user in bucket.users["user_id"].to_pylist()]
    return found

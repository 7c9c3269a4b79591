"""The plan of a run's pair streams: two counting passes over the lake, then every reader decides alone and alike.

1. `count_users`: users, random sample, active users per territory -> sampling rates of the added set.
2. `count_pairs`: positives and eligible negatives of the sample in each phase -> the rate that gives alpha negatives.

Results are sums over buckets: memory is that of one bucket per reader plus one number per territory.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from pydantic import BaseModel, ConfigDict

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import map_buckets
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TRAIN, adaptive_rates, in_added_set, in_random_sample, split_of

logger = logging.getLogger(__name__)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhasePlan(_Frozen):
    """One stretch of training: the window (day 0) or an evaluation day."""

    day: int
    start: datetime
    end: datetime
    alpha: float
    negative_rate: float
    """Share of a user's eligible titles that become negatives."""
    positives: list[int]
    """Per territory."""
    eligible: list[int]
    """Per territory: (sampled user, offered title) that could become negatives."""
    num_folds: int
    """Rows a user travels in: its cross-fitting folds in the window, else 1."""

    @property
    def mean_pairs(self) -> float:
        """Expected labelled pairs of the phase."""
        return sum(self.positives) + self.negative_rate * sum(self.eligible)


class PairPlan(_Frozen):
    """All that a reader needs beside the lake, and the figures of paper A's table 1."""

    lake_hash: str
    sample: SampleConfig
    calendar: Calendar
    users: list[int]
    """Per territory: users of the lake, and below of the training split, the random sample, the added set."""
    training_users: list[int]
    random_users: list[int]
    added_users: list[int]
    active_users: list[int]
    added_rates: list[float]
    sampled_per_bucket: list[int]
    phases: list[PhasePlan]
    not_offered_positives: int
    """Discoveries of the window left out because the title is not offered (or promoted) in the user's territory."""


@dataclass(frozen=True)
class UserCounts:
    """Per territory; the sums over buckets of pass 1."""

    users: np.ndarray
    training: np.ndarray
    random: np.ndarray
    active: np.ndarray
    candidates: np.ndarray
    """Active training users outside R."""
    candidate_positives: np.ndarray
    other_positives: np.ndarray
    """Positives of all training users outside R, active or not."""

    def __add__(self, other: "UserCounts") -> "UserCounts":
        return UserCounts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def make_plan(
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    num_phases: int = 1,
    progress: ProgressCallback | None = None,
) -> PairPlan:
    """Count the lake and fix every sampling rate.

    Args:
        lake: the lake.
        sample: who and which pairs.
        calendar: window and days.
        num_phases: 1 for the window alone; 1 + n also trains on the first n evaluation days.
        progress: told of each finished bucket.

    Raises:
        UserError: the sample holds no positives or no negatives, so there is nothing to train on.
    """
    buckets, total = range(lake.manifest.num_buckets), lake.manifest.num_buckets

    def show(what: str):
        return (lambda done: progress(what, done, total)) if progress else None

    catalogues = [Catalogue.of(lake, *calendar.day_bounds(day)) for day in range(num_phases)]
    passes = map_buckets(_count_users, buckets, lake, sample, calendar, catalogues[0], progress=show("counting users"))
    users = _sum(counts for _, counts in passes)
    rates = added_rates(users, sample)
    phases = [_Phase(*calendar.day_bounds(day), catalogues[day]) for day in range(num_phases)]
    per_bucket = dict(
        map_buckets(_count_pairs, buckets, lake, sample, calendar, rates, phases, progress=show("counting pairs"))
    )
    folds = max(1, lake.manifest.embeddings.num_folds)
    return PairPlan(
        lake_hash=lake.manifest.lake_hash,
        sample=sample,
        calendar=calendar,
        users=users.users.tolist(),
        training_users=users.training.tolist(),
        random_users=users.random.tolist(),
        added_users=sum(counts.added for counts in per_bucket.values()).tolist(),
        active_users=users.active.tolist(),
        added_rates=rates.tolist(),
        sampled_per_bucket=[per_bucket[bucket].sampled for bucket in buckets],
        phases=[
            _plan_phase(day, phases[day], list(per_bucket.values()), sample, calendar, folds if day == 0 else 1)
            for day in range(num_phases)
        ],
        not_offered_positives=sum(counts.not_offered for counts in per_bucket.values()),
    )


def added_rates(counts: UserCounts, sample: SampleConfig) -> np.ndarray:
    """(territories,) sampling rate of the added set, of active users or of the control with as many positives."""
    size = sample.active_fraction * counts.random.sum()
    rates = adaptive_rates(counts.active, counts.candidates, size, sample.tau)
    if sample.upsample == "active":
        return rates
    positives = (rates * counts.candidate_positives).sum()
    return np.full(len(rates), min(1.0, positives / max(1, counts.other_positives.sum())))


def sampled_users(
    bucket: Bucket, sample: SampleConfig, calendar: Calendar, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the bucket's sampled users, ascending, and which of them are of the added set: (S,) int64, (S,) bool."""
    in_random = in_random_sample(bucket.keys, sample)
    eligible = (split_of(bucket.keys, sample) == TRAIN) & ~in_random
    if sample.upsample == "active":
        eligible &= bucket.active(calendar.window_end, sample.active_days)
    added = in_added_set(bucket.keys, eligible, rates[bucket.territory], sample)
    rows = np.flatnonzero(in_random | added)
    return rows, added[rows]


@dataclass(frozen=True)
class _Phase:
    start: datetime
    end: datetime
    catalogue: Catalogue


@dataclass(frozen=True)
class _PairCounts:
    sampled: int
    added: np.ndarray
    positives: np.ndarray
    """(phases, territories)."""
    eligible: np.ndarray
    user_days: np.ndarray
    """(phases,) distinct (user, day) with a positive."""
    not_offered: int


def _count_users(
    bucket_index: int, lake: Lake, sample: SampleConfig, calendar: Calendar, catalogue: Catalogue
) -> UserCounts:
    bucket = Bucket.read(lake, bucket_index, catalogue.title_ids)
    training = split_of(bucket.keys, sample) == TRAIN
    outside = training & ~in_random_sample(bucket.keys, sample)
    active = bucket.active(calendar.window_end, sample.active_days)
    events = bucket.discoveries(*calendar.day_bounds(0), catalogue.offer_mask)
    positives = np.bincount(bucket.event_user[events], minlength=len(bucket.keys))

    def count(weights: np.ndarray) -> np.ndarray:
        return np.bincount(bucket.territory, weights=weights, minlength=len(catalogue.offers)).astype(np.int64)

    return UserCounts(
        users=count(np.ones(len(bucket.keys))),
        training=count(training),
        random=count(training & ~outside),
        active=count(active),
        candidates=count(outside & active),
        candidate_positives=count(positives * (outside & active)),
        other_positives=count(positives * outside),
    )


def _count_pairs(
    bucket_index: int,
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    rates: np.ndarray,
    phases: list[_Phase],
) -> _PairCounts:
    bucket = Bucket.read(lake, bucket_index, phases[0].catalogue.title_ids)
    rows, added = sampled_users(bucket, sample, calendar, rates)
    sampled = np.zeros(len(bucket.keys), dtype=bool)
    sampled[rows] = True
    num_territories = len(rates)
    counted = [_count_phase(bucket, sampled, phase, calendar, num_territories) for phase in phases]
    everything = np.ones_like(phases[0].catalogue.offer_mask)
    found = bucket.event_user[bucket.discoveries(phases[0].start, phases[0].end, everything)]
    return _PairCounts(
        sampled=len(rows),
        added=np.bincount(bucket.territory[rows[added]], minlength=num_territories),
        positives=np.array([positives for positives, _, _ in counted]),
        eligible=np.array([eligible for _, eligible, _ in counted]),
        user_days=np.array([user_days for _, _, user_days in counted]),
        not_offered=int(sampled[found].sum()) - int(counted[0][0].sum()),
    )


def _count_phase(
    bucket: Bucket, sampled: np.ndarray, phase: _Phase, calendar: Calendar, num_territories: int
) -> tuple[np.ndarray, np.ndarray, int]:
    offers, mask = phase.catalogue.offers, phase.catalogue.offer_mask
    events = bucket.discoveries(phase.start, phase.end, mask)
    events = events[sampled[bucket.event_user[events]]]
    users = bucket.event_user[events]
    positives = np.bincount(bucket.territory[users], minlength=num_territories)
    known = bucket.known_pairs(phase.start, phase.end)
    known_user, known_title = known >> 32, known & 0xFFFFFFFF
    known_user = known_user[sampled[known_user] & mask[bucket.territory[known_user], known_title]]
    offered = np.array([len(offer) for offer in offers])
    eligible = offered * np.bincount(bucket.territory[sampled], minlength=num_territories)
    eligible = eligible - np.bincount(bucket.territory[known_user], minlength=num_territories)
    day = (
        (bucket.event_time[events] - bucket.event_time[events].min()) // np.timedelta64(calendar.day_s, "s")
        if len(events)
        else []
    )
    user_days = len(np.unique(np.stack([users, np.asarray(day, dtype=np.int64)]), axis=1).T)
    return positives, eligible, user_days


def _plan_phase(
    day: int,
    phase: _Phase,
    counts: list[_PairCounts],
    sample: SampleConfig,
    calendar: Calendar,
    num_folds: int,
) -> PhasePlan:
    positives = sum(c.positives[day] for c in counts)
    eligible = sum(c.eligible[day] for c in counts)
    if positives.sum() == 0 or eligible.sum() == 0:
        what = "positives" if positives.sum() == 0 else "eligible negatives"
        raise UserError(
            f"no {what} for the sampled users in [{phase.start}, {phase.end}): widen the window or the sample"
        )
    alpha = sample.alpha
    if alpha == "auto":
        num_days = max(1.0, (phase.end - phase.start).total_seconds() / calendar.day_s)
        alpha = sum(c.sampled for c in counts) * num_days / sum(c.user_days[day] for c in counts)
    wanted = alpha * positives.sum() / eligible.sum()
    if wanted > 1:
        logger.warning(
            "alpha = %g asks for more negatives than there are: all %d eligible pairs are taken",
            alpha,
            eligible.sum(),
        )
    return PhasePlan(
        day=day,
        start=phase.start,
        end=phase.end,
        alpha=float(alpha),
        negative_rate=float(min(1.0, wanted)),
        positives=positives.tolist(),
        eligible=eligible.tolist(),
        num_folds=num_folds,
    )


def _sum(parts) -> UserCounts:
    total = None
    for part in parts:
        total = part if total is None else total + part
    assert total is not None, "a lake has at least one bucket"
    return total

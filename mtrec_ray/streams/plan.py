"""The plan of a run's pair streams: two counting passes over the lake, a bucket at a time.

1. `count_users`: users, random sample, active users per territory -> sampling rates of the added set; discoveries by
   time, territory and title -> the prior (see `prior`).
2. `count_sample`: positives and eligible negatives of the sample in each period -> the rate at which eligible pairs
   become negatives: alpha times as many as positives on average (see `reader`).
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.bucket import Bucket, Catalogue, to_datetime64, user_and_title
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import CLUSTER, Reader
from mtrec_ray.streams.prior import Prior, PriorCounts, PriorFit, PriorGrid, count_prior
from mtrec_ray.streams.sampling import TRAIN, adaptive_rates, in_random_sample, sampled_users, split_of
from mtrec_ray.streams.schedule import Schedule

logger = logging.getLogger(__name__)

NUM_SLICES = 256  # of the window, whose positives say when its negatives were offered


class UserCounts(NamedTuple):
    """Users and positives of each territory, (territories,) int64 all."""

    users: np.ndarray
    training: np.ndarray
    random: np.ndarray
    active: np.ndarray
    addable: np.ndarray  # active training users outside R
    addable_positives: np.ndarray
    other_positives: np.ndarray  # positives of all training users outside R, active or not


class SampleCounts(NamedTuple):
    """Positives and possible negatives of the sampled users."""

    sampled: int
    random: int  # those of the random sample R
    added: np.ndarray  # (territories,) users of the added set
    positives: np.ndarray  # (periods, territories)
    eligible: np.ndarray  # (periods, territories) pairs that could become negatives
    random_user_days: np.ndarray  # (periods,) distinct (user of R, day) with a positive
    seen: np.ndarray  # (2,) see `Prior.count_seen`
    slices: np.ndarray  # (NUM_SLICES,) the window's positives by equal slice of time
    not_offered: int  # discoveries in the window of titles that are not offered in the user's territory


class PeriodPlan(BaseModel, frozen=True, extra="forbid"):
    """One period: the training window (day 0) or an evaluation day."""

    day: int
    start: datetime
    end: datetime
    alpha: float
    negative_rate: float  # probability that an eligible title of a user becomes a negative
    positives: list[int]  # per territory
    eligible: list[int]  # per territory: (sampled user, offered title) that could become negatives
    rows_per_user: int = 1  # one for each fold of the lake's embeddings, in the training window
    slices: list[int] = []  # the window's positives by equal slice of time

    @property
    def mean_pairs(self) -> float:
        """Expected labelled pairs of the period."""
        return sum(self.positives) + self.negative_rate * sum(self.eligible)

    def times(self, fractions: np.ndarray) -> np.ndarray:
        """datetime64[us] before which these fractions of the window's positives lie."""
        before = np.concatenate([[0], np.cumsum(self.slices)]) / sum(self.slices)
        start, end = to_datetime64(self.start), to_datetime64(self.end)
        passed = np.interp(fractions, before, np.linspace(0.0, 1.0, len(before)))
        return start + (passed * (end - start).astype(np.int64)).astype("timedelta64[us]")


class PairPlan(BaseModel, frozen=True, extra="forbid"):
    """What a reader needs besides the lake, and paper A's table 1."""

    lake_hash: str
    sample: SampleConfig
    calendar: Calendar
    users: list[int]  # per territory, as are the next five
    training_users: list[int]
    random_users: list[int]
    added_users: list[int]
    active_users: list[int]
    added_rates: list[float]
    sampled_per_bucket: list[int]
    periods: list[PeriodPlan]
    not_offered_positives: int  # discoveries in the window of titles not offered or promoted in the user's territory

    def schedule(self, epochs: tuple[int, ...], batch_pairs: int, lanes: int, seed: int) -> Schedule:
        """Steps of `batch_pairs` pairs on average for so many epochs of each period."""
        slots = tuple(tuple(n * period.rows_per_user for n in self.sampled_per_bucket) for period in self.periods)
        steps = tuple(max(1, round(period.mean_pairs / batch_pairs)) for period in self.periods)
        return Schedule(slots_per_bucket=slots, steps_per_epoch=steps, epochs=epochs, seed=seed, lanes=lanes)


def make_plan(
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    num_periods: int = 1,
    progress: ProgressCallback | None = None,
    buckets: Sequence[int] | None = None,
    reader: Reader = CLUSTER,
) -> tuple[PairPlan, Prior | None]:
    """Count the lake, fix every sampling rate and fit the prior.

    UserError without positives or negatives. `num_periods` is 1 for the training window alone, 1 + n to train on the
    first n evaluation days too; `buckets` are those to read, None is all. There is no prior where the window has no
    order of time.
    """
    buckets = range(lake.manifest.num_buckets) if buckets is None else buckets
    training = pair_window(lake, calendar)
    catalogues = [Catalogue.of(lake, *training.day_bounds(day)) for day in range(num_periods)]
    grid = PriorGrid.of(training, num_periods, catalogues[0].offer_mask.size)
    fit = PriorFit(lake, catalogues[0], grid) if grid else None
    found = []
    shared = (lake, sample, calendar, catalogues[0], grid)
    for _, (one, known) in reader.map(count_users, buckets, *shared, stage="counting users", progress=progress):
        found.append(one)
        if fit and known:
            fit.add(known)
    users = UserCounts(*(np.sum(column, axis=0) for column in zip(*found, strict=True)))
    rates = _added_rates(users, sample)
    prior = fit.fit() if fit else None
    shared = (lake, sample, calendar, rates, catalogues, prior)
    counted = dict(reader.map(count_sample, buckets, *shared, stage="counting pairs", progress=progress))
    pairs = SampleCounts(*(np.sum(column, axis=0) for column in zip(*counted.values(), strict=True)))
    periods = [_plan_period(day, catalogue, pairs, sample, calendar) for day, catalogue in enumerate(catalogues)]
    window = {"rows_per_user": max(1, lake.manifest.embeddings.num_folds), "slices": pairs.slices.tolist()}
    periods[0] = periods[0].model_copy(update=window)
    plan = PairPlan(
        lake_hash=lake.manifest.lake_hash,
        sample=sample,
        calendar=calendar,
        users=users.users.tolist(),
        training_users=users.training.tolist(),
        random_users=users.random.tolist(),
        added_users=pairs.added.tolist(),
        active_users=users.active.tolist(),
        added_rates=rates.tolist(),
        sampled_per_bucket=[counted[b].sampled if b in counted else 0 for b in range(lake.manifest.num_buckets)],
        periods=periods,
        not_offered_positives=pairs.not_offered,
    )
    return plan, prior and prior.with_seen(*pairs.seen)


def pair_window(lake: Lake, calendar: Calendar) -> Calendar:
    """The part of the window that pairs come from.

    It starts after the events that the lake's interaction vectors were fitted on.
    """
    starts = lake.manifest.embeddings.fold_starts
    if not starts or not calendar.window_start < starts[0] < calendar.window_end:
        return calendar
    return calendar.model_copy(update={"window_start": starts[0]})


def _added_rates(counts: UserCounts, sample: SampleConfig) -> np.ndarray:
    """(territories,) rates of active users, or of a control with as many positives."""
    size = sample.active_fraction * counts.random.sum()
    rates = adaptive_rates(counts.active, counts.addable, size, sample.tau)
    if sample.upsample == "active":
        return rates
    positives = (rates * counts.addable_positives).sum()
    return np.full(len(rates), min(1.0, positives / max(1, counts.other_positives.sum())))


def _plan_period(
    day: int, catalogue: Catalogue, counts: SampleCounts, sample: SampleConfig, calendar: Calendar
) -> PeriodPlan:
    positives, eligible, (start, end) = counts.positives[day], counts.eligible[day], catalogue.bounds
    if positives.sum() == 0 or eligible.sum() == 0:
        what, fix = "positives", "widen the window or the sample"
        if positives.sum():
            what = "eligible negatives (titles that are offered to a user and not watched by it)"
            fix = "shorten the window, or take a lake with more titles"
        raise UserError(f"no {what} for the sampled users in [{start}, {end}): {fix}")
    alpha = sample.alpha
    if alpha == "auto":
        alpha = _auto_alpha(counts, day, (end - start).total_seconds() / calendar.day_s)
    rate = alpha * positives.sum() / eligible.sum()
    if rate > 1:
        logger.warning("alpha = %g takes all %d eligible pairs, and needs more negatives", alpha, eligible.sum())
    return PeriodPlan(
        day=day,
        start=start,
        end=end,
        alpha=float(alpha),
        negative_rate=float(min(1.0, rate)),
        positives=positives.tolist(),
        eligible=eligible.tolist(),
    )


def _auto_alpha(counts: SampleCounts, day: int, num_days: float) -> float:
    """Users of R per user of R with a positive on a mean day; R stands for all users."""
    if counts.random_user_days[day] == 0:
        raise UserError(
            f"sample.alpha = auto: none of the {counts.random} users of the random sample has a positive in period "
            f"{day}: raise sample.random_fraction, or set sample.alpha to a number"
        )
    return float(counts.random * max(1.0, num_days) / counts.random_user_days[day])


def count_users(
    bucket_index: int,
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    catalogue: Catalogue,
    grid: PriorGrid | None = None,
) -> tuple[UserCounts, PriorCounts | None]:
    """Pass 1 over one bucket, with the catalogue of the pairs' window."""
    bucket = Bucket.read(lake, bucket_index)
    training = split_of(bucket.keys, sample) == TRAIN
    outside = training & ~in_random_sample(bucket.keys, sample)
    active = bucket.active(*calendar.day_bounds(0), sample.active_days)
    events = bucket.discoveries(*catalogue.bounds, catalogue.offer_mask)
    positives = np.bincount(bucket.event_user[events], minlength=len(bucket.keys))

    def count(weights: np.ndarray) -> np.ndarray:
        return np.bincount(bucket.territory, weights=weights, minlength=len(catalogue.offers)).astype(np.int64)

    users = UserCounts(
        users=count(np.ones(len(bucket.keys))),
        training=count(training),
        random=count(training & ~outside),
        active=count(active),
        addable=count(outside & active),
        addable_positives=count(positives * (outside & active)),
        other_positives=count(positives * outside),
    )
    return users, count_prior(bucket, sample, catalogue, grid) if grid else None


def count_sample(
    bucket_index: int,
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    rates: np.ndarray,
    catalogues: list[Catalogue],
    prior: Prior | None = None,
) -> SampleCounts:
    """Pass 2 over one bucket, with the added set's rates and the catalogue of each period."""
    window = catalogues[0]
    bucket = Bucket.read(lake, bucket_index)
    rows, added = sampled_users(bucket, sample, calendar, rates)
    sampled = np.zeros(len(bucket.keys), dtype=bool)
    sampled[rows] = True
    random = np.zeros(len(bucket.keys), dtype=bool)
    random[rows[~added]] = True
    known = prior if lake.manifest.embeddings.interaction_width else None  # as `read_pairs` drops watched titles
    found = [_positives(bucket, sampled, one, period, known) for period, one in enumerate(catalogues)]
    positives, eligible, random_user_days = zip(
        *map(partial(_count_period, bucket, sampled, random, calendar), catalogues, found), strict=True
    )
    start, end = map(to_datetime64, window.bounds)
    passed = (bucket.event_time[found[0]] - start) / (end - start)
    everything = bucket.discoveries(*window.bounds)
    discoverers, titles = bucket.event_user[everything], bucket.event_title[everything]
    not_offered = sampled[discoverers] & ~window.offer_mask[bucket.territory[discoverers], titles]
    return SampleCounts(
        sampled=len(rows),
        random=int(random.sum()),
        added=np.bincount(bucket.territory[rows[added]], minlength=len(rates)),
        positives=np.array(positives),
        eligible=np.array(eligible),
        random_user_days=np.array(random_user_days),
        seen=np.zeros(2) if prior is None else prior.count_seen(bucket, sample, window.offer_mask),
        slices=np.bincount((passed * NUM_SLICES).astype(np.int64), minlength=NUM_SLICES),
        not_offered=int(not_offered.sum()),
    )


def _positives(
    bucket: Bucket, sampled: np.ndarray, catalogue: Catalogue, period: int, prior: Prior | None
) -> np.ndarray:
    """Event rows of a period's positives; with a prior, without titles watched before."""
    rows = bucket.discoveries(*catalogue.bounds, catalogue.offer_mask)
    rows = rows[sampled[bucket.event_user[rows]]]
    pairs = bucket.event_user[rows], bucket.event_title[rows], bucket.event_time[rows]
    return rows if prior is None else rows[prior.unseen(bucket, period, *pairs)]


def _count_period(
    bucket: Bucket,
    sampled: np.ndarray,
    random: np.ndarray,
    calendar: Calendar,
    catalogue: Catalogue,
    events: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Positives and eligible negatives by territory; (user of R, day)s with a positive.

    `events` are the rows of the positives.
    """
    offered, (start, end) = catalogue.offer_mask, catalogue.bounds

    def per_territory(users: np.ndarray) -> np.ndarray:
        return np.bincount(bucket.territory[users], minlength=len(offered))

    users = bucket.event_user[events]
    known_user, known_title = user_and_title(bucket.known_pairs(start, end))
    known_user = known_user[sampled[known_user] & offered[bucket.territory[known_user], known_title]]
    eligible = offered.sum(1) * per_territory(np.flatnonzero(sampled)) - per_territory(known_user)
    of_random = events[random[users]]
    day = (bucket.event_time[of_random] - to_datetime64(start)) // np.timedelta64(calendar.day_s, "s")
    user_days = np.unique(np.stack([bucket.event_user[of_random], day.astype(np.int64)], axis=1), axis=0)
    return per_territory(users), eligible, len(user_days)

"""The two counting passes behind a plan: what one bucket holds, as numbers that are summed over buckets."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime, timedelta

import numpy as np

from mtrec_ray.lake.bucket import Bucket, to_datetime64, user_and_title
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TRAIN, in_random_sample, sampled_users, split_of


@dataclass(frozen=True)
class UserCounts:
    """What pass 1 sums over the buckets; each (territories,) int64."""

    users: np.ndarray
    training: np.ndarray
    random: np.ndarray
    active: np.ndarray
    candidates: np.ndarray
    """Active training users outside R."""
    candidate_positives: np.ndarray
    other_positives: np.ndarray
    """Positives of all training users outside R, active or not."""

    @staticmethod
    def total(parts: "Iterable[UserCounts]") -> "UserCounts":
        """The sum over buckets."""
        listed = list(parts)
        names = [field.name for field in fields(UserCounts)]
        return UserCounts(**{name: np.sum([getattr(part, name) for part in listed], axis=0) for name in names})


@dataclass(frozen=True)
class Period:
    """A stretch of training and what is offered in it."""

    start: datetime
    end: datetime
    catalogue: Catalogue


@dataclass(frozen=True)
class PairCounts:
    """What pass 2 finds in one bucket."""

    sampled: int
    """Users of the sample."""
    added: np.ndarray
    """(territories,) of them in the added set."""
    positives: np.ndarray
    """(periods, territories)."""
    eligible: np.ndarray
    """(periods, territories) pairs that could become negatives."""
    user_days: np.ndarray
    """(periods,) distinct (user, day) with a positive."""
    last_day: int
    """Positives of the window's last day."""
    last_day_cold: int
    """Those of them by users without an event before that day."""
    not_offered: int
    """Discoveries of the window whose title is not offered in the user's territory."""


def count_users(
    bucket_index: int, lake: Lake, sample: SampleConfig, calendar: Calendar, catalogue: Catalogue
) -> UserCounts:
    """Pass 1 over one bucket."""
    bucket = Bucket.read(lake, bucket_index, catalogue.title_ids)
    training = split_of(bucket.keys, sample) == TRAIN
    outside = training & ~in_random_sample(bucket.keys, sample)
    active = bucket.active(*calendar.day_bounds(0), sample.active_days)
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


def count_pairs(
    bucket_index: int,
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    rates: np.ndarray,
    periods: list[Period],
) -> PairCounts:
    """Pass 2 over one bucket, with the added set's rates of pass 1."""
    bucket = Bucket.read(lake, bucket_index, periods[0].catalogue.title_ids)
    rows, added = sampled_users(bucket, sample, calendar, rates)
    sampled = np.zeros(len(bucket.keys), dtype=bool)
    sampled[rows] = True
    num_territories = len(rates)
    counted = [_count_period(bucket, sampled, period, calendar, num_territories) for period in periods]
    found = bucket.event_user[bucket.discoveries(periods[0].start, periods[0].end)]
    last_day = periods[0].end - timedelta(seconds=calendar.day_s)
    last_day_users = bucket.event_user[bucket.discoveries(last_day, periods[0].end, periods[0].catalogue.offer_mask)]
    last_day_users = last_day_users[sampled[last_day_users]]
    return PairCounts(
        sampled=len(rows),
        added=np.bincount(bucket.territory[rows[added]], minlength=num_territories),
        positives=np.array([positives for positives, _, _ in counted]),
        eligible=np.array([eligible for _, eligible, _ in counted]),
        user_days=np.array([user_days for _, _, user_days in counted]),
        last_day=len(last_day_users),
        last_day_cold=int((~bucket.has_events_before(last_day)[last_day_users]).sum()),
        not_offered=int(sampled[found].sum()) - int(counted[0][0].sum()),
    )


def _count_period(
    bucket: Bucket, sampled: np.ndarray, period: Period, calendar: Calendar, num_territories: int
) -> tuple[np.ndarray, np.ndarray, int]:
    offers, mask = period.catalogue.offers, period.catalogue.offer_mask
    events = bucket.discoveries(period.start, period.end, mask)
    events = events[sampled[bucket.event_user[events]]]
    users = bucket.event_user[events]
    positives = np.bincount(bucket.territory[users], minlength=num_territories)
    known_user, known_title = user_and_title(bucket.known_pairs(period.start, period.end))
    known_user = known_user[sampled[known_user] & mask[bucket.territory[known_user], known_title]]
    offered = np.array([len(offer) for offer in offers])
    eligible = offered * np.bincount(bucket.territory[sampled], minlength=num_territories)
    eligible = eligible - np.bincount(bucket.territory[known_user], minlength=num_territories)
    day = (bucket.event_time[events] - to_datetime64(period.start)) // np.timedelta64(calendar.day_s, "s")
    user_days = len(np.unique(np.stack([users, day.astype(np.int64)]), axis=1).T)
    return positives, eligible, user_days

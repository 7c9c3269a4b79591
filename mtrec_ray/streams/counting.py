"""The two counting passes behind a plan, one bucket in memory at a time."""

from collections.abc import Iterable
from datetime import timedelta
from typing import NamedTuple, TypeVar

import numpy as np

from mtrec_ray.lake.bucket import Bucket, to_datetime64, user_and_title
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TRAIN, in_random_sample, sampled_users, split_of


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
    added: np.ndarray  # (territories,) users of the added set
    positives: np.ndarray  # (periods, territories)
    eligible: np.ndarray  # (periods, territories) pairs that could become negatives
    user_days: np.ndarray  # (periods,) distinct (user, day) with a positive
    last_day: int  # positives of the window's last day
    last_day_cold: int  # those of users without an earlier event
    not_offered: int  # discoveries in the window of titles that are not offered in the user's territory


Counts = TypeVar("Counts", UserCounts, SampleCounts)


def total(parts: Iterable[Counts]) -> Counts:
    """The sum over buckets."""
    listed = list(parts)
    return type(listed[0])(*(np.sum(column, axis=0) for column in zip(*listed, strict=True)))


def count_users(bucket_index: int, lake: Lake, sample: SampleConfig, catalogue: Catalogue) -> UserCounts:
    """Pass 1 over one bucket, with the window's catalogue."""
    bucket = Bucket.read(lake, bucket_index)
    training = split_of(bucket.keys, sample) == TRAIN
    outside = training & ~in_random_sample(bucket.keys, sample)
    active = bucket.active(*catalogue.bounds, sample.active_days)
    events = bucket.discoveries(*catalogue.bounds, catalogue.offer_mask)
    positives = np.bincount(bucket.event_user[events], minlength=len(bucket.keys))

    def count(weights: np.ndarray) -> np.ndarray:
        return np.bincount(bucket.territory, weights=weights, minlength=len(catalogue.offers)).astype(np.int64)

    return UserCounts(
        users=count(np.ones(len(bucket.keys))),
        training=count(training),
        random=count(training & ~outside),
        active=count(active),
        addable=count(outside & active),
        addable_positives=count(positives * (outside & active)),
        other_positives=count(positives * outside),
    )


def count_sample(
    bucket_index: int,
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    rates: np.ndarray,
    catalogues: list[Catalogue],
) -> SampleCounts:
    """Pass 2 over one bucket, with the added set's rates and the catalogue of each period."""
    window = catalogues[0]
    bucket = Bucket.read(lake, bucket_index)
    rows, added = sampled_users(bucket, sample, calendar, rates)
    sampled = np.zeros(len(bucket.keys), dtype=bool)
    sampled[rows] = True
    positives, eligible, user_days = zip(
        *(_count_period(bucket, sampled, catalogue, calendar) for catalogue in catalogues), strict=True
    )
    last_day = window.bounds[1] - timedelta(seconds=calendar.day_s)
    last_day_users = bucket.event_user[bucket.discoveries(last_day, window.bounds[1], window.offer_mask)]
    last_day_users = last_day_users[sampled[last_day_users]]
    discoverers = bucket.event_user[bucket.discoveries(*window.bounds)]
    return SampleCounts(
        sampled=len(rows),
        added=np.bincount(bucket.territory[rows[added]], minlength=len(rates)),
        positives=np.array(positives),
        eligible=np.array(eligible),
        user_days=np.array(user_days),
        last_day=len(last_day_users),
        last_day_cold=int((~bucket.has_events_before(last_day)[last_day_users]).sum()),
        not_offered=int(sampled[discoverers].sum()) - int(positives[0].sum()),
    )


def _count_period(
    bucket: Bucket, sampled: np.ndarray, catalogue: Catalogue, calendar: Calendar
) -> tuple[np.ndarray, np.ndarray, int]:
    """Positives and eligible negatives of each territory, and (user, day)s with a positive."""
    offered, (start, end) = catalogue.offer_mask, catalogue.bounds

    def per_territory(users: np.ndarray) -> np.ndarray:
        return np.bincount(bucket.territory[users], minlength=len(offered))

    events = bucket.discoveries(start, end, offered)
    events = events[sampled[bucket.event_user[events]]]
    users = bucket.event_user[events]
    known_user, known_title = user_and_title(bucket.known_pairs(start, end))
    known_user = known_user[sampled[known_user] & offered[bucket.territory[known_user], known_title]]
    eligible = offered.sum(1) * per_territory(np.flatnonzero(sampled)) - per_territory(known_user)
    day = (bucket.event_time[events] - to_datetime64(start)) // np.timedelta64(calendar.day_s, "s")
    user_days = len(np.unique(np.stack([users, day.astype(np.int64)], axis=1), axis=0))
    return per_territory(users), eligible, user_days

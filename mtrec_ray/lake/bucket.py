"""A bucket of the lake as arrays, with first-time discoveries, and the titles on offer.

Legend: `N` users of the bucket, `E` events, `T` titles of the catalogue.
"""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.schema import offered_in


@dataclass(frozen=True)
class Bucket:
    """Users and events of one bucket."""

    keys: np.ndarray  # (N,) uint64 hash key of each user id
    territory: np.ndarray  # (N,) int32 index into the manifest's territories
    event_user: np.ndarray  # (E,) int64 row of the event's user
    event_title: np.ndarray  # (E,) int32 title index
    event_time: np.ndarray  # (E,) datetime64[us], UTC
    users: pa.Table  # The requested user columns

    @staticmethod
    def read(lake: Lake, bucket: int, user_columns: tuple[str, ...] = ()) -> "Bucket":
        users = lake.read("users", bucket, columns=["user_id", "territory", *user_columns])
        events = lake.read("events", bucket)
        return Bucket(
            keys=user_keys(users["user_id"].to_numpy(zero_copy_only=False)),
            territory=_index_in(users["territory"], pa.array(lake.territory_names())).astype(np.int32),
            event_user=_index_in(events["user_id"], users["user_id"].combine_chunks()).astype(np.int64),
            event_title=_index_in(events["title_id"], lake.title_ids).astype(np.int32),
            event_time=events["timestamp"].to_numpy().astype("datetime64[us]"),
            users=users,
        )

    @cached_property
    def first_discoveries(self) -> np.ndarray:
        """(F,) event rows: a user's first event of a title in a calendar month, by user and title."""
        month = self.event_time.astype("datetime64[M]").astype(np.int64)
        order = np.lexsort((self.event_time, month, self.event_title, self.event_user))
        is_first = np.ones(len(order), dtype=bool)
        columns = [column[order] for column in (self.event_user, self.event_title, month)]
        is_first[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
        return order[is_first]

    @cached_property
    def first_events(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted `pair_code`s of all events, and the time of each pair's first."""
        code = pair_code(self.event_user, self.event_title)
        order = np.lexsort((self.event_time, code))
        codes, first = np.unique(code[order], return_index=True)
        return codes, self.event_time[order][first]

    def seen(self, user_row: np.ndarray, title_index: np.ndarray, time: np.ndarray) -> np.ndarray:
        """(P,) bool: the pair has an event before the time, (P,) or one for all."""
        codes, first = self.first_events
        wanted = pair_code(user_row, title_index)
        place = np.minimum(np.searchsorted(codes, wanted), max(0, len(codes) - 1))
        return (codes[place] == wanted) & (first[place] < time) if len(codes) else np.zeros(len(wanted), bool)

    def discoveries(self, start: datetime, end: datetime, offer_mask: np.ndarray | None = None) -> np.ndarray:
        """(F,) event rows of the first-time discoveries in [start, end).

        `offer_mask` (territories, T) leaves out titles that are not offered in the user's territory.
        """
        rows = self.first_discoveries
        rows = rows[within(self.event_time[rows], start, end)]
        if offer_mask is None:
            return rows
        return rows[offer_mask[self.territory[self.event_user[rows]], self.event_title[rows]]]

    def known_pairs(self, start: datetime, end: datetime) -> np.ndarray:
        """Sorted `pair_code`s with an event since the month of `start`: they are no negatives."""
        seen = (self.event_time >= month_start(start)) & (self.event_time < to_datetime64(end))
        return np.unique(pair_code(self.event_user[seen], self.event_title[seen]))

    def has_events(self, start: datetime, end: datetime) -> np.ndarray:
        """(N,) bool: at least one event in [start, end)."""
        return np.bincount(self.event_user[within(self.event_time, start, end)], minlength=len(self.keys)) > 0

    def active(self, start: datetime, end: datetime, active_days: int) -> np.ndarray:
        """(N,) bool: at least one event in the last `active_days` of [start, end)."""
        return self.has_events(end - min(timedelta(days=active_days), end - start), end)


@dataclass(frozen=True)
class Catalogue:
    """Titles that are offered in each territory and promoted in a period."""

    title_ids: pa.Array
    offer_mask: np.ndarray  # (territories, T) bool
    bounds: tuple[datetime, datetime]  # [start, end) of the period

    @staticmethod
    def of(lake: Lake, start: datetime, end: datetime) -> "Catalogue":
        """The catalogue of [start, end); a title without promotion dates is always promoted."""
        titles = lake.titles
        offered = offered_in(titles, lake.territory_names())
        for column, compare, bound in (("promoted_from", pc.less, end), ("promoted_until", pc.greater, start)):
            if column in titles.column_names:
                offered &= pc.fill_null(compare(titles[column], pa.scalar(bound)), True).to_numpy()
        return Catalogue(lake.title_ids, offered, (start, end))

    @cached_property
    def offers(self) -> list[np.ndarray]:
        """Ascending int32 title indices of each territory."""
        return [np.flatnonzero(offered).astype(np.int32) for offered in self.offer_mask]


def within(times: np.ndarray, start: datetime, end: datetime) -> np.ndarray:
    """Mask of times in [start, end)."""
    return (times >= to_datetime64(start)) & (times < to_datetime64(end))


def to_datetime64(time: datetime) -> np.datetime64:
    """A UTC datetime as numpy's naive datetime64[us]."""
    return np.datetime64(time.replace(tzinfo=None), "us")


def month_start(time: datetime) -> np.datetime64:
    """Start of a UTC datetime's calendar month."""
    return to_datetime64(time).astype("datetime64[M]").astype("datetime64[us]")


def pair_code(user_row: np.ndarray, title_index: np.ndarray) -> np.ndarray:
    """One int64 for each (user row, title index) pair of a bucket; orders by user, then title."""
    return (user_row.astype(np.int64) << 32) | title_index.astype(np.int64)


def user_and_title(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """User rows and title indices of `pair_code`s."""
    return code >> 32, code & 0xFFFFFFFF


def _index_in(values: pa.ChunkedArray, value_set: pa.Array) -> np.ndarray:
    return pc.index_in(values, value_set=value_set).to_numpy()

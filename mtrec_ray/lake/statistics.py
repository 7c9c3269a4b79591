"""What `mtrec lake show` counts, by territory and of the whole lake.

Buckets are counted one at a time; histograms keep the memory of their sum small.
"""

# pyright: reportAttributeAccessIssue=false

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.schema import offered_in
from mtrec_ray.sources.calendar import ACTIVE_DAYS

QUANTILES = (0, 25, 50, 75, 90, 99, 100)  # percent


@dataclass
class LakeCounts:
    """Counts of one bucket, or of all of them added up."""

    territories: np.ndarray  # (4, territories): users, active users, window events and test events
    users_by_events: Counter[int] = field(default_factory=Counter)  # Number of events -> users who have so many
    events_by_day: Counter[int] = field(default_factory=Counter)  # Days since 1970, UTC
    times: list[datetime] = field(default_factory=list)  # Of first and last events
    missing: Counter[str] = field(default_factory=Counter)  # Users without a value of an attribute
    num_tied: int = 0  # Users whose last two events carry one timestamp

    @staticmethod
    def of_bucket(bucket: int, lake: Lake) -> "LakeCounts":
        names = tuple(lake.manifest.attributes)
        rows = Bucket.read(lake, bucket, names)
        found = LakeCounts(_count_territories(rows, lake))
        found.missing.update({name: rows.users[name].null_count for name in names})
        num_events = np.bincount(rows.event_user, minlength=len(rows.keys))
        found.users_by_events.update(_histogram(num_events))
        found.events_by_day.update(_histogram(rows.event_time.astype("datetime64[D]").astype(np.int64)))
        if len(rows.event_time):
            ends = (rows.event_time.min(), rows.event_time.max())
            found.times = [end.astype(datetime).replace(tzinfo=UTC) for end in ends]
        times = rows.event_time[np.lexsort((rows.event_time, rows.event_user))]
        last = np.cumsum(num_events)[num_events > 1] - 1
        found.num_tied = int((times[last] == times[last - 1]).sum())
        return found

    @staticmethod
    def of_all(buckets: Iterable["LakeCounts"], num_territories: int) -> "LakeCounts":
        total = LakeCounts(np.zeros((4, num_territories), np.int64))
        for one in buckets:
            total.territories += one.territories
            for name in ("users_by_events", "events_by_day", "missing"):
                getattr(total, name).update(getattr(one, name))
            total.times = [f(times) for f in (min, max) if (times := [*total.times, *one.times])]
            total.num_tied += one.num_tied
        return total

    def events_per_user(self) -> dict[str, int]:
        """Events of the users at `QUANTILES`, of two the smaller number, by percent."""
        sizes = sorted(self.users_by_events)
        before = np.cumsum([self.users_by_events[size] for size in sizes])
        if not len(before):
            return {}
        places = {percent: int((before[-1] - 1) * percent // 100) for percent in QUANTILES}
        return {str(q): int(sizes[np.searchsorted(before, place, side="right")]) for q, place in places.items()}

    def document(self, lake: Lake) -> dict[str, Any]:
        """Parts of `LakeSummary.document`; shares are of 1, None where there is nothing."""
        num_users = sum(self.users_by_events.values())
        num_events = sum(self.events_by_day.values())
        several = sum(users for size, users in self.users_by_events.items() if size > 1)
        by_day = [self.events_by_day[day] for day in (min, max) for day in [day(self.events_by_day, default=0)]]
        first, last = [time.isoformat() for time in self.times] or (None, None)
        columns = [name for name in ("name", "genres", "synopsis") if name in lake.titles.column_names]
        columns += lake.manifest.title_categoricals
        return {
            "events_per_user": {
                "quantiles": self.events_per_user(),
                "without_events": _share(self.users_by_events[0], num_users),
                "last_two_at_one_time": _share(self.num_tied, several),
            },
            "missing": {
                "users": {name: _share(self.missing[name], num_users) for name in lake.manifest.attributes},
                "titles": {name: _share(lake.titles[name].null_count, lake.titles.num_rows) for name in columns},
            },
            "event_times": {
                "first": first,
                "last": last,
                "first_day": _share(by_day[0], num_events),
                "last_day": _share(by_day[1], num_events),
            },
        }


def territory_table(counts: np.ndarray, lake: Lake) -> pd.DataFrame:
    """A row per territory, the one with most users first; `counts` as of `LakeCounts`."""
    users, active, window_events, test_events = counts
    offered = offered_in(lake.titles, lake.territory_names())
    is_local = pc.equal(pc.list_value_length(lake.titles["territories"]), 1).fill_null(False).to_numpy()
    rows = pd.DataFrame(
        {
            "territory": lake.territory_names(),
            "region": [territory.region for territory in lake.manifest.territories],
            "users": users,
            "active_users": active,
            "active_fraction": np.where(users > 0, active / np.maximum(users, 1), np.nan),
            "window_events": window_events,
            "test_events": test_events,
            "titles_offered": offered.sum(axis=1),
            "local_titles": offered[:, is_local].sum(axis=1),
        }
    )
    return rows.sort_values(["users", "territory"], ascending=[False, True], ignore_index=True)


def _count_territories(rows: Bucket, lake: Lake) -> np.ndarray:
    calendar = lake.manifest.calendar
    window = calendar.day_bounds(0)
    test_days = window[1], calendar.day_bounds(max(calendar.num_evaluation_days, 1))[1]
    events = [rows.event_user[within(rows.event_time, *bounds)] for bounds in (window, test_days)]
    groups = [slice(None), rows.active(*window, ACTIVE_DAYS), *events]
    num_territories = len(lake.manifest.territories)
    return np.stack([np.bincount(rows.territory[group], minlength=num_territories) for group in groups])


def _histogram(values: np.ndarray) -> dict[int, int]:
    distinct, counts = np.unique(values, return_counts=True)
    return dict(zip(distinct.tolist(), counts.tolist(), strict=True))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

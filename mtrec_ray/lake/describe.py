"""`lake show`: one line per territory, counted bucket by bucket."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.console import ProgressCallback
from mtrec_ray.lake.cluster import run_tasks
from mtrec_ray.lake.manifest import Lake


@dataclass(frozen=True)
class TerritoryRow:
    """What a lake holds of one territory."""

    territory: str
    region: str
    users: int
    active_users: int
    """With at least one event in the last `active_days` of the training window."""
    active_share: float
    """NaN without users."""
    window_events: int
    test_events: int
    """Events of the evaluation days."""
    titles_offered: int
    local_titles: int
    """Offered here and nowhere else."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data by field name."""
        return asdict(self)


def describe_lake(uri: str, active_days: int = 90, progress: ProgressCallback | None = None) -> list[TerritoryRow]:
    """One row per territory, the largest first. Ray must be initialised.

    Raises:
        UserError: no lake there.
    """
    lake = Lake.open(uri)
    counted = run_tasks(
        "counting", partial(count_bucket, lake, active_days), lake.manifest.num_buckets, progress=progress
    )
    users, active, window, test = np.sum(counted, axis=0).tolist()
    offered, local = _titles_by_territory(lake)
    rows = [
        TerritoryRow(
            territory.name,
            territory.region,
            users[i],
            active[i],
            active[i] / users[i] if users[i] else float("nan"),
            window[i],
            test[i],
            offered[i],
            local[i],
        )
        for i, territory in enumerate(lake.manifest.territories)
    ]
    return sorted(rows, key=lambda row: (-row.users, row.territory))


def count_bucket(lake: Lake, active_days: int, bucket: int) -> list[list[int]]:
    """(users, active users, window events, test events) of one bucket, each a list over territories."""
    calendar, names = lake.manifest.calendar, pa.array(lake.territory_names(), pa.string())
    users = lake.read("users", bucket, columns=["user_id", "territory"])
    events = lake.read("events", bucket, columns=["user_id", "timestamp"])
    home = pc.index_in(users["territory"], value_set=names).to_numpy()
    user_row = pc.index_in(events["user_id"], value_set=users["user_id"].combine_chunks()).to_numpy()
    moment = events["timestamp"].cast(pa.int64()).to_numpy()
    start, end = (_us(m) for m in (calendar.window_start, calendar.window_end))
    after = _us(calendar.day_bounds(max(calendar.num_evaluation_days, 1))[1])
    in_window = (moment >= start) & (moment < end)
    recent = in_window & (moment >= _us(calendar.window_end - timedelta(days=active_days)))
    in_test = (moment >= end) & (moment < after)
    chosen = [home, home[np.unique(user_row[recent])], home[user_row[in_window]], home[user_row[in_test]]]
    return [np.bincount(rows, minlength=len(names)).tolist() for rows in chosen]


def _titles_by_territory(lake: Lake) -> tuple[list[int], list[int]]:
    names = lake.territory_names()
    offered, local = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    everywhere = 0
    for where in lake.titles["territories"].to_pylist():
        everywhere += not where
        for name in where:
            offered[name] += 1
            local[name] += len(where) == 1
    return [offered[name] + everywhere for name in names], [local[name] for name in names]


def _us(moment) -> int:
    return pa.scalar(moment, pa.timestamp("us", tz="UTC")).value

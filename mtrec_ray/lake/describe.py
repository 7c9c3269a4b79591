"""`lake show`: one line per territory, counted bucket by bucket."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mtrec_ray.console import ProgressCallback
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.offers import offered_in


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
    buckets = range(lake.manifest.num_buckets)
    tasks = map_tasks(count_bucket, buckets, lake, active_days, stage="counting", progress=progress)
    users, active, window, test = np.sum([counts for _, counts in tasks], axis=0).tolist()
    offered = offered_in(lake.titles, lake.territory_names())
    is_local = pc.equal(pc.list_value_length(lake.titles["territories"]), 1).fill_null(False).to_numpy()
    rows = [
        TerritoryRow(
            territory.name,
            territory.region,
            users[i],
            active[i],
            active[i] / users[i] if users[i] else float("nan"),
            window[i],
            test[i],
            int(offered[i].sum()),
            int(offered[i, is_local].sum()),
        )
        for i, territory in enumerate(lake.manifest.territories)
    ]
    return sorted(rows, key=lambda row: (-row.users, row.territory))


def count_bucket(index: int, lake: Lake, active_days: int) -> list[list[int]]:
    """(users, active users, window events, test events) of one bucket, each a list over territories."""
    calendar = lake.manifest.calendar
    bucket = Bucket.read(lake, index, lake.titles["title_id"].combine_chunks())
    test_days = calendar.window_end, calendar.day_bounds(max(calendar.num_evaluation_days, 1))[1]
    window, test = (
        bucket.event_user[within(bucket.event_time, *bounds)] for bounds in (calendar.day_bounds(0), test_days)
    )
    rows = [slice(None), bucket.active(*calendar.day_bounds(0), active_days), window, test]
    num_territories = len(lake.manifest.territories)
    return [np.bincount(bucket.territory[chosen], minlength=num_territories).tolist() for chosen in rows]

"""`mtrec lake show`: counts by territory, bucket by bucket."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import numpy as np
import pandas as pd
import pyarrow.compute as pc

from mtrec_ray.console import ProgressCallback
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.offers import offered_in
from mtrec_ray.lake.summary import LakeSummary


def describe_lake(uri: str, active_days: int = 90, progress: ProgressCallback | None = None) -> LakeSummary:
    """Count users, events and titles by territory. Ray must be initialised.

    Active users have an event in the last `active_days` of the training window; test events are those of the evaluation
    days; local titles are offered in one territory only.
    """
    lake = Lake.open(uri)
    buckets = range(lake.manifest.num_buckets)
    tasks = map_tasks(count_territories, buckets, lake, active_days, stage="counting", progress=progress)
    users, active, window_events, test_events = np.sum([counts for _, counts in tasks], axis=0)
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
    rows = rows.sort_values(["users", "territory"], ascending=[False, True], ignore_index=True)
    return LakeSummary(uri, lake.manifest, rows)


def count_territories(bucket: int, lake: Lake, active_days: int) -> np.ndarray:
    """(4, territories): users, active users, window events and test events of one bucket."""
    calendar = lake.manifest.calendar
    rows = Bucket.read(lake, bucket, lake.titles["title_id"].combine_chunks())
    window = calendar.day_bounds(0)
    test_days = window[1], calendar.day_bounds(max(calendar.num_evaluation_days, 1))[1]
    events = [rows.event_user[within(rows.event_time, *bounds)] for bounds in (window, test_days)]
    groups = [slice(None), rows.active(*window, active_days), *events]
    num_territories = len(lake.manifest.territories)
    return np.stack([np.bincount(rows.territory[group], minlength=num_territories) for group in groups])

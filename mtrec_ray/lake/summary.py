"""The result of the jobs that build, embed and describe a lake, and `mtrec lake show`."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.manifest import Lake, Manifest
from mtrec_ray.lake.schema import offered_in
from mtrec_ray.sources.calendar import ACTIVE_DAYS, DAY_S


@dataclass(frozen=True)
class LakeSummary:
    """A lake that was built, embedded or described."""

    lake: str
    manifest: Manifest
    territories: pd.DataFrame | None = None  # Of `show_lake`: one row per territory, the one with most users first

    @property
    def metrics(self) -> pd.DataFrame:
        """`territories`, or rows of each table by `status`: accepted, or why rejected."""
        if self.territories is not None:
            return self.territories
        rows = [(table, "accepted", count) for table, count in self.manifest.counts.items()]
        rows += [(*reason.split("/", 1), count) for reason, count in self.manifest.quarantined.items()]
        return pd.DataFrame(rows, columns=["table", "status", "num_rows"])

    def document(self) -> dict[str, Any]:
        names = ("source", "counts", "quarantined", "num_buckets", "embeddings", "notes")
        document = {"version": 1, "lake": self.lake, **self.manifest.model_dump(mode="json", include=set(names))}
        document |= {"lake_hash": self.manifest.lake_hash, "content_hashes": self.manifest.content_hashes}
        return document if self.territories is None else document | {"territories": self.territories.to_dict("records")}

    def tables(self) -> list[RenderableType]:
        manifest, calendar, embeddings = self.manifest, self.manifest.calendar, self.manifest.embeddings
        widths = f"user {embeddings.user_width}, title {embeddings.title_width}"
        num_regions = len({territory.region for territory in manifest.territories})
        facts = {
            "source": manifest.source,
            **manifest.counts,
            "territories": f"{len(manifest.territories)} in {num_regions} regions",
            "attributes": ", ".join(f"{name} ({len(v)})" for name, v in manifest.attributes.items()) or "none",
            "window": f"{calendar.window_start:%Y-%m-%d %H:%M} to {calendar.window_end:%Y-%m-%d %H:%M} UTC",
            "evaluation": f"{calendar.num_evaluation_days} days of {calendar.day_s / DAY_S:g} d",
            "embeddings": widths if embeddings.user_width else "none yet",
            "buckets": manifest.num_buckets,
            "quarantined": ", ".join(f"{reason}: {n:,}" for reason, n in manifest.quarantined.items()) or "none",
            "hash": manifest.lake_hash[:16],
            "notes": "\n".join(manifest.notes) or "none",
        }
        if self.territories is None:
            return [facts_table(f"Lake {self.lake}", facts)]
        table = Table("territory", "region", title="Territories")
        for name in self.territories.columns[2:]:
            table.add_column(name.replace("_", " "), justify="right")
        for row in self.territories.itertuples(index=False):
            formats = ({int: ",", float: ",.3f"}.get(type(value), "") for value in row)
            table.add_row(*("-" if value != value else format(value, f) for value, f in zip(row, formats, strict=True)))
        return [facts_table(f"Lake {self.lake}", facts), table]


def show_lake(config: LakeConfig, progress: ProgressCallback | None = None) -> LakeSummary:
    """Count users, events and titles by territory.

    Test events are those of the evaluation days; local titles are offered in one territory only.
    """
    lake = Lake.open(config.lake)
    tasks = map_tasks(count_territories, range(lake.manifest.num_buckets), lake, stage="counting", progress=progress)
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
    return LakeSummary(config.lake, lake.manifest, rows)


def count_territories(bucket: int, lake: Lake) -> np.ndarray:
    """(4, territories): users, active users, window events and test events of one bucket."""
    calendar = lake.manifest.calendar
    rows = Bucket.read(lake, bucket)
    window = calendar.day_bounds(0)
    test_days = window[1], calendar.day_bounds(max(calendar.num_evaluation_days, 1))[1]
    events = [rows.event_user[within(rows.event_time, *bounds)] for bounds in (window, test_days)]
    groups = [slice(None), rows.active(*window, ACTIVE_DAYS), *events]
    num_territories = len(lake.manifest.territories)
    return np.stack([np.bincount(rows.territory[group], minlength=num_territories) for group in groups])

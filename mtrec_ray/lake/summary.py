"""What the jobs of a lake return: figures as a table, a document for programs, tables for people."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.lake.manifest import Manifest
from mtrec_ray.sources.calendar import DAY_S

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class LakeSummary:
    """A committed lake, as `build_lake` and `embed_lake` return it."""

    lake: str
    manifest: Manifest

    @property
    def metrics(self) -> "pd.DataFrame":
        """Rows of each `table` by `status`: accepted, or the reason of their rejection."""
        import pandas as pd

        manifest = self.manifest
        rows = [(table, "accepted", count) for table, count in manifest.counts.items()]
        rows += [(*reason.split("/", 1), count) for reason, count in manifest.quarantined.items()]
        return pd.DataFrame(rows, columns=["table", "status", "num_rows"])

    def document(self) -> dict[str, Any]:
        manifest = self.manifest
        return {
            "version": 1,
            "lake": self.lake,
            "source": manifest.source,
            "counts": manifest.counts,
            "quarantined": manifest.quarantined,
            "num_buckets": manifest.num_buckets,
            "embeddings": manifest.embeddings.model_dump(mode="json"),
            "lake_hash": manifest.lake_hash,
            "content_hashes": manifest.content_hashes,
            "notes": manifest.notes,
        }

    def tables(self) -> list[RenderableType]:
        manifest, calendar, embeddings = self.manifest, self.manifest.calendar, self.manifest.embeddings
        regions = {territory.region for territory in manifest.territories}
        facts = {
            "source": manifest.source,
            **{name: f"{count:,}" for name, count in manifest.counts.items()},
            "territories": f"{len(manifest.territories)} in {len(regions)} regions",
            "attributes": ", ".join(f"{name} ({len(values)})" for name, values in manifest.attributes.items())
            or "none",
            "window": f"{calendar.window_start:%Y-%m-%d %H:%M} to {calendar.window_end:%Y-%m-%d %H:%M} UTC",
            "evaluation": f"{calendar.num_evaluation_days} days of {calendar.day_s / DAY_S:g} d",
            "embeddings": f"user {embeddings.user_width}, title {embeddings.title_width}"
            if embeddings.user_width
            else "none yet",
            "buckets": str(manifest.num_buckets),
            "quarantined": ", ".join(f"{reason}: {n:,}" for reason, n in manifest.quarantined.items()) or "none",
            "hash": manifest.lake_hash[:16],
        }
        table = Table(title=f"Lake {self.lake}", show_header=False)
        for name, value in [*facts.items(), *(("note", note) for note in manifest.notes)]:
            table.add_row(name, value)
        return [table]


@dataclass(frozen=True)
class LakeDescription:
    """A lake, territory by territory, as `describe_lake` returns it."""

    summary: LakeSummary
    metrics: "pd.DataFrame"
    """One row per territory, the one with most users first."""

    @property
    def manifest(self) -> Manifest:
        return self.summary.manifest

    def document(self) -> dict[str, Any]:
        return self.summary.document() | {"territories": self.metrics.to_dict("records")}

    def tables(self) -> list[RenderableType]:
        table = Table(title="Territories")
        for name in self.metrics.columns:
            table.add_column(name.replace("_", " "), justify="left" if name in ("territory", "region") else "right")
        for row in self.metrics.itertuples(index=False):
            table.add_row(*map(_cell, row))
        return [*self.summary.tables(), table]


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:,.3f}"

"""The result of the jobs that build, embed and describe a lake."""

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
    """A lake that was built, embedded or described."""

    lake: str
    manifest: Manifest
    territories: "pd.DataFrame | None" = None
    """Of `describe_lake`: one row per territory, the one with most users first."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """`territories`, or rows of each table by `status`: accepted, or why rejected."""
        import pandas as pd

        if self.territories is not None:
            return self.territories
        rows = [(table, "accepted", count) for table, count in self.manifest.counts.items()]
        rows += [(*reason.split("/", 1), count) for reason, count in self.manifest.quarantined.items()]
        return pd.DataFrame(rows, columns=["table", "status", "num_rows"])

    def document(self) -> dict[str, Any]:
        manifest = self.manifest
        document = {
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
        return document if self.territories is None else document | {"territories": self.territories.to_dict("records")}

    def tables(self) -> list[RenderableType]:
        manifest, calendar, embeddings = self.manifest, self.manifest.calendar, self.manifest.embeddings
        regions = {territory.region for territory in manifest.territories}
        widths = f"user {embeddings.user_width}, title {embeddings.title_width}"
        facts = {
            "source": manifest.source,
            **{name: f"{count:,}" for name, count in manifest.counts.items()},
            "territories": f"{len(manifest.territories)} in {len(regions)} regions",
            "attributes": ", ".join(f"{name} ({len(v)})" for name, v in manifest.attributes.items()) or "none",
            "window": f"{calendar.window_start:%Y-%m-%d %H:%M} to {calendar.window_end:%Y-%m-%d %H:%M} UTC",
            "evaluation": f"{calendar.num_evaluation_days} days of {calendar.day_s / DAY_S:g} d",
            "embeddings": widths if embeddings.user_width else "none yet",
            "buckets": str(manifest.num_buckets),
            "quarantined": ", ".join(f"{reason}: {n:,}" for reason, n in manifest.quarantined.items()) or "none",
            "hash": manifest.lake_hash[:16],
        }
        table = Table(title=f"Lake {self.lake}", show_header=False)
        for name, value in [*facts.items(), *(("note", note) for note in manifest.notes)]:
            table.add_row(name, value)
        return [table] if self.territories is None else [table, _territory_table(self.territories)]


def _territory_table(rows: "pd.DataFrame") -> Table:
    table = Table(title="Territories")
    for name in rows.columns:
        table.add_column(name.replace("_", " "), justify="left" if name in ("territory", "region") else "right")
    for row in rows.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    return table


def _cell(value: str | int | float) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else value

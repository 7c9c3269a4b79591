"""`mtrec lake show` and `mtrec lake check`: what a lake holds, and what is damaged."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.bucket import Bucket, within
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake, Manifest
from mtrec_ray.lake.schema import offered_in, required_columns
from mtrec_ray.lake.validate import count_bad_rows, embedding_problems, split_rows
from mtrec_ray.lake.write import QUARANTINE, list_files
from mtrec_ray.sources.calendar import ACTIVE_DAYS, DAY_S

NUM_SHOWN = 20


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


@dataclass(frozen=True)
class LakeVerification:
    """A lake that is complete and unchanged."""

    lake: str
    lake_hash: str
    num_files: dict[str, int]
    num_rows: dict[str, int]
    unlisted: list[str]  # Files that `lake.json` does not list; no reader sees them

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per table: `table`, `num_files`, `num_rows`."""
        columns = {"num_files": self.num_files, "num_rows": self.num_rows}
        return pd.DataFrame(columns).rename_axis("table").reset_index()

    def document(self) -> dict[str, Any]:
        return {"version": 1, "ok": True, "problems": []} | asdict(self)

    def tables(self) -> list[RenderableType]:
        rows = ", ".join(f"{rows:,} {table}" for table, rows in self.num_rows.items())
        text = f"lake {self.lake}: {sum(self.num_files.values())} files, {rows}; 0 problems"
        return [text + (f", {len(self.unlisted)} files that {MANIFEST_NAME} does not list" if self.unlisted else "")]


def check_lake(config: LakeConfig, progress: ProgressCallback | None = None) -> LakeVerification:
    """Verify a lake, bucket by bucket; UserError that lists what is damaged."""
    lake = Lake.open(config.lake)
    manifest, problems = lake.manifest, []
    for name, files in manifest.files.items():
        rows, count = sum(file.rows for file in files), manifest.counts.get(name)
        problems += [f"{name}: files of {rows} rows, counts has {count}"] * (rows != count)
    titles = _read_table(lake, "titles", None, problems)
    if titles is not None:  # buckets are validated against the titles
        problems += _check_rows(lake, "titles", titles, "title_id")
        tasks = map_tasks(verify_bucket, range(manifest.num_buckets), lake, stage="checking", progress=progress)
        problems += [problem for _, found in sorted(tasks) for problem in found]
    if problems:
        raise UserError(f"lake {config.lake!r} is damaged, build it again:\n" + "\n".join(problems[:NUM_SHOWN]))
    unlisted = sorted(list_files(config.lake).keys() - manifest.listed_paths())
    unlisted = [path for path in unlisted if not path.startswith(QUARANTINE)]
    num_files = {name: len(files) for name, files in manifest.files.items()}
    return LakeVerification(config.lake, manifest.lake_hash, num_files, manifest.counts, unlisted)


def verify_bucket(bucket: int, lake: Lake) -> list[str]:
    """Problems of one bucket of users, events and candidates."""
    problems: list[str] = []
    names = ["users", "events"] + ["candidates"] * ("candidates" in lake.manifest.files)
    tables = {name: _read_table(lake, name, bucket, problems) for name in names}
    if problems:
        return problems
    ids = tables["users"]["user_id"].combine_chunks(), lake.title_ids
    for name, rows in tables.items():
        found = _check_rows(lake, name, rows, "user_id", *ids)
        misplaced = int((bucket_of(user_keys(rows["user_id"].to_numpy()), lake.manifest.num_buckets) != bucket).sum())
        found += [f"{name}: {misplaced} rows belong to another bucket"] * bool(misplaced)
        problems += [f"bucket {bucket} of {problem}" for problem in found]
    return problems


def _read_table(lake: Lake, name: str, bucket: int | None, problems: list[str]) -> Any:
    """A table or a bucket of it; None with `problems` of its files."""
    parts, found, embeddings = [], [], lake.manifest.embeddings
    columns = required_columns(name, lake.manifest)
    if name == "users" and embeddings.num_folds:
        columns["fold_embeddings"] = pa.binary(2 * embeddings.user_width * embeddings.num_folds)
    for file in lake.manifest.files_of(name, bucket):
        try:
            data = read_file(join(lake.uri, file.path))
        except FileNotFoundError:
            found.append(f"{file.path}: is missing")
            continue
        if sha256(data).hexdigest() != file.sha256:
            found.append(f"{file.path}: content differs from {MANIFEST_NAME} (SHA-256)")
            continue
        part = pq.read_table(pa.BufferReader(data))
        if part.num_rows != file.rows:
            found.append(f"{file.path}: {part.num_rows} rows, {MANIFEST_NAME} lists {file.rows}")
        for column, kind in columns.items():
            stored = part.schema.field(column).type if column in part.column_names else "missing"
            if stored != kind:
                found.append(f"{file.path}: column {column!r} is {stored}, should be {kind}")
        parts.append(part)
    if not parts and not found:
        found.append(f"{name}: {MANIFEST_NAME} lists no file" + ("" if bucket is None else f" of bucket {bucket}"))
    problems += found
    return None if found else pa.concat_tables(parts)


def _check_rows(lake: Lake, name: str, rows: pa.Table, key: str, *ids: pa.Array) -> list[str]:
    rejected = count_bad_rows(name, split_rows(name, rows, lake.manifest, *ids)[1])
    problems = [f"{name}: {found.total} rows of {reason}" for reason, found in rejected.items()]
    if "fold_embeddings" in rows.column_names:
        width = lake.manifest.embeddings.user_width * lake.manifest.embeddings.num_folds
        reasons = embedding_problems(rows["fold_embeddings"], width)
        problems += [f"{name}: {mask.sum()} rows of fold_embeddings/{reason}" for reason, mask in reasons if mask.any()]
    values = rows[key].to_numpy()
    return problems + [f"{name}: rows are not sorted"] * (not np.all(values[1:] >= values[:-1]))

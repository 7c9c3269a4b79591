"""`mtrec lake show` and `mtrec lake check`: what a lake holds, and what is damaged."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import asdict, dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.manifest import MANIFEST_NAME, PROJECTION, Lake, Manifest
from mtrec_ray.lake.schema import required_columns
from mtrec_ray.lake.statistics import LakeCounts, territory_table
from mtrec_ray.lake.validate import count_bad_rows, embedding_problems, in_order_of_cause, split_rows
from mtrec_ray.lake.write import QUARANTINE, list_files
from mtrec_ray.sources.calendar import DAY_S

NUM_SHOWN = 20


@dataclass(frozen=True)
class LakeSummary:
    """A lake that was built, embedded or described."""

    lake: str
    manifest: Manifest
    territories: pd.DataFrame | None = None  # Of `show_lake`: one row per territory, the one with most users first
    statistics: dict[str, Any] = field(default_factory=dict)  # Of `show_lake`, as in its document

    @property
    def metrics(self) -> pd.DataFrame:
        """`territories`, or rows of each table by `status`: accepted, or why rejected."""
        if self.territories is not None:
            return self.territories
        rows = [(table, "accepted", count) for table, count in self.manifest.counts.items()]
        rows += [(*reason.split("/", 1), count) for reason, count in self.manifest.quarantined.items()]
        return pd.DataFrame(rows, columns=["table", "status", "num_rows"])

    def document(self) -> dict[str, Any]:
        names = {"source", "counts", "quarantined", "num_buckets", "embeddings", "notes", "raw_files", "left_out"}
        document = {"version": 1, "lake": self.lake, **self.manifest.model_dump(mode="json", include=names)}
        document |= {"lake_hash": self.manifest.lake_hash, "content_hashes": self.manifest.content_hashes}
        if self.territories is None:
            return document
        return document | {"territories": self.territories.to_dict("records")} | self.statistics

    def tables(self) -> list[RenderableType]:
        facts = facts_table(f"Lake {self.lake}", self._facts())
        if self.territories is None:
            return [facts]
        table, shown = Table(title="Territories"), self.territories.drop(columns="active_fraction")  # to fit 80 columns
        for name in shown.columns:
            is_text = name in ("territory", "region")
            table.add_column(name.replace("_", "\n"), justify="left" if is_text else "right", overflow="fold")
        for row in shown.itertuples(index=False):
            table.add_row(*(format(value, "," if isinstance(value, int) else "") for value in row))
        return [facts, table]

    def _facts(self) -> dict[str, object]:
        manifest, calendar, embeddings = self.manifest, self.manifest.calendar, self.manifest.embeddings
        vectors = f"user {embeddings.user_width}, title {embeddings.title_width}\n{embeddings.description}".strip()
        num_regions = len({territory.region for territory in manifest.territories})
        files = [f"{file.path}: {file.rows:,} rows of {file.table}" for file in manifest.raw_files]
        more = [f"and {len(files) - NUM_SHOWN:,} more"] * (len(files) > NUM_SHOWN)
        reasons = in_order_of_cause(manifest.quarantined)
        return {
            "source": manifest.source,
            "raw files": "\n".join(files[:NUM_SHOWN] + more) or "none",
            "rows left out": "\n".join(f"{reason}: {n:,}" for reason, n in manifest.left_out.items()) or "none",
            "quarantined": "\n".join(f"{reason}: {manifest.quarantined[reason]:,}" for reason in reasons) or "none",
            **manifest.counts,
            "territories": f"{len(manifest.territories)} in {num_regions} regions",
            "attributes": ", ".join(f"{name} ({len(v)})" for name, v in manifest.attributes.items()) or "none",
            **(_describe(self.statistics) if self.statistics else {}),
            "window": f"{calendar.window_start:%Y-%m-%d %H:%M} to {calendar.window_end:%Y-%m-%d %H:%M} UTC",
            "evaluation": f"{calendar.num_evaluation_days} days of {calendar.day_s / DAY_S:g} d",
            "embeddings": vectors if embeddings.user_width else "none yet",
            "buckets": manifest.num_buckets,
            "hash": manifest.lake_hash[:16],
            "notes": "\n".join(manifest.notes) or "none",
        }


def _describe(statistics: dict[str, Any]) -> dict[str, str]:
    """Figures of `LakeCounts.document` in words."""
    users, times, missing = (statistics[name] for name in ("events_per_user", "event_times", "missing"))
    names = {"0": "least", "100": "most"}
    sizes = ", ".join(f"{names.get(q, f'{q}%')} {count:,}" for q, count in users["quantiles"].items()) or "-"
    shares = {table: ", ".join(f"{name} {_percent(s)}" for name, s in of.items()) for table, of in missing.items()}
    ends = [f"{datetime.fromisoformat(times[end]):%Y-%m-%d %H:%M}" if times[end] else "-" for end in ("first", "last")]
    return {
        "events per user": sizes,
        "without events": f"{_percent(users['without_events'])} of users",
        "last two events": f"at one time for {_percent(users['last_two_at_one_time'])} of users with two or more: "
        "leave-one-out then follows the order of the files",
        "event times": f"{ends[0]} to {ends[1]} UTC; first day {_percent(times['first_day'])}, last day "
        f"{_percent(times['last_day'])} of events",
        **{f"missing in {table}": found or "none declared" for table, found in shares.items()},
    }


def _percent(share: float | None) -> str:
    if share is None:
        return "-"
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def show_lake(config: LakeConfig, progress: ProgressCallback | None = None) -> LakeSummary:
    """Count users, events and titles by territory, and how complete the data is.

    Test events are those of the evaluation days; local titles are offered in one territory only.
    """
    lake = Lake.open(config.lake)
    buckets = range(lake.manifest.num_buckets)
    tasks = map_tasks(LakeCounts.of_bucket, buckets, lake, stage="counting", progress=progress)
    counts = LakeCounts.of_all((found for _, found in tasks), len(lake.manifest.territories))
    return LakeSummary(config.lake, lake.manifest, territory_table(counts.territories, lake), counts.document(lake))


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
    if name == "titles" and embeddings.fold_starts:
        columns[PROJECTION] = pa.binary(4 * embeddings.interaction_width)
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

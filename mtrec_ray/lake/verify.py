"""`mtrec lake check`: hash files again, and compare rows and columns with `lake.json`."""

from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake, Manifest
from mtrec_ray.lake.schema import embedding_width, required_columns
from mtrec_ray.lake.validate import count_bad_rows, embedding_problems, split_rows
from mtrec_ray.lake.write import QUARANTINE, list_files

NUM_SHOWN = 20


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
    parts, found = [], []
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
        for column, kind in stored_columns(name, lake.manifest).items():
            stored = part.schema.field(column).type if column in part.column_names else "missing"
            if stored != kind:
                found.append(f"{file.path}: column {column!r} is {stored}, should be {kind}")
        parts.append(part)
    if not parts and not found:
        found.append(f"{name}: {MANIFEST_NAME} lists no file" + ("" if bucket is None else f" of bucket {bucket}"))
    problems += found
    return None if found else pa.concat_tables(parts)


def _check_rows(lake: Lake, name: str, rows: pa.Table, key: str, *ids: pa.Array) -> list[str]:
    rejected = count_bad_rows(name, split_rows(name, rows, lake.manifest.facts, *ids)[1])
    problems = [f"{name}: {total} rows of {reason}" for reason, (total, _) in rejected.items()]
    if "fold_embeddings" in rows.column_names:
        width = lake.manifest.embeddings.user_width * lake.manifest.embeddings.num_folds
        reasons = embedding_problems(rows["fold_embeddings"], width)
        problems += [f"{name}: {mask.sum()} rows of fold_embeddings/{reason}" for reason, mask in reasons if mask.any()]
    values = rows[key].to_numpy()
    return problems + [f"{name}: rows are not sorted"] * (not np.all(values[1:] >= values[:-1]))


def stored_columns(name: str, manifest: Manifest) -> dict[str, pa.DataType]:
    """Name and type of each column that a file of the table must have."""
    width, folds = embedding_width(name, manifest.facts), manifest.embeddings.num_folds
    columns = required_columns(name, manifest.facts) | ({"embedding": pa.binary(2 * width)} if width else {})
    return columns | ({"fold_embeddings": pa.binary(2 * width * folds)} if name == "users" and folds else {})

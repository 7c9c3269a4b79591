"""`mtrec lake check`: hash files, count rows and validate content again."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake, Manifest
from mtrec_ray.lake.schema import embedding_width, required_columns
from mtrec_ray.lake.validate import embedding_problems, split_rows, summarize
from mtrec_ray.lake.write import list_files
from mtrec_ray.sources.source import SourceFacts

if TYPE_CHECKING:
    import pandas as pd

UNLISTED_FOLDERS = ("quarantine/", "truth/")
"""Part of a lake, but never read by training."""
NUM_SHOWN = 20


@dataclass(frozen=True)
class LakeVerification:
    """What `verify_lake` found."""

    lake: str
    lake_hash: str
    num_files: dict[str, int]
    num_rows: dict[str, int]
    problems: list[str]
    """What is wrong where; empty = the lake is complete and unchanged."""
    unlisted: list[str]
    """Files that `lake.json` does not list; no reader sees them."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row per table: `table`, `num_files`, `num_rows`."""
        import pandas as pd

        columns = {"num_files": self.num_files, "num_rows": self.num_rows}
        return pd.DataFrame(columns).rename_axis("table").reset_index()

    def document(self) -> dict[str, Any]:
        return {"version": 1, "ok": not self.problems, **asdict(self)}

    def tables(self) -> list[RenderableType]:
        rows = ", ".join(f"{rows:,} {table}" for table, rows in self.num_rows.items())
        text = f"lake {self.lake}: {sum(self.num_files.values())} files, {rows}; {len(self.problems)} problems"
        return [text + (f", {len(self.unlisted)} files that {MANIFEST_NAME} does not list" if self.unlisted else "")]

    def raise_problems(self) -> None:
        """UserError that lists the problems, if there are any."""
        if self.problems:
            raise UserError(f"lake {self.lake!r} is damaged, build it again:\n" + "\n".join(self.problems[:NUM_SHOWN]))


def verify_lake(uri: str, progress: ProgressCallback | None = None) -> LakeVerification:
    """Hash and validate a lake again, bucket by bucket. Ray must be initialised.

    Raises:
        UserError: no lake there, or its `lake.json` cannot be read.
    """
    lake, paths = Lake.open(uri), sorted(list_files(uri))
    manifest, problems = lake.manifest, []
    titles = _read_table(lake, "titles", None, problems)
    if titles is not None:  # buckets are validated against the titles
        problems += _check_rows("titles", "titles", titles, manifest.facts, "title_id")
        tasks = map_tasks(verify_bucket, range(manifest.num_buckets), lake, stage="checking", progress=progress)
        problems += [problem for _, found in sorted(tasks) for problem in found]
    num_rows = {name: sum(file.rows for file in files) for name, files in manifest.files.items()}
    if num_rows != manifest.counts:
        problems.append(f"counts are {manifest.counts}, but the files have {num_rows} rows")
    problems += _check_quarantine(lake, [path for path in paths if path.startswith("quarantine/")])
    listed = manifest.listed_paths()
    unlisted = [path for path in paths if path not in listed and not path.startswith(UNLISTED_FOLDERS)]
    num_files = {name: len(files) for name, files in manifest.files.items()}
    return LakeVerification(uri, manifest.lake_hash, num_files, num_rows, problems, unlisted)


def verify_bucket(bucket: int, lake: Lake) -> list[str]:
    """Problems of one bucket of users, events and candidates."""
    problems: list[str] = []
    names = [name for name in ("users", "events", "candidates") if name in lake.manifest.files]
    tables = {name: _read_table(lake, name, bucket, problems) for name in names}
    if problems:
        return problems
    facts = lake.manifest.facts
    ids = tables["users"]["user_id"].combine_chunks(), lake.titles["title_id"].combine_chunks()
    for name, rows in tables.items():
        where, user_ids = f"{name}, bucket {bucket}", rows["user_id"].to_numpy()
        problems += _check_rows(where, name, rows, facts, "user_id", *ids)
        misplaced = int((bucket_of(user_keys(user_ids), lake.manifest.num_buckets) != bucket).sum())
        if misplaced:
            problems.append(f"{where}: {misplaced} rows belong to another bucket")
    return problems


def _read_table(lake: Lake, name: str, bucket: int | None, problems: list[str]) -> Any:
    """A table or a bucket of it; None with `problems` of hash, rows or schema."""
    parts, found = [], []
    for file in lake.manifest.bucket_files(name, bucket):
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
            found.append(f"{file.path}: {part.num_rows} rows, but {file.rows} in {MANIFEST_NAME}")
        found += [f"{file.path}: {problem}" for problem in _check_schema(name, part, lake.manifest)]
        parts.append(part)
    if not parts and not found:
        found.append(f"{name}: {MANIFEST_NAME} lists no file" + ("" if bucket is None else f" of bucket {bucket}"))
    problems += found
    return None if found else pa.concat_tables(parts)


def _check_schema(name: str, rows: pa.Table, manifest: Manifest) -> list[str]:
    kinds, width = required_columns(name, manifest.facts), embedding_width(name, manifest.facts)
    fold_width = width * manifest.embeddings.num_folds if name == "users" else 0
    kinds |= {"embedding": pa.binary(2 * width)} if width else {}
    kinds |= {"fold_embeddings": pa.binary(2 * fold_width)} if fold_width else {}
    found = {field.name: field.type for field in rows.schema}
    wrong = [name for name, kind in kinds.items() if found.get(name) != kind]
    if wrong or not fold_width:
        return [f"column {name!r} is {found.get(name, 'missing')}, should be {kinds[name]}" for name in wrong]
    reasons = embedding_problems(rows["fold_embeddings"], fold_width)
    return [f"column 'fold_embeddings' has {mask.sum()} rows of {reason}" for reason, mask in reasons if mask.any()]


def _check_rows(where: str, name: str, rows: pa.Table, facts: SourceFacts, key: str, *ids: pa.Array) -> list[str]:
    rejected = summarize(name, split_rows(name, rows, facts, *ids)[1])
    problems = [f"{where}: {total} rows of {reason}" for reason, (total, _) in rejected.items()]
    values = rows[key].to_numpy()
    return problems if np.all(values[1:] >= values[:-1]) else [*problems, f"{where}: rows are not sorted"]


def _check_quarantine(lake: Lake, paths: list[str]) -> list[str]:
    found: Counter = Counter()
    for path in paths:
        rows = pq.read_table(pa.BufferReader(read_file(join(lake.uri, path))), columns=["reason"])
        for row in pc.value_counts(rows["reason"]).to_pylist():
            found[f"{path.split('/')[1]}/{row['values']}"] += row["counts"]
    counts = lake.manifest.quarantined
    return [
        f"quarantine: {found[reason]} rows of {reason}, but {counts.get(reason, 0)} in {MANIFEST_NAME}"
        for reason in sorted(found.keys() | counts.keys())
        if found[reason] != counts.get(reason, 0)
    ]

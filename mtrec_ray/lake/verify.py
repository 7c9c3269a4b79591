"""`mtrec lake check`: hashes files, counts rows and validates content again, by the rules of the build."""

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
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake, LakeFile, Manifest
from mtrec_ray.lake.schema import required_columns
from mtrec_ray.lake.validate import (
    Rules,
    embedding_problems,
    split_candidates,
    split_events,
    split_titles,
    split_users,
    summarize,
)
from mtrec_ray.lake.write import list_files

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
    lake = Lake.open(uri)
    files = lake.manifest.files
    titles, problems = _read_table(lake, "titles", files.get("titles", []))
    if titles is not None:  # buckets are validated against the titles
        problems += _rejected("titles", "titles", split_titles(titles, _rules(lake.manifest))[1])
        problems += _check_sorted("titles", titles["title_id"])
        buckets = range(lake.manifest.num_buckets)
        found = dict(map_tasks(verify_bucket, buckets, lake, stage="checking", progress=progress))
        problems += [problem for bucket in buckets for problem in found[bucket]]
    paths = sorted(list_files(uri))
    num_rows = {name: sum(file.rows for file in listed) for name, listed in files.items()}
    for name, rows in num_rows.items():
        if lake.manifest.counts.get(name) != rows:
            problems.append(f"{name}: counts are {lake.manifest.counts.get(name)}, its files have {rows} rows")
    problems += _check_quarantine(lake, [path for path in paths if path.startswith("quarantine/")])
    listed = lake.manifest.listed_paths()
    unlisted = [path for path in paths if path not in listed and not path.startswith(UNLISTED_FOLDERS)]
    num_files = {name: len(listed) for name, listed in files.items()}
    return LakeVerification(uri, lake.manifest.lake_hash, num_files, num_rows, problems, unlisted)


def verify_bucket(bucket: int, lake: Lake) -> list[str]:
    """Problems of one bucket of users, events and candidates."""
    tables, problems = {}, []
    for name in ("users", "events", "candidates"):
        if name in lake.manifest.files:
            tables[name], found = _read_table(lake, name, lake.manifest.bucket_files(name, bucket))
            problems += found
    if any(table is None for table in tables.values()):
        return problems
    user_ids, title_ids = (rows.combine_chunks() for rows in (tables["users"]["user_id"], lake.titles["title_id"]))
    splits = {"users": split_users(tables["users"], _rules(lake.manifest))}
    splits["events"] = split_events(tables["events"], user_ids, title_ids)
    if "candidates" in tables:
        splits["candidates"] = split_candidates(tables["candidates"], user_ids, title_ids)
    for name, (_, rejected) in splits.items():
        problems += _rejected(f"bucket {bucket}", name, rejected)
    return problems + _check_order(tables, bucket, lake.manifest.num_buckets)


def _read_table(lake: Lake, name: str, files: list[LakeFile]) -> tuple[pa.Table | None, list[str]]:
    """The rows, None where they cannot be used, and problems of hash, rows and schema."""
    problems, parts = [], []
    for file in files:
        try:
            data = read_file(join(lake.uri, file.path))
        except FileNotFoundError:
            problems.append(f"{file.path}: is missing")
            continue
        if sha256(data).hexdigest() != file.sha256:
            problems.append(f"{file.path}: content differs from {MANIFEST_NAME} (SHA-256)")
            continue
        part = pq.read_table(pa.BufferReader(data))
        if part.num_rows != file.rows:
            problems.append(f"{file.path}: {part.num_rows} rows, but {file.rows} in {MANIFEST_NAME}")
        problems += _check_schema(name, part, lake.manifest, file.path)
        parts.append(part)
    if not files:
        problems.append(f"{name}: {MANIFEST_NAME} lists no file")
    return pa.concat_tables(parts) if parts and not problems else None, problems


def _check_schema(name: str, rows: pa.Table, manifest: Manifest, path: str) -> list[str]:
    kinds = required_columns(name, list(manifest.attributes), manifest.title_categoricals)
    embeddings = manifest.embeddings
    width = {"users": embeddings.user_width, "titles": embeddings.title_width}.get(name, 0)
    fold_width = width * embeddings.num_folds if name == "users" else 0
    kinds |= {"embedding": pa.binary(2 * width)} if width else {}
    kinds |= {"fold_embeddings": pa.binary(2 * fold_width)} if fold_width else {}
    problems = []
    for column, kind in kinds.items():
        if column not in rows.column_names:
            problems.append(f"{path}: column {column!r} is missing")
        elif rows.schema.field(column).type != kind:
            problems.append(f"{path}: column {column!r} is {rows.schema.field(column).type}, should be {kind}")
    if fold_width and not problems:
        for reason, mask in embedding_problems(rows["fold_embeddings"], fold_width):
            if mask.any():
                problems.append(f"{path}: column 'fold_embeddings' has {int(mask.sum())} rows of {reason}")
    return problems


def _rejected(where: str, name: str, rejected: pa.Table) -> list[str]:
    return [f"{where}: {n} rows of {reason}" for reason, (n, _) in summarize(name, rejected).items()]


def _check_order(tables: dict, bucket: int, num_buckets: int) -> list[str]:
    """Every row in its user's bucket, in the stored order."""
    problems = []
    for name, rows in tables.items():
        ids = rows["user_id"].to_numpy()
        misplaced = int((bucket_of(user_keys(ids), num_buckets) != bucket).sum()) if len(ids) else 0
        if misplaced:
            problems.append(f"{name}, bucket {bucket}: {misplaced} rows belong to another bucket")
        problems += _check_sorted(f"{name}, bucket {bucket}", rows["user_id"])
    return problems


def _check_sorted(where: str, ids: pa.ChunkedArray) -> list[str]:
    values = ids.to_numpy()
    return [] if np.all(values[1:] >= values[:-1]) else [f"{where}: rows are not sorted"]


def _check_quarantine(lake: Lake, paths: list[str]) -> list[str]:
    found: Counter = Counter()
    for path in paths:
        rows = pq.read_table(pa.BufferReader(read_file(join(lake.uri, path))), columns=["reason"])
        for row in pc.value_counts(rows["reason"]).to_pylist():
            found[f"{path.split('/')[1]}/{row['values']}"] += row["counts"]
    listed = lake.manifest.quarantined
    return [
        f"quarantine: {found[reason]} rows of {reason}, but {listed.get(reason, 0)} in {MANIFEST_NAME}"
        for reason in sorted(found.keys() | listed.keys())
        if found[reason] != listed.get(reason, 0)
    ]


def _rules(manifest: Manifest) -> Rules:
    return Rules(
        frozenset(territory.name for territory in manifest.territories),
        {name: tuple(values) for name, values in manifest.attributes.items()},
        manifest.embeddings.user_width,
        manifest.embeddings.title_width,
    )

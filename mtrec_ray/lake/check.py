"""Is a lake still what its build made? Hashes files, counts rows and validates content again, by the build's rules."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.console import ProgressCallback
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake, LakeFile, Manifest, bucket_folder, resolve
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

UNLISTED_FOLDERS = ("quarantine/", "truth/")
"""Part of a lake, but never read by training."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found."""

    lake_hash: str
    num_files: int
    num_rows: dict[str, int]
    problems: list[str]
    """What is wrong where; empty = the lake is whole."""
    leftovers: list[str]
    """Files that `lake.json` does not list; no reader sees them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data by field name."""
        return asdict(self)

    def summary(self) -> str:
        """One line."""
        rows = ", ".join(f"{rows:,} {table}" for table, rows in self.num_rows.items())
        text = f"{self.num_files} files, {rows}; {len(self.problems)} problems"
        return text + (f", {len(self.leftovers)} files that lake.json does not list" if self.leftovers else "")


def check_lake(uri: str, progress: ProgressCallback | None = None) -> CheckReport:
    """Re-hash and re-validate a lake, bucket by bucket. Ray must be initialised.

    Raises:
        UserError: no lake there, or its `lake.json` cannot be read.
    """
    lake = Lake.open(uri)
    problems, titles_readable = _check_titles(lake)
    num_buckets = lake.manifest.num_buckets if titles_readable else 0  # buckets are checked against the titles
    found = dict(map_tasks(check_bucket, range(num_buckets), lake, stage="checking", progress=progress))
    problems += [problem for bucket in range(num_buckets) for problem in found[bucket]]
    problems += _check_listing(lake.manifest) + _check_quarantine(lake)
    files = lake.manifest.files
    return CheckReport(
        lake.manifest.lake_hash,
        sum(map(len, files.values())),
        {name: sum(file.rows for file in listed) for name, listed in files.items()},
        problems,
        _leftovers(lake),
    )


def check_bucket(bucket: int, lake: Lake) -> list[str]:
    """Problems of one bucket of users, events and candidates."""
    tables, problems = {}, []
    for name in ("users", "events", "candidates"):
        if name in lake.manifest.files:
            found, tables[name] = _read_checked(lake, name, _files_of(lake.manifest, name, bucket))
            problems += found
    if any(table is None for table in tables.values()):
        return problems
    rules, user_ids = _rules(lake.manifest), tables["users"]["user_id"].combine_chunks()
    title_ids = lake.titles["title_id"].combine_chunks()
    rejected = {
        "users": split_users(tables["users"], rules)[1],
        "events": split_events(tables["events"], user_ids, title_ids)[1],
    }
    if "candidates" in tables:
        rejected["candidates"] = split_candidates(tables["candidates"], user_ids, title_ids)[1]
    where = f"bucket {bucket}"
    for name, rows in rejected.items():
        problems += [f"{where}: {n} rows of {reason}" for reason, (n, _) in summarize(name, rows).items()]
    return problems + _check_places(tables, bucket, lake.manifest.num_buckets)


def _check_titles(lake: Lake) -> tuple[list[str], bool]:
    """Problems of the titles, and whether their file can be used."""
    problems, titles = _read_checked(lake, "titles", lake.manifest.files.get("titles", []))
    if titles is None:
        return problems, False
    rejected = split_titles(titles, _rules(lake.manifest))[1]
    problems += [f"titles: {n} rows of {reason}" for reason, (n, _) in summarize("titles", rejected).items()]
    return problems + _check_sorted("titles", titles["title_id"]), True


def _read_checked(lake: Lake, name: str, files: list[LakeFile]) -> tuple[list[str], pa.Table | None]:
    """Problems of hash, rows and schema; the rows, or None where they cannot be used."""
    fs, root = resolve(lake.uri)
    problems, parts = [], []
    for file in files:
        info = fs.get_file_info(f"{root}/{file.path}")
        if info.type != pafs.FileType.File:
            problems.append(f"{file.path}: is missing")
            continue
        with fs.open_input_stream(f"{root}/{file.path}") as stream:
            data = stream.read()
        if hashlib.sha256(data).hexdigest() != file.sha256:
            problems.append(f"{file.path}: content is not what {MANIFEST_NAME} says (SHA-256 differs)")
            continue
        part = pq.read_table(pa.BufferReader(data))
        if part.num_rows != file.rows:
            problems.append(f"{file.path}: {part.num_rows} rows, {MANIFEST_NAME} says {file.rows}")
        problems += _check_schema(name, part, lake.manifest, file.path)
        parts.append(part)
    if not files:
        problems.append(f"{name}: {MANIFEST_NAME} lists no file")
    return problems, pa.concat_tables(parts) if parts and not problems else None


def _check_schema(name: str, rows: pa.Table, manifest: Manifest, path: str) -> list[str]:
    wanted = required_columns(name, list(manifest.attributes), manifest.title_categoricals)
    width = {"users": manifest.embeddings.user_width, "titles": manifest.embeddings.title_width}.get(name, 0)
    if width:
        wanted["embedding"] = pa.binary(2 * width)
    folds = manifest.embeddings.num_folds
    if name == "users" and folds:
        wanted["fold_embeddings"] = pa.binary(2 * width * folds)
    problems = [f"{path}: column {column!r} is missing" for column in wanted if column not in rows.column_names]
    for column, kind in wanted.items():
        if column in rows.column_names and rows.schema.field(column).type != kind:
            problems.append(f"{path}: column {column!r} is {rows.schema.field(column).type}, should be {kind}")
    if not problems and name == "users" and folds:
        kinds = embedding_problems(rows["fold_embeddings"], folds * width)
        bad = {slug: int(mask.sum()) for slug, mask in kinds}
        problems += [f"{path}: column 'fold_embeddings' has {n} rows of {slug}" for slug, n in bad.items() if n]
    return problems


def _check_places(tables: dict, bucket: int, num_buckets: int) -> list[str]:
    """Every row in its user's bucket, in the stored order."""
    problems = []
    for name, rows in tables.items():
        ids = rows["user_id"].to_numpy()
        strangers = int((bucket_of(user_keys(ids), num_buckets) != bucket).sum()) if len(ids) else 0
        if strangers:
            problems.append(f"{name}, bucket {bucket}: {strangers} rows belong to another bucket")
        problems += _check_sorted(f"{name}, bucket {bucket}", rows["user_id"])
    return problems


def _check_sorted(where: str, ids: pa.ChunkedArray) -> list[str]:
    values = ids.to_numpy()
    return [] if np.all(values[1:] >= values[:-1]) else [f"{where}: rows are not sorted"]


def _check_listing(manifest: Manifest) -> list[str]:
    problems = []
    for name, files in manifest.files.items():
        rows = sum(file.rows for file in files)
        if manifest.counts.get(name) != rows:
            problems.append(f"{name}: counts say {manifest.counts.get(name)}, its files hold {rows} rows")
    return problems


def _check_quarantine(lake: Lake) -> list[str]:
    fs, root = resolve(lake.uri)
    found: dict[str, int] = {}
    for path in _paths(fs, root):
        if path.startswith("quarantine/"):
            with fs.open_input_file(f"{root}/{path}") as file:
                reasons = pq.read_table(file, columns=["reason"])["reason"]
            for row in pc.value_counts(reasons).to_pylist():
                slug = f"{path.split('/')[1]}/{row['values']}"
                found[slug] = found.get(slug, 0) + row["counts"]
    wanted = lake.manifest.quarantined
    slugs = sorted(found.keys() | wanted.keys())
    return [
        f"quarantine: {found.get(slug, 0)} rows of {slug}, {MANIFEST_NAME} says {wanted.get(slug, 0)}"
        for slug in slugs
        if found.get(slug, 0) != wanted.get(slug, 0)
    ]


def _leftovers(lake: Lake) -> list[str]:
    fs, root = resolve(lake.uri)
    listed = {file.path for files in lake.manifest.files.values() for file in files} | {MANIFEST_NAME}
    return [p for p in _paths(fs, root) if p not in listed and not p.startswith(UNLISTED_FOLDERS)]


def _paths(fs: pafs.FileSystem, root: str) -> list[str]:
    infos = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    return sorted(info.path[len(root) + 1 :] for info in infos if info.is_file)


def _files_of(manifest: Manifest, name: str, bucket: int) -> list[LakeFile]:
    return [file for file in manifest.files[name] if file.path.startswith(bucket_folder(name, bucket) + "/")]


def _rules(manifest: Manifest) -> Rules:
    return Rules(
        frozenset(territory.name for territory in manifest.territories),
        {name: tuple(values) for name, values in manifest.attributes.items()},
        manifest.embeddings.user_width,
        manifest.embeddings.title_width,
    )

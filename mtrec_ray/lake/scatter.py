"""The two worker passes of a build, with files between them instead of a shuffle.

1. `stage_part`: one raw part -> one Arrow file whose b-th record batch holds the rows of bucket b.
2. `build_bucket`: the b-th batch of every staged file -> validated, sorted, hashed Parquet files of bucket b.

Memory is bounded by one part, then by one bucket.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.manifest import LakeFile, bucket_folder, resolve
from mtrec_ray.lake.schema import conform, empty, final_embeddings
from mtrec_ray.lake.validate import (
    BadRows,
    Rules,
    merge,
    split_candidates,
    split_events,
    split_users,
    summarize,
)
from mtrec_ray.lake.write import STAGING, write_parquet
from mtrec_ray.sources.source import Part, Source


@dataclass(frozen=True)
class BuildPlan:
    """What every worker of a build needs. Picklable."""

    uri: str
    source: Source
    num_buckets: int
    rules: Rules
    title_ids: pa.Array
    """Accepted titles."""
    parts: tuple[tuple[str, Part], ...]
    """(`users` | `events` | `candidates`, reader)."""

    @property
    def tables(self) -> list[str]:
        """The bucketed tables that this build makes."""
        return ["users", "events"] + (["candidates"] if self.source.facts.has_candidates else [])


def stage_part(index: int, plan: BuildPlan) -> None:
    """Read one part and stage it as one file, a record batch per bucket."""
    table, part = plan.parts[index]
    rows = whole_batch(conform(table, part(), plan.source.facts, partial=True))
    ids = rows.column("user_id").fill_null("").to_numpy(zero_copy_only=False)
    buckets = bucket_of(user_keys(ids), plan.num_buckets)
    rows = rows.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=plan.num_buckets))
    fs, root = resolve(plan.uri)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        fs.open_output_stream(_staged_path(root, index)) as stream,
        pa.ipc.new_file(stream, rows.schema, options=options) as writer,
    ):
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            writer.write_batch(rows.slice(start, end - start))


def build_bucket(bucket: int, plan: BuildPlan) -> tuple[dict[str, LakeFile], BadRows]:
    """Make one bucket whole; returns its file of each table and its bad rows."""
    fs, root = resolve(plan.uri)
    facts = plan.source.facts
    users, events = plan.source.complete_bucket(
        _staged_rows(plan, fs, root, "users", bucket), _staged_rows(plan, fs, root, "events", bucket)
    )
    users, bad_users = split_users(conform("users", users, facts), plan.rules)
    user_ids = users["user_id"].combine_chunks()
    events, bad_events = split_events(conform("events", events, facts), user_ids, plan.title_ids)
    accepted, rejected = {"users": users, "events": events}, {"users": bad_users, "events": bad_events}
    if facts.has_candidates:
        rows = conform("candidates", _staged_rows(plan, fs, root, "candidates", bucket), facts)
        accepted["candidates"], rejected["candidates"] = split_candidates(rows, user_ids, plan.title_ids)
    files = {name: _write_bucket(fs, root, name, bucket, rows, plan) for name, rows in accepted.items()}
    for name, rows in rejected.items():
        if rows.num_rows:
            write_parquet(fs, root, f"quarantine/{name}", rows)
    _write_user_truth(fs, root, plan.source, users, bucket)
    return files, merge(summarize(name, rows) for name, rows in rejected.items())


def _write_bucket(fs: pafs.FileSystem, root: str, name: str, bucket: int, rows: pa.Table, plan: BuildPlan) -> LakeFile:
    """Users stay uncompressed: their embeddings are what training reads all the time."""
    if "embedding" in rows.column_names:
        column = final_embeddings(rows["embedding"], plan.rules.user_width)
        rows = rows.set_column(rows.column_names.index("embedding"), "embedding", column)
    compression = "none" if name == "users" else "zstd"
    return write_parquet(fs, root, bucket_folder(name, bucket), rows.combine_chunks(), compression)


def _write_user_truth(fs: pafs.FileSystem, root: str, source: Source, users: pa.Table, bucket: int) -> None:
    truth = source.user_truth(users)
    if truth is not None:
        write_parquet(fs, root, bucket_folder("truth/users", bucket), truth)


def _staged_rows(plan: BuildPlan, fs: pafs.FileSystem, root: str, table: str, bucket: int) -> pa.Table:
    batches = []
    for index, (name, _) in enumerate(plan.parts):
        if name == table:
            with fs.open_input_file(_staged_path(root, index)) as file:
                batches.append(pa.ipc.open_file(file).get_batch(bucket))
    return pa.Table.from_batches(batches) if batches else empty(table, plan.source.facts)


def _staged_path(root: str, index: int) -> str:
    return f"{root}/{STAGING}/part-{index:06d}.arrow"


def whole_batch(rows: pa.Table) -> pa.RecordBatch:
    """All rows in one batch; UserError where a column has more text than one array holds (2 GiB)."""
    batches = rows.combine_chunks().to_batches()
    if len(batches) > 1:
        raise UserError(
            f"{rows.num_rows} raw rows hold more than 2 GiB in a column, too much for one part: "
            "lower source.rows_per_part, or write smaller row groups"
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)

"""The two worker passes of a build, with files between them instead of a shuffle.

1. `stage_part`: one raw part -> one Arrow file whose b-th record batch holds the rows of bucket b.
2. `build_bucket`: the b-th batch of every staged file -> validated, sorted, hashed Parquet files of bucket b.

Memory is bounded by one part, then by one bucket.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.manifest import LakeFile, bucket_folder
from mtrec_ray.lake.schema import conform, embedding_width, empty_table, stored_embeddings
from mtrec_ray.lake.validate import BadRows, merge_bad_rows, split_rows, summarize
from mtrec_ray.lake.write import STAGING, write_parquet
from mtrec_ray.sources.source import Part, Source, SourceFacts


@dataclass(frozen=True)
class BuildPlan:
    """What every worker of a build needs. Picklable."""

    uri: str
    source: Source
    num_buckets: int
    title_ids: pa.Array
    """Accepted titles."""
    parts: list[tuple[str, Part]]
    """(table, reader)."""

    @property
    def tables(self) -> list[str]:
        """The bucketed tables of this build."""
        return ["users", "events"] + ["candidates"] * self.source.facts.has_candidates


def stage_part(index: int, plan: BuildPlan) -> None:
    """Read one part and write it as one file, a record batch per bucket."""
    table, part = plan.parts[index]
    rows = to_batch(conform(table, part(), plan.source.facts, partial=True))
    ids = rows.column("user_id").fill_null("").to_numpy(zero_copy_only=False)
    buckets = bucket_of(user_keys(ids), plan.num_buckets)
    rows = rows.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=plan.num_buckets)).tolist()
    fs, root = resolve(plan.uri)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        fs.open_output_stream(_staged_path(root, index)) as stream,
        pa.ipc.new_file(stream, rows.schema, options=options) as writer,
    ):
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            writer.write_batch(rows.slice(start, end - start))


def build_bucket(bucket: int, plan: BuildPlan) -> tuple[dict[str, LakeFile], BadRows]:
    """Validate and write one bucket; returns its file of each table and its rejected rows."""
    facts = plan.source.facts
    rows = {name: _staged_rows(plan, name, bucket) for name in plan.tables}
    rows["users"], rows["events"] = plan.source.complete_bucket(rows["users"], rows["events"])
    files, bad, user_ids = {}, [], None
    for name in plan.tables:
        accepted, rejected = split_rows(name, conform(name, rows[name], facts), facts, user_ids, plan.title_ids)
        if name == "users":
            user_ids = accepted["user_id"].combine_chunks()
        files[name] = write_rows(plan.uri, name, bucket_folder(name, bucket), accepted, facts)
        if rejected.num_rows:
            write_parquet(plan.uri, f"quarantine/{name}", rejected)
        bad.append(summarize(name, rejected))
    return files, merge_bad_rows(bad)


def write_rows(uri: str, table: str, folder: str, rows: pa.Table, facts: SourceFacts) -> LakeFile:
    """Write accepted rows; users uncompressed, as training reads them all the time."""
    width = embedding_width(table, facts)
    if width:
        index = rows.schema.get_field_index("embedding")
        rows = rows.set_column(index, "embedding", stored_embeddings(rows["embedding"], width))
    return write_parquet(uri, folder, rows.combine_chunks(), "none" if table == "users" else "zstd")


def to_batch(rows: pa.Table) -> pa.RecordBatch:
    """All rows in one batch; UserError where a column holds more than 2 GiB."""
    batches = rows.combine_chunks().to_batches()
    if len(batches) > 1:
        raise UserError(
            f"{rows.num_rows} raw rows hold more than 2 GiB in a column, too much for one part: "
            "lower source.rows_per_part, or write smaller row groups"
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)


def _staged_rows(plan: BuildPlan, table: str, bucket: int) -> pa.Table:
    fs, root = resolve(plan.uri)
    batches = []
    for index, (name, _) in enumerate(plan.parts):
        if name == table:
            with fs.open_input_file(_staged_path(root, index)) as file:
                batches.append(pa.ipc.open_file(file).get_batch(bucket))
    return pa.Table.from_batches(batches) if batches else empty_table(table, plan.source.facts)


def _staged_path(root: str, index: int) -> str:
    return f"{root}/{STAGING}/part-{index:06d}.arrow"

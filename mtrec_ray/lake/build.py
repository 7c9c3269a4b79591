"""From a source to a lake, with files between the two worker passes instead of a shuffle.

1. titles: read, validated and written by the driver; a title's row is its index everywhere;
2. staging: every raw part becomes one Arrow file whose b-th record batch holds the rows of bucket b (a task a part);
3. buckets: the b-th batches of all staged files are joined, validated, sorted, written and hashed (a task a bucket);
4. commit: `lake.json` is written last. A failure before that leaves nothing behind.

Memory is bounded by one part, then by one bucket.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, join, resolve
from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.config import BuildOptions, LakeBuildConfig
from mtrec_ray.lake.inspect import LakeSummary
from mtrec_ray.lake.manifest import LakeFile, Manifest, bucket_folder
from mtrec_ray.lake.schema import conform, embedding_width, required_columns, stored_embeddings
from mtrec_ray.lake.validate import BadRows, BadRowsError, count_bad_rows, merge_bad_rows, split_rows
from mtrec_ray.lake.write import STAGING, check_free, replace_files, write_failure, write_lock, write_parquet
from mtrec_ray.sources.names import check_names
from mtrec_ray.sources.source import DataFacts, Part, Source, make_source, source_class

USERS_PER_BUCKET = 40_000
MIN_BUCKETS = 16


@dataclass(frozen=True)
class BuildPlan:
    """What every worker of a build needs. Picklable."""

    uri: str
    source: Source
    num_buckets: int
    title_ids: pa.Array  # Accepted titles
    rejected_titles: pa.Array  # Their ids
    parts: list[tuple[str, Part]]  # (table, reader)
    num_pieces: list[int]  # Staged files of each part

    @property
    def tables(self) -> list[str]:
        """The bucketed tables of this build."""
        return ["users", "events"] + ["candidates"] * any(table == "candidates" for table, _ in self.parts)


def build_from_source(config: LakeBuildConfig, progress: ProgressCallback | None = None) -> LakeSummary:
    """`mtrec lake build SOURCE`; UserError if raw files, settings or rows do not fit."""
    if config.out is None:
        raise UserError("setting 'out' is required: give it with --out LAKE")
    if config.download:
        source_class(config.dataset).download(config.source, config.raw, progress)
    return build_lake(make_source(config.dataset, config.source, config.raw), config.out, config.build, progress)


def build_lake(
    source: Source, out: str, options: BuildOptions | None = None, progress: ProgressCallback | None = None
) -> LakeSummary:
    """Build a lake at `out`, a local path or URI that all nodes share.

    Its bytes do not depend on parts, CPUs and the order of raw rows. BadRowsError: rows may not enter.
    """
    options = options or BuildOptions()
    try:
        check_free(out, options.overwrite)  # creates no lock file in a folder that is no lake
        with write_lock(out):
            check_free(out, options.overwrite)  # again: another build may have ended since
            try:
                manifest = replace_files(out, lambda: _write_tables(source, absolute(out), options, progress))
            except OSError as error:
                raise write_failure(error, f"building the lake {out!r}") from error
    except OSError as error:
        raise UserError(f"cannot write a lake at {out!r}: {error}") from error
    return LakeSummary(out, manifest)


def _write_tables(source: Source, uri: str, options: BuildOptions, progress: ProgressCallback | None) -> Manifest:
    facts = source.facts
    facts = facts.model_copy(update={"territories": sorted(facts.territories, key=lambda territory: territory.name)})
    check_names(facts)
    num_buckets = options.num_buckets or max(MIN_BUCKETS, -(-facts.num_users // USERS_PER_BUCKET))
    titles, bad_titles = split_rows("titles", conform("titles", source.titles(), facts), facts)
    parts = [(table, part) for table in ("users", "events", "candidates") for part in source.parts(table)]
    if not parts or parts[0][0] != "users":
        raise UserError(f"source {facts.source!r} has no users")
    title_ids, rejected_titles = (rows["title_id"].combine_chunks() for rows in (titles, bad_titles))
    plan = BuildPlan(uri, source, num_buckets, title_ids, rejected_titles, parts, [])
    fs, root = resolve(uri)
    folders = [STAGING, "titles", *(f"quarantine/{name}" for name in ["titles", *plan.tables])]
    folders += [bucket_folder(name, bucket) for name in plan.tables for bucket in range(num_buckets)]
    for folder in folders:  # workers create none, so a removed build stays removed
        fs.create_dir(f"{root}/{folder}", recursive=True)
    staged = dict(map_tasks(stage_part, range(len(parts)), plan, stage="staging", progress=progress))
    plan = replace(plan, num_pieces=[staged[index] for index in range(len(parts))])
    tasks = map_tasks(build_bucket, range(num_buckets), plan, stage="buckets", progress=progress)
    buckets = [built for _, built in tasks]
    bad = merge_bad_rows([count_bad_rows("titles", bad_titles), *(rejected for _, rejected in buckets)])
    files = {"titles": [_write_rows(uri, "titles", "titles", titles, facts)]}
    for name in plan.tables:
        files[name] = sorted((written[name] for written, _ in buckets), key=lambda file: file.path)
    if bad:
        _check_bad_rows(bad, files, plan, options)
    if bad_titles.num_rows:
        write_parquet(uri, "quarantine/titles", bad_titles)
    return Manifest(
        **facts.model_dump(exclude={"num_users"}),
        num_buckets=num_buckets,
        counts={name: sum(file.rows for file in listed) for name, listed in files.items()},
        quarantined={reason: rows.total for reason, rows in sorted(bad.items())},
        files=files,
    )


def _check_bad_rows(bad: BadRows, files: dict[str, list[LakeFile]], plan: BuildPlan, options: BuildOptions) -> None:
    """BadRowsError unless they may be left out, and events are left."""
    if any(file.rows for file in files["events"]):
        if options.on_bad_rows == "error":
            raise BadRowsError(bad, "correct them, or leave them out with --on-bad-rows quarantine")
        return
    fs, root = resolve(plan.uri)
    ids = {}
    for table in ("users", "titles"):
        for file in [file for file in files[table] if file.rows][:1]:
            with fs.open_input_file(f"{root}/{file.path}") as stream:
                ids[table] = pq.read_table(stream, columns=[f"{table[:-1]}_id"])[0][0].as_py()
    raise BadRowsError(bad, "no event would be left: correct them, or map the columns that they are in", ids)


def stage_part(index: int, plan: BuildPlan) -> int:
    """Read one part; write each piece with a record batch per bucket; returns how many."""
    table, part = plan.parts[index]
    read = part()
    pieces = 0
    for piece in [read] if isinstance(read, pa.Table) else read:
        _stage_piece(
            conform(table, piece, plan.source.facts, partial=True), _staged_path(plan.uri, index, pieces), plan
        )
        pieces += 1
    return pieces


def _stage_piece(piece: pa.Table, uri: str, plan: BuildPlan) -> None:
    rows = to_batch(piece)
    ids = rows.column("user_id").fill_null("").to_numpy(zero_copy_only=False)
    buckets = bucket_of(user_keys(ids), plan.num_buckets)
    rows = rows.take(pa.array(np.argsort(buckets, kind="stable")))
    ends = np.cumsum(np.bincount(buckets, minlength=plan.num_buckets)).tolist()
    fs, path = resolve(uri)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with fs.open_output_stream(path) as stream, pa.ipc.new_file(stream, rows.schema, options=options) as writer:
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            writer.write_batch(rows.slice(start, end - start))


def build_bucket(bucket: int, plan: BuildPlan) -> tuple[dict[str, LakeFile], BadRows]:
    """Validate and write one bucket; returns its file of each table and its rejected rows."""
    facts = plan.source.facts
    rows = {name: _staged_rows(plan, name, bucket) for name in plan.tables}
    rows["users"], rows["events"] = plan.source.complete_bucket(rows["users"], rows["events"])
    files, bad, ids, rejected_ids = {}, [], (), ()
    for name in plan.tables:
        accepted, rejected = split_rows(name, conform(name, rows[name], facts), facts, *ids)
        if name == "users":
            ids = accepted["user_id"].combine_chunks(), plan.title_ids
            rejected_ids = rejected["user_id"].combine_chunks(), plan.rejected_titles
        files[name] = _write_rows(plan.uri, name, bucket_folder(name, bucket), accepted, facts)
        if rejected.num_rows:
            write_parquet(plan.uri, f"quarantine/{name}", rejected)
        bad.append(count_bad_rows(name, rejected, *(rejected_ids if name != "users" else ())))
    return files, merge_bad_rows(bad)


def to_batch(rows: pa.Table) -> pa.RecordBatch:
    """All rows in one batch; UserError where a column holds more than 2 GiB."""
    batches = rows.combine_chunks().to_batches()
    if len(batches) > 1:
        raise UserError(
            f"{rows.num_rows} raw rows hold more than 2 GiB in a column, too much for one part: "
            "lower source.rows_per_part, or write smaller row groups"
        )
    return batches[0] if batches else pa.RecordBatch.from_pylist([], rows.schema)


def _write_rows(uri: str, table: str, folder: str, rows: pa.Table, facts: DataFacts) -> LakeFile:
    """Write accepted rows; users uncompressed, as training reads them all the time."""
    width = embedding_width(table, facts)
    if width:
        index = rows.schema.get_field_index("embedding")
        rows = rows.set_column(index, "embedding", stored_embeddings(rows["embedding"], width))
    return write_parquet(uri, folder, rows.combine_chunks(), "none" if table == "users" else "zstd")


def _staged_rows(plan: BuildPlan, table: str, bucket: int) -> pa.Table:
    batches = []
    for index, (name, _) in enumerate(plan.parts):
        for piece in range(plan.num_pieces[index]) if name == table else []:
            fs, path = resolve(_staged_path(plan.uri, index, piece))
            with fs.open_input_file(path) as file:
                batches.append(pa.ipc.open_file(file).get_batch(bucket))
    schema = pa.schema(list(required_columns(table, plan.source.facts).items()))
    return pa.Table.from_batches(batches) if batches else schema.empty_table()


def _staged_path(uri: str, part: int, piece: int) -> str:
    return join(uri, STAGING, f"part-{part:06d}-{piece:06d}.arrow")

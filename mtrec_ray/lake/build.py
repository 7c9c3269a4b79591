"""From a source to a lake.

1. titles: read, validated and written by the driver; a title's row is its index everywhere;
2. staging: every raw part becomes one file with a record batch per bucket (one Ray task a part);
3. buckets: each is joined, validated, sorted, written and hashed (one Ray task a bucket);
4. commit: `lake.json` is written last. A failure before that leaves nothing behind.
"""

from collections.abc import Collection

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.build_config import BuildOptions
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Embeddings, LakeFile, Manifest, bucket_folder
from mtrec_ray.lake.scatter import BuildPlan, build_bucket, stage_part, write_rows
from mtrec_ray.lake.schema import conform
from mtrec_ray.lake.summary import LakeSummary
from mtrec_ray.lake.validate import BadRows, BadRowsError, merge_bad_rows, split_rows, summarize
from mtrec_ray.lake.write import STAGING, BuildSite, write_failure, write_parquet
from mtrec_ray.sources.source import Source, SourceFacts

USERS_PER_BUCKET = 40_000
MIN_BUCKETS = 16
TRUTH = "truth/territories"


def build_lake(
    source: Source, out: str, options: BuildOptions | None = None, progress: ProgressCallback | None = None
) -> LakeSummary:
    """Build a lake at `out`, a local path or URI that all nodes share.

    The files are byte for byte the same whatever the number of readers, CPUs and the order of raw rows.

    Raises:
        BadRowsError: rows that may not enter, with `on_bad_rows="error"`.
        UserError: a raw file cannot be read, or `out` cannot be written.
    """
    options = options or BuildOptions()
    try:
        site = BuildSite.open(out, options.overwrite)
    except OSError as error:
        raise UserError(f"cannot write a lake at {out!r}: {error}") from error
    try:
        manifest = _write_tables(source, site, options, progress)
        site.commit(manifest)
    except BaseException as error:
        site.abandon()
        if isinstance(error, OSError):
            raise write_failure(error, f"building the lake {out!r}") from error
        raise
    return LakeSummary(out, manifest)


def _write_tables(
    source: Source, site: BuildSite, options: BuildOptions, progress: ProgressCallback | None
) -> Manifest:
    facts, truth = source.facts, source.truth()
    _check_attribute_names(facts.attributes)
    num_buckets = options.num_buckets or max(MIN_BUCKETS, -(-facts.num_users // USERS_PER_BUCKET))
    titles, bad_titles = split_rows("titles", conform("titles", source.titles(), facts), facts)
    parts = [(table, part) for table in ("users", "events", "candidates") for part in source.parts(table)]
    if not parts or parts[0][0] != "users":
        raise UserError(f"source {facts.name!r} has no users")
    plan = BuildPlan(site.uri, source, num_buckets, titles["title_id"].combine_chunks(), parts)
    site.make_folders([STAGING, "titles", *(f"quarantine/{name}" for name in ["titles", *plan.tables])])
    site.make_folders([bucket_folder(name, bucket) for name in plan.tables for bucket in range(num_buckets)])
    limit = options.readers
    list(map_tasks(stage_part, range(len(parts)), plan, stage="staging", progress=progress, limit=limit))
    tasks = map_tasks(build_bucket, range(num_buckets), plan, stage="buckets", progress=progress, limit=limit)
    buckets = [built for _, built in tasks]
    bad = merge_bad_rows([summarize("titles", bad_titles), *(rejected for _, rejected in buckets)])
    if bad and options.on_bad_rows == "error":
        raise BadRowsError(bad)
    files = {"titles": [write_rows(site.uri, "titles", "titles", titles, facts)]}
    for name in plan.tables:
        files[name] = sorted((written[name] for written, _ in buckets), key=lambda file: file.path)
    if bad_titles.num_rows:
        write_parquet(site.uri, "quarantine/titles", bad_titles)
    if truth is not None:
        site.make_folders([TRUTH])
        write_parquet(site.uri, TRUTH, truth)
    return _make_manifest(facts, num_buckets, files, bad)


def _check_attribute_names(attributes: Collection[str]) -> None:
    """UserError where the names of combinations would be ambiguous."""
    for name in attributes:
        if name in ("none", "all", "") or set(name) & set("+,/") or name != name.strip():
            raise UserError(
                f"attribute {name!r}: combinations are written as gender+age, all or none, so no attribute may be "
                "called all or none, have one of + , / in its name, or a space at its ends: rename it"
            )


def _make_manifest(facts: SourceFacts, num_buckets: int, files: dict[str, list[LakeFile]], bad: BadRows) -> Manifest:
    return Manifest(
        source=facts.name,
        notes=list(facts.notes),
        num_buckets=num_buckets,
        territories=sorted(facts.territories, key=lambda territory: territory.name),
        attributes={name: list(values) for name, values in facts.attributes.items()},
        title_categoricals=list(facts.title_categoricals),
        calendar=facts.calendar,
        embeddings=Embeddings(
            user_width=facts.user_width, title_width=facts.title_width, description=facts.embedding_description
        ),
        trained_users_are_tested=facts.trained_users_are_tested,
        counts={name: sum(file.rows for file in listed) for name, listed in files.items()},
        quarantined={reason: total for reason, (total, _) in sorted(bad.items())},
        files=files,
    )

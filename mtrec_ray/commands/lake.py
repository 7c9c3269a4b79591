"""`mtrec lake ...`: build, check, show and embed lakes."""

import math
from typing import Annotated, Any

import typer
from pydantic import create_model
from rich.table import Table

from mtrec_ray.commands.options import (
    AsJson,
    ConfigFile,
    JobResult,
    PrintConfig,
    Settings,
    resolved,
    run_job,
    with_settings,
)
from mtrec_ray.console import ProgressCallback
from mtrec_ray.sources.registry import SOURCES, config_class, make_source

app = typer.Typer(help="The lake: validated, bucketed Parquet tables.", no_args_is_help=True)

LakeArgument = Annotated[str, typer.Argument(metavar="LAKE", help="Folder or URI of the lake.")]

BUILD_SETTINGS = [
    ("mtrec_ray.lake.build_config:BuildOptions", "build."),
    *((config, "source.") for config, _ in SOURCES.values()),
]


@app.command("build", cls=with_settings(*BUILD_SETTINGS))
def build(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=f"One of {', '.join(SOURCES)}.")],
    out: Annotated[str | None, typer.Option("--out", metavar="LAKE", help="Folder or URI of the new lake.")] = None,
    raw: Annotated[
        str | None, typer.Option("--raw", metavar="DIR", help="Folder of the raw files; with parquet also a URI.")
    ] = None,
    on_bad_rows: Annotated[
        str | None,
        typer.Option("--on-bad-rows", help="error (default) or quarantine; same as --set build.on_bad_rows="),
    ] = None,
    download: Annotated[
        bool,
        typer.Option("--download", help="movielens: fetch the raw files into --raw first, with checksum and resume."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a lake that is there already.")] = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Build a lake from raw files, atomically: it is there whole or not at all."""
    from mtrec_ray.config import Config
    from mtrec_ray.errors import UserError
    from mtrec_ray.lake.build_config import BuildOptions

    sections: Any = {"source": (config_class(source), {}), "build": (BuildOptions, {})}
    model = create_model("LakeBuildConfig", __base__=Config, **sections)
    flags = {"build.on_bad_rows": on_bad_rows, "build.overwrite": overwrite or None}
    config: Any = resolved(model, config_file, settings, show_config, flags)
    if out is None:
        raise UserError("say where the lake goes: --out LAKE")

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.lake.build import build_lake

        if download:
            _download(source, config.source, raw, progress)
        manifest = build_lake(make_source(source, config.source, raw), out, config.build, progress)
        return _summary(out, manifest)

    run_job(job, as_json)


def _download(source: str, config: Any, raw: str | None, progress) -> None:
    from mtrec_ray.errors import UserError

    if source != "movielens":
        raise UserError(f"--download has no effect with source {source!r}: it fetches movielens only")
    from mtrec_ray.sources.movielens import download_movielens

    download_movielens(config, raw, progress)


@app.command("check")
def check(lake: LakeArgument, as_json: AsJson = False) -> None:
    """Read a whole lake again: hashes, counts, schema, buckets, references. Exit code 2 if anything is wrong."""
    from mtrec_ray.errors import UserError
    from mtrec_ray.lake.check import check_lake

    def job(progress: ProgressCallback) -> JobResult:
        report = check_lake(lake, progress)
        if report.problems:
            raise UserError(f"lake {lake!r} is damaged, build it again:\n" + "\n".join(map(str, report.problems[:20])))
        return {"lake": lake, "ok": True, **report.as_dict()}, [f"lake {lake} is whole: {report.summary()}"]

    run_job(job, as_json)


@app.command("show")
def show(lake: LakeArgument, as_json: AsJson = False) -> None:
    """What a lake holds, territory by territory."""
    from mtrec_ray.lake.describe import describe_lake
    from mtrec_ray.lake.manifest import Lake

    def job(progress: ProgressCallback) -> JobResult:
        manifest = Lake.open(lake).manifest
        rows = [row.as_dict() for row in describe_lake(lake, progress=progress)]
        document, tables = _summary(lake, manifest)
        table = Table(title="Territories")
        for name in rows[0]:
            table.add_column(name.replace("_", " "), justify="left" if name in ("territory", "region") else "right")
        for row in rows:
            table.add_row(*map(_cell, row.values()))
        return document | {"territories": rows}, [*tables, table]

    run_job(job, as_json)


@app.command("embed", cls=with_settings(("mtrec_ray.lake.embed_config:EmbedConfig", "")))
def embed(
    lake: LakeArgument,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Compute user and title vectors from the training window alone, for lakes whose source brings none."""
    from mtrec_ray.lake.embed_config import EmbedConfig

    config = resolved(EmbedConfig, config_file, settings, show_config, {"lake": lake})

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.lake.embed import embed_lake

        return _summary(lake, embed_lake(config, progress))

    run_job(job, as_json)


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if math.isnan(value) else f"{value:,.3f}"


def _summary(uri: str, manifest: Any) -> JobResult:
    embeddings = manifest.embeddings
    calendar = manifest.calendar
    table = Table(title=f"Lake {uri}", show_header=False)
    facts = {
        "source": manifest.source,
        **{name: f"{count:,}" for name, count in manifest.counts.items()},
        "territories": f"{len(manifest.territories)} in {len({t.region for t in manifest.territories})} regions",
        "attributes": ", ".join(f"{name} ({len(values)})" for name, values in manifest.attributes.items()) or "none",
        "window": f"{calendar.window_start:%Y-%m-%d %H:%M} to {calendar.window_end:%Y-%m-%d %H:%M} UTC",
        "evaluation": f"{calendar.num_evaluation_days} days of {calendar.day_s / 86400:g} d",
        "embeddings": f"user {embeddings.user_width}, title {embeddings.title_width}"
        if embeddings.user_width
        else "none yet",
        "buckets": str(manifest.num_buckets),
        "quarantined": ", ".join(f"{reason}: {count:,}" for reason, count in manifest.quarantined.items()) or "none",
        "hash": manifest.lake_hash[:16],
    }
    for name, value in facts.items():
        table.add_row(name, value)
    for note in manifest.notes:
        table.add_row("note", note)
    document = {
        "lake": uri,
        "source": manifest.source,
        "counts": manifest.counts,
        "quarantined": manifest.quarantined,
        "num_buckets": manifest.num_buckets,
        "embeddings": embeddings.model_dump(mode="json"),
        "lake_hash": manifest.lake_hash,
        "content_hashes": manifest.content_hashes,
        "notes": manifest.notes,
    }
    return document, [table]

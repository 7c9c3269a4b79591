"""`mtrec quickstart`: the whole way in one command."""

from typing import Annotated

import typer

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
from mtrec_ray.sources.registry import SOURCES

HELP = with_settings(("mtrec_ray.jobs.quickstart_config:QuickstartConfig", ""))


def quickstart(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", help=f"One of {', '.join(SOURCES)}; the first by default."),
    ] = None,
    raw: Annotated[
        str | None, typer.Option("--raw", metavar="DIR", help="Folder of the raw files; with parquet also a URI.")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="Folder for lake, runs and report.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Number of seeds.")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """From raw files to the gain in each territory, and to a bundle of recommenders that forget attributes at will."""
    from mtrec_ray.jobs.quickstart_config import QuickstartConfig
    from mtrec_ray.jobs.quickstart_steps import make_steps

    flags = {"source": source, "raw": raw, "out": out, "seeds": seeds}
    config = resolved(QuickstartConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.jobs.quickstart import quickstart as run

        done = run(config, progress)
        flat, tables = done.gains
        if done.audit is not None:
            audited, more = done.audit
            flat, tables = flat | audited | {"bundle": done.bundle}, tables + more
        return flat, tables

    run_job(job, as_json, num_cpus=make_steps(config).num_cpus)

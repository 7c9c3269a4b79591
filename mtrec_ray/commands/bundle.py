"""`mtrec bundle`."""

from typing import Annotated

import typer
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

HELP = with_settings(("mtrec_ray.jobs.bundle_config:BundleConfig", ""))


def bundle(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Folder or URI of a run of eliminators.")] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="BUNDLE", help="Folder or URI of the bundle.")] = None,
    audit: Annotated[
        str | None, typer.Option("--audit", metavar="DIR", help="The run's audit, as `mtrec audit --out` wrote it.")
    ] = None,
    propensity: Annotated[
        str | None, typer.Option("--propensity", metavar="RUN", help="A multi-task run on the same lake.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--evaluation", metavar="DIR", help="That run's evaluation, for the gates.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Make runs and their audit into what serving loads: safetensors, Parquet and JSON, nothing that is unpickled."""
    from mtrec_ray.jobs.bundle_config import BundleConfig

    flags = {"run": run, "out": out, "audit": audit, "propensity": propensity, "evaluation": evaluation}
    config = resolved(BundleConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.jobs.bundle import make_bundle

        made = make_bundle(config, progress)
        manifest = made.manifest
        table = Table(title=f"Bundle {made.uri}", show_header=False)
        table.add_row("version", manifest.version)
        table.add_row("combinations", f"{len(manifest.combinations)}")
        table.add_row("audited", "yes" if manifest.audit else "no")
        table.add_row("propensity model", "yes" if manifest.propensity else "no")
        facts = {"num_combinations": len(manifest.combinations), "audited": bool(manifest.audit)}
        return {"bundle": made.uri, "version": manifest.version, **facts}, [table]

    run_job(job, as_json)

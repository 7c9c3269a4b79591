"""`mtrec partition ...`: territory groups and why they are so."""

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

app = typer.Typer(help="Which territories share a group block.", no_args_is_help=True)


@app.callback()
def partition() -> None:
    """Partitions of the territories."""


@app.command("show", cls=with_settings(("mtrec_ray.tuning.config:PartitionConfig", "")))
def show(
    partition: Annotated[
        str | None,
        typer.Argument(
            metavar="PARTITION",
            help="one, each, regions, volume:4, taste:4, affinity:4, random:4:0 (taste and affinity find their number "
            "of groups where none is given), or a YAML file of groups.",
        ),
    ] = None,
    lake: Annotated[str | None, typer.Option("--lake", metavar="LAKE", help="Folder or URI of the lake.")] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="Also write the groups for `mtrec train --groups`.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Show the groups of a partition with their territories, sizes, and what holds them together."""
    from mtrec_ray.tuning.config import PartitionConfig

    flags = {"lake": lake, "partition": partition, "out": out}
    config = resolved(PartitionConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.tuning.show import show_partition

        return show_partition(config, progress)

    run_job(job, as_json)

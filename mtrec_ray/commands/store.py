"""`mtrec store load LAKE --store URL`: bring users to where serving looks them up."""

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

app = typer.Typer(help="The online store of serving.", no_args_is_help=True)


@app.command("load", cls=with_settings(("mtrec_ray.serving.load_config:StoreLoadConfig", "")))
def load(
    lake: Annotated[str | None, typer.Argument(metavar="[LAKE]", help="Folder or URI of the lake.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="redis://host:port/db, or a local folder.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Store every user of a lake with history, attributes, territory and embedding; again replaces, never doubles."""
    from mtrec_ray.serving.load_config import StoreLoadConfig

    config = resolved(StoreLoadConfig, config_file, settings, show_config, {"lake": lake, "store": store})

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.serving.load import load_store

        result = load_store(config, progress)
        return result.document(), result.tables()

    run_job(job, as_json)

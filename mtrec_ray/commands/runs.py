"""`mtrec runs ...`: list and show training runs."""

from typing import Annotated

import typer

from mtrec_ray.commands.options import AsJson
from mtrec_ray.console import print_result

app = typer.Typer(help="Training runs, finished or not.", no_args_is_help=True)

RUNS_HELP = "Folder or URI that holds runs."


@app.command("list")
def list_runs(
    runs: Annotated[str, typer.Argument(metavar="[DIR]", help=RUNS_HELP)] = "runs", as_json: AsJson = False
) -> None:
    """List the runs of a folder: state, input, figures."""
    from mtrec_ray.jobs import runs as job

    result = job.list_runs(job.ListRunsConfig(runs=runs))
    print_result(result.document(), result.tables(), as_json)


@app.command("show")
def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder or URI.")],
    runs: Annotated[str, typer.Option("--runs", metavar="DIR", help=RUNS_HELP)] = "runs",
    as_json: AsJson = False,
) -> None:
    """Show a run: settings, validations, loss over its steps, files."""
    from mtrec_ray.jobs import runs as job

    result = job.show_run(job.ShowRunConfig(run=run, runs=runs))
    print_result(result.document(), result.tables(), as_json)

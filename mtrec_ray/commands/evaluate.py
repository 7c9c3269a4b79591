"""`mtrec evaluate ...`."""

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

app = typer.Typer(help="Evaluate runs.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Evaluate runs."""


@app.command("propensity", cls=with_settings(("mtrec_ray.jobs.evaluate_config:EvaluateConfig", "")))
def propensity(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Finished runs; gains are over the first.")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Also write CSV, JSON and figures there.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """PR-AUC per territory and title with intervals, and gains over the first run (paper A, tables 2 and 3)."""
    from mtrec_ray.jobs.evaluate_config import EvaluateConfig

    config = resolved(EvaluateConfig, config_file, settings, show_config, {"runs": runs, "out": out})

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.jobs.evaluate import evaluate_propensity
        from mtrec_ray.jobs.report import show_report

        return show_report(evaluate_propensity(config, progress), config.out)

    run_job(job, as_json)

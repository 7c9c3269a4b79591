"""`mtrec search ...`: hyperparameters, group partitions, and lambda."""

from typing import Annotated, Any

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

app = typer.Typer(help="Search settings, group partitions and lambda, on validation users alone.", no_args_is_help=True)

Name = Annotated[str | None, typer.Option("--name", help="Name of the search.")]
Trials = Annotated[int | None, typer.Option("--trials", help="Configurations tried.")]
AtOnce = Annotated[int | None, typer.Option("--trials-at-once", help="Trials side by side; default: what fits.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Data-parallel workers of a trial.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of the sampler and of every trial.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a stopped search of this name; it reads Ray Tune's pickles: your own."),
]
Searches = Annotated[
    str | None, typer.Option("--searches", metavar="DIR", help="Folder or URI that holds the searches.")
]


@app.callback()
def search() -> None:
    """Search settings."""


@app.command("propensity", cls=with_settings(("mtrec_ray.tuning.config:PropensitySearchConfig", "")))
def propensity(
    lake: Annotated[str | None, typer.Option("--lake", metavar="LAKE", help="Folder or URI of the lake.")] = None,
    name: Name = None,
    trials: Trials = None,
    trials_at_once: AtOnce = None,
    workers: Workers = None,
    seed: Seed = None,
    searches: Searches = None,
    resume: Resume = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Search a propensity model's settings and group partition; writes a best-config.yaml that `mtrec train` takes."""
    from mtrec_ray.tuning.config import PropensitySearchConfig

    flags = {"lake": lake} | _common(name, trials, trials_at_once, workers, seed, searches)
    config = resolved(PropensitySearchConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.tuning.propensity_search import search_propensity
        from mtrec_ray.tuning.report import search_tables

        result = search_propensity(config, resume, progress)
        return result.flat(), list(search_tables(result))

    run_job(job, as_json)


@app.command("eliminators", cls=with_settings(("mtrec_ray.tuning.config:EliminatorsSearchConfig", "")))
def eliminators(
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="RUN", help="Folder or URI of the backbone's run.")
    ] = None,
    combinations: Annotated[
        str | None, typer.Option("--combinations", help="all, or by comma, attributes by plus: gender+age,occupation.")
    ] = None,
    name: Name = None,
    trials: Trials = None,
    trials_at_once: AtOnce = None,
    seed: Seed = None,
    searches: Searches = None,
    resume: Resume = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Search lambda, prompts, adapters and discriminators: a front of leakage against accuracy, and a choice of it."""
    from mtrec_ray.tuning.config import EliminatorsSearchConfig

    flags = {"backbone": backbone, "combinations": combinations}
    flags |= _common(name, trials, trials_at_once, None, seed, searches)
    config = resolved(EliminatorsSearchConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.tuning.eliminators_search import search_eliminators
        from mtrec_ray.tuning.report import search_tables

        results = search_eliminators(config, resume, progress)
        tables: list[Any] = [table for result in results for table in search_tables(result)]
        if config.shared:
            return results[0].flat(), tables
        return {result.uri.rsplit("/", 1)[-1]: result.flat() for result in results}, tables

    run_job(job, as_json)


def _common(
    name: str | None,
    trials: int | None,
    trials_at_once: int | None,
    workers: int | None,
    seed: int | None,
    searches: str | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "trials": trials,
        "trials_at_once": trials_at_once,
        "workers": workers,
        "seed": seed,
        "searches": searches,
    }

"""`mtrec train ...`."""

import math
from typing import Annotated

import typer
from rich.table import Column, Table

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

app = typer.Typer(help="Train models.", no_args_is_help=True)


@app.callback()
def train() -> None:
    """Train models."""


@app.command("propensity", cls=with_settings(("mtrec_ray.trainers.propensity_config:PropensityConfig", "")))
def propensity(
    lake: Annotated[str | None, typer.Option("--lake", metavar="LAKE", help="Folder or URI of the lake.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; the same name goes on where it stopped.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="[baseline|mtl]", help="One global model, or group blocks.")
    ] = None,
    groups: Annotated[str | None, typer.Option("--groups", help="one, each, regions or a YAML file.")] = None,
    group_block: Annotated[
        str | None, typer.Option("--group-block", help="Kind of group block, see the settings.")
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="Paper A's protocol: train on each day after evaluating it.")
    ] = False,
    workers: Annotated[int | None, typer.Option("--workers", help="Data-parallel workers.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per worker.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of weights and batch order.")] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", metavar="DIR", help="Folder or URI that holds the runs.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Train a propensity model (paper A); start it again with the same name and it goes on where it was stopped."""
    from mtrec_ray.trainers.propensity_config import PropensityConfig

    flags = {
        "lake": lake,
        "name": name,
        "kind": model,
        "model.groups": groups,
        "model.group_block": group_block,
        "incremental": incremental or None,
        "runner.workers": workers,
        "runner.use_gpu": gpu or None,
        "seed": seed,
        "runs": runs,
    }
    config = resolved(PropensityConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.training.propensity import train_propensity

        return _summary(train_propensity(config, progress))

    run_job(job, as_json, num_cpus=math.ceil(config.runner.workers * config.runner.cpus_per_worker))


@app.command("backbone", cls=with_settings(("mtrec_ray.trainers.backbone_config:BackboneConfig", "")))
def backbone(
    lake: Annotated[str | None, typer.Option("--lake", metavar="LAKE", help="Folder or URI of the lake.")] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; the same name goes on where it stopped.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="[sasrec|bert4rec]", help="Looks back alone, or both ways.")
    ] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Data-parallel workers.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per worker.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of weights and batch order.")] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", metavar="DIR", help="Folder or URI that holds the runs.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Train a sequential backbone (paper B); start it again with the same name and it goes on where it was stopped."""
    from mtrec_ray.trainers.backbone_config import BackboneConfig

    flags = {
        "lake": lake,
        "name": name,
        "model.kind": kind,
        "runner.workers": workers,
        "runner.use_gpu": gpu or None,
        "seed": seed,
        "runs": runs,
    }
    config = resolved(BackboneConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.training.backbone import train_backbone

        record = train_backbone(config, progress)
        facts = {"kind": config.model.kind} | _rounded(record.metrics)
        return {"run": record.uri, **record.metrics}, [_fact_table(record.uri, facts)]

    run_job(job, as_json, num_cpus=math.ceil(config.runner.workers * config.runner.cpus_per_worker))


@app.command("eliminators", cls=with_settings(("mtrec_ray.trainers.eliminators_config:EliminatorsConfig", "")))
def eliminators(
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="RUN", help="Folder or URI of the backbone's run.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Name of the run; the same name goes on where it stopped.")
    ] = None,
    combinations: Annotated[
        str | None, typer.Option("--combinations", help="all, or by comma, attributes by plus: gender+age,occupation.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="[eliminator|filter|fine_tuning]", help="The last two are for comparison."),
    ] = None,
    pack_size: Annotated[int | None, typer.Option("--pack-size", help="Combinations trained in one job.")] = None,
    workers: Annotated[int | None, typer.Option("--workers", help="Data-parallel workers of each job.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU per worker.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of weights and batch order.")] = None,
    runs: Annotated[
        str | None, typer.Option("--runs", metavar="DIR", help="Folder or URI that holds the runs.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Train eliminators of a backbone (paper B) as parallel jobs; the same name goes on with what is unfinished."""
    from mtrec_ray.trainers.eliminators_config import EliminatorsConfig

    flags = {
        "backbone": backbone,
        "name": name,
        "combinations": combinations,
        "method": method,
        "pack_size": pack_size,
        "runner.workers": workers,
        "runner.use_gpu": gpu or None,
        "seed": seed,
        "runs": runs,
    }
    config = resolved(EliminatorsConfig, config_file, settings, show_config, flags)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.training.eliminators import train_eliminators

        record = train_eliminators(config, progress)
        return {"run": record.uri, **record.metrics}, [combination_table(record)]

    run_job(job, as_json, num_cpus=math.ceil(config.runner.workers * config.runner.cpus_per_worker))


def _summary(record) -> JobResult:
    facts = {
        "model": record.config.kind,
        "groups": f"{len(record.groups.names)} ({record.config.model.group_block})"
        if record.config.kind == "mtl"
        else "none",
        "steps": f"{record.num_steps:,}",
    }
    table = _fact_table(record.uri, facts | _rounded(record.metrics))
    return {"run": record.uri, "num_steps": record.num_steps, **record.metrics}, [table]


def combination_table(record) -> Table:
    """What each combination of a run of eliminators came to."""
    from mtrec_ray.combinations import NONE, combination_name
    from mtrec_ray.training.eliminators_run import COMBINATION_FIGURES

    title = f"Run {record.uri}: {record.config.method}, jobs: {len(record.packs)}"
    headings = [heading for heading, _ in COMBINATION_FIGURES.values()]
    table = Table(Column("ignoring", overflow="fold"), *headings, title=title)
    for name in (NONE, *map(combination_name, record.combinations)):
        found = [(record.metrics.get(f"{figure}/{name}"), form) for figure, (_, form) in COMBINATION_FIGURES.items()]
        table.add_row(name, *("" if value is None else format(value, form) for value, form in found))
    return table


def _rounded(metrics: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.5g}" for name, value in metrics.items() if name != "step"}


def _fact_table(title: str, facts: dict[str, str]) -> Table:
    table = Table(title=f"Run {title}", show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    return table

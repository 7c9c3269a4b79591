"""`mtrec pairs show LAKE`: who would be trained on and with which pairs (paper A, table 1)."""

import typer
from rich.table import Table

from mtrec_ray.commands.lake import LakeArgument
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

app = typer.Typer(help="The pair streams.", no_args_is_help=True)


@app.command("show", cls=with_settings(("mtrec_ray.streams.config:PairsConfig", "")))
def show(
    lake: LakeArgument,
    config_file: ConfigFile = None,
    settings: Settings = None,
    show_config: PrintConfig = False,
    as_json: AsJson = False,
) -> None:
    """Users, active users added, positives and negatives of each territory, for the given sample settings."""
    from mtrec_ray.streams.config import PairsConfig

    config = resolved(PairsConfig, config_file, settings, show_config)

    def job(progress: ProgressCallback) -> JobResult:
        from mtrec_ray.lake.manifest import Lake
        from mtrec_ray.lake.window import resolve_calendar
        from mtrec_ray.streams.plan import make_plan

        opened = Lake.open(lake)
        plan = make_plan(opened, config.sample, resolve_calendar(opened, config.window), progress=progress)
        return pairs_table(opened.territory_names(), plan)

    run_job(job, as_json)


def pairs_table(territories: list[str], plan) -> JobResult:
    """Paper A's table 1 of a plan."""
    period = plan.periods[0]
    columns = {
        "users": plan.users,
        "training users": plan.training_users,
        "active users": plan.active_users,
        "random sample": plan.random_users,
        "added": plan.added_users,
        "positives": period.positives,
        "negatives": [round(period.negative_rate * eligible) for eligible in period.eligible],
    }
    what = "active users" if plan.sample.upsample == "active" else "random users with as many positives"
    table = Table(
        title=f"Pairs of {period.start:%Y-%m-%d} to {period.end:%Y-%m-%d}: alpha {period.alpha:g}, added = {what}",
        caption="negatives: expected; each eligible (user, title) is drawn with "
        f"probability {period.negative_rate:.3g}. "
        f"{plan.not_offered_positives:,} discoveries of titles not offered left out.",
    )
    table.add_column("territory")
    for name in columns:
        table.add_column(name, justify="right")
    for index, territory in enumerate(territories):
        table.add_row(territory, *(f"{values[index]:,}" for values in columns.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(values):,}" for values in columns.values()))
    document = {
        f"{name.replace(' ', '_')}/{territory}": values[index]
        for name, values in columns.items()
        for index, territory in enumerate(territories)
    }
    totals = {f"{name.replace(' ', '_')}/all": sum(values) for name, values in columns.items()}
    return {"alpha": period.alpha, "negative_rate": period.negative_rate} | totals | document, [table]

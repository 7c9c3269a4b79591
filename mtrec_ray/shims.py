"""Results of jobs that do not return a JobResult yet."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass
class FlatResult:
    flat: dict[str, Any]
    shown: list[Any]

    @property
    def metrics(self) -> Any:
        import pandas as pd

        return pd.DataFrame(list(self.flat.items()), columns=["name", "value"])

    def document(self) -> dict[str, Any]:
        return {"version": 1, **self.flat}

    def tables(self) -> list[Any]:
        return self.shown


def shimmed(run: str, config: Any, result: Any) -> Any:
    """`result` as a JobResult."""
    if result is None or hasattr(result, "tables"):
        return result
    name = run.rpartition(":")[2]
    return FlatResult(*globals()[f"_{name}"](config, result))


def show_pairs(config: Any, progress: Any = None) -> Any:
    from mtrec_ray.lake.manifest import Lake
    from mtrec_ray.lake.window import resolve_calendar
    from mtrec_ray.streams.plan import make_plan

    opened = Lake.open(config.lake)
    plan = make_plan(opened, config.sample, resolve_calendar(opened, config.window), progress=progress)
    return FlatResult(*pairs_table(opened.territory_names(), plan))


def pairs_table(territories: list[str], plan) -> Any:
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



"""`mtrec pairs show`: who would be trained on, and with how many pairs (paper A, table 1)."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback
from mtrec_ray.evaluation.report import POOLED, row_labels
from mtrec_ray.evaluation.terminal_tables import numbers_table
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import PairsConfig
from mtrec_ray.streams.plan import PairPlan, make_plan


@dataclass(frozen=True)
class PairsSummary:
    """A `JobResult`: users and pairs of the training window."""

    territories: list[str]
    plan: PairPlan

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per territory; negatives are expected numbers."""
        plan, period = self.plan, self.plan.periods[0]
        counts = {
            "users": plan.users,
            "training_users": plan.training_users,
            "active_users": plan.active_users,
            "random_sample": plan.random_users,
            "added": plan.added_users,
            "positives": period.positives,
            "negatives": [round(period.negative_rate * eligible) for eligible in period.eligible],
        }
        return pd.DataFrame({"territory": self.territories} | counts)

    def document(self) -> dict[str, Any]:
        counts, period = self.metrics.set_index("territory"), self.plan.periods[0]
        rates, counts = {"alpha": period.alpha, "negative_rate": period.negative_rate}, counts.astype(object)
        return {"version": 1, **rates, POOLED: counts.sum().to_dict(), "territories": counts.T.to_dict()}

    def tables(self) -> list[RenderableType]:
        counts, plan, period = self.metrics.set_index("territory"), self.plan, self.plan.periods[0]
        note = (
            "negatives: expected; each eligible (user, title) is drawn with probability "
            f"{period.negative_rate:.3g}. {plan.not_offered_positives:,} discoveries of titles not offered left out."
        )
        if period.start > (fitted_from := plan.calendar.window_start):
            note += f" Earlier events, from {fitted_from:%Y-%m-%d} on, made the interaction vectors."
        added = "active users" if plan.sample.upsample == "active" else "random users with as many positives"
        table = numbers_table(
            f"Pairs of {period.start:%Y-%m-%d} to {period.end:%Y-%m-%d}: alpha {period.alpha:g}, added = {added}",
            ["territory"],
            [name.replace("_", " ") for name in counts.columns],
            note,
        )
        for label, (_, row) in zip(row_labels(self.territories), counts.iterrows(), strict=True):
            table.add_row(label, *(f"{count:,}" for count in row))
        table.add_section()
        table.add_row(POOLED, *(f"{count:,}" for count in counts.sum()))
        return [table]


def summarise_pairs(config: PairsConfig, progress: ProgressCallback | None = None) -> PairsSummary:
    """Count the users and pairs that the given sample settings would train on."""
    lake = Lake.open(config.lake)
    plan, _ = make_plan(lake, config.sample, config.window.resolve(lake.manifest.calendar), progress=progress)
    return PairsSummary(lake.territory_names(), plan)

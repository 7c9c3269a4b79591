"""What a search found, as tidy figures, as a document, and as tables for people."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.files import join
from mtrec_ray.tuning.search import PreparedSearch
from mtrec_ray.tuning.space import GROUPS, moves_of

if TYPE_CHECKING:
    import pandas as pd

BEST_CONFIG = "best-config.yaml"
DONE, STOPPED, FAILED = "done", "stopped early", "failed"


@dataclass(frozen=True)
class TrialRow:
    """One trial as it ended."""

    trial_id: str
    status: str
    params: dict[str, Any]
    metrics: dict[str, float]
    """Of the last validation, bounds of a metric as `METRIC_low` and `METRIC_high`."""
    reports: list[dict[str, float]]
    """One for each validation."""

    def figures(self) -> dict[str, dict[str, float | None]]:
        """Metric -> value, low and high; None for bounds that were not reported."""
        names = [name for name in self.metrics if not name.endswith(("_low", "_high"))]
        ends = {"value": "", "low": "_low", "high": "_high"}
        return {name: {key: self.metrics.get(name + end) for key, end in ends.items()} for name in names}

    def text(self, metric: str) -> str:
        value, low, high = (self.metrics.get(metric + end) for end in ("", "_low", "_high"))
        if value is None:
            return "-"
        return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    uri: str
    rows: list[TrialRow]
    best: TrialRow
    prepared: PreparedSearch
    notes: list[str]
    front: list[TrialRow]
    """Pareto-optimal trials, sorted by the first goal; the first of those with equal figures."""
    fresh: list[dict[str, float]] = field(default_factory=list)
    """Figures of the best configuration, trained again with fresh seeds."""

    def num_inside(self, metric: str) -> int:
        """Number of fresh seeds whose figure lies inside the best trial's interval."""
        low, high = (self.best.metrics.get(metric + end, math.nan) for end in ("_low", "_high"))
        return sum(low <= figures[metric] <= high for figures in self.fresh)

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row a trial and metric: trial, metric, value, low, high."""
        import pandas as pd

        observations = [
            {"trial": row.trial_id, "metric": metric, **figure}
            for row in self.rows
            for metric, figure in row.figures().items()
        ]
        return pd.DataFrame(observations, columns=["trial", "metric", "value", "low", "high"])

    def document(self) -> dict[str, Any]:
        """Version, best trial, its fresh seeds by goal, the Pareto front, and counts of trials."""
        statuses = [row.status for row in self.rows]
        return {
            "version": 1,
            "search": self.uri,
            "best_config": join(self.uri, BEST_CONFIG),
            "best": {"trial": self.best.trial_id, "params": self.best.params, "metrics": self.best.figures()},
            "fresh_seeds": {
                goal: {"values": [figures[goal] for figures in self.fresh], "num_inside": self.num_inside(goal)}
                for goal in self.prepared.goals
            },
            "pareto_front": [row.trial_id for row in self.front],
            "num_trials": {status: statuses.count(status) for status in (DONE, STOPPED, FAILED)},
            "notes": self.notes,
        }

    def tables(self) -> list[RenderableType]:
        """All trials, the best first, and partitions compared with random ones."""
        return [_trials_table(self), *_partitions_table(self)]


def _trials_table(result: SearchResult) -> Table:
    goals, first = list(result.prepared.goals), result.prepared.first_goal
    keys = [key for key in dict.fromkeys(key for row in result.rows for key in row.params) if key[:4] != "move"]
    dim = ["dim: not Pareto-optimal"] if len(goals) > 1 else []
    caption = "; ".join([*result.notes, *dim])
    table = Table(title=f"Search {result.uri}: best trial {result.best.trial_id}", caption=caption)
    for name in ("trial", "status", *goals, *keys):
        table.add_column(name, overflow="fold")
    sign = 1 if result.prepared.goals[first] == "min" else -1
    for row in sorted(result.rows, key=lambda row: (row.status != DONE, sign * row.metrics.get(first, sign * np.inf))):
        style = "bold" if row is result.best else None if len(goals) == 1 or row in result.front else "dim"
        cells = [*(row.text(goal) for goal in goals), *(_setting_text(row, key) for key in keys)]
        table.add_row(row.trial_id[-5:], row.status, *cells, style=style)
    if result.fresh:
        values = [", ".join(f"{figures[goal]:.4f}" for figures in result.fresh) for goal in goals]
        inside = [f"{result.num_inside(goal)} inside the best trial's interval" for goal in goals]
        cells = [f"{one} ({count})" for one, count in zip(values, inside, strict=True)]
        table.add_row("best", f"{len(result.fresh)} fresh seeds", *cells, end_section=True)
    return table


def _partitions_table(result: SearchResult) -> list[Table]:
    """Unmoved partitions at the usual settings, beside random ones."""
    metric, first, groups_files = result.prepared.first_goal, result.prepared.first, result.prepared.specs.groups_files
    done = [row for row in result.rows if row.status == DONE and GROUPS in row.params]
    rows = {str(row.params[GROUPS]): row for row in done if any(one.items() <= row.params.items() for one in first)}
    random = {name: row.metrics[metric] for name, row in rows.items() if name.startswith("random")}
    if not random or not groups_files:
        return []
    num_groups = {name: len(groups.names) for name, groups in groups_files.partitions.items()}
    table = Table(title=f"Partitions by {metric}, all else equal")
    for name in ("partition", "groups", metric, "gain over the mean of random partitions"):
        table.add_column(name)
    for name, row in sorted(rows.items(), key=lambda item: -item[1].metrics[metric]):
        as_many = [value for other, value in random.items() if num_groups[other] == num_groups[name]]
        of = "" if as_many else f" (of {', '.join(sorted({str(num_groups[other]) for other in random}))} groups)"
        gain = row.metrics[metric] / float(np.mean(as_many or list(random.values()))) - 1
        table.add_row(name, str(num_groups[name]), row.text(metric), f"{100 * gain:+.1f}%{of}")
    return [table]


def _setting_text(row: TrialRow, key: str) -> str:
    """A setting; a partition with its moves, as in `taste:4, T001 to T007`."""
    value = row.params.get(key)
    if key == GROUPS:
        moves = (f"{territory} to {host}" for territory, host in moves_of(row.params) if territory != host)
        return ", ".join([str(value), *moves])
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

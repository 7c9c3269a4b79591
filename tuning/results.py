"""What a search found, as tidy figures, as a document, and as tables for people."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Column, Table

from mtrec_ray.files import join
from mtrec_ray.tuning.data import Figures
from mtrec_ray.tuning.search import PreparedSearch
from mtrec_ray.tuning.space import GROUPS, moves_of

BEST_CONFIG = "best-config.yaml"
DONE, STOPPED, FAILED = "done", "stopped early", "failed"


@dataclass(frozen=True)
class TrialRow:
    """One trial as it ended."""

    trial_id: str
    status: str
    params: dict[str, Any]
    figures: Figures  # of the last validation
    reports: list[float] = field(default_factory=list)  # the first goal at each validation
    reason: str = ""  # why it failed

    def value(self, metric: str) -> float:
        """NaN where the trial did not report it."""
        return self.figures.get(metric, {}).get("value", np.nan)

    def text(self, metric: str) -> str:
        figure = self.figures.get(metric)
        if not figure:
            return "-"
        value = f"{figure['value']:.4f}"
        return f"{value} ({figure['low']:.4f} to {figure['high']:.4f})" if "low" in figure else value


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    prepared: PreparedSearch
    rows: list[TrialRow]
    best: TrialRow
    notes: list[str]
    front: list[TrialRow]  # pareto-optimal trials, sorted by the first goal; the first of those with equal figures
    fresh: list[Figures] = field(default_factory=list)  # of the best configuration, trained again with fresh seeds

    @property
    def uri(self) -> str:
        return self.prepared.config.uri

    def fresh_values(self, metric: str) -> list[float]:
        """Of the fresh seeds with which training did not diverge."""
        return [figures[metric]["value"] for figures in self.fresh if figures]

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a trial and metric: trial, metric, value, low, high."""
        rows = [
            {"trial": row.trial_id, "metric": m, **figure} for row in self.rows for m, figure in row.figures.items()
        ]
        return pd.DataFrame(rows, columns=["trial", "metric", "value", "low", "high"])

    def document(self) -> dict[str, Any]:
        statuses = [row.status for row in self.rows]
        return {
            "version": 1,
            "search": self.uri,
            "goals": dict(self.prepared.goals),
            "best_config": join(self.uri, BEST_CONFIG),
            "best": {"trial": self.best.trial_id, "params": self.best.params, "metrics": self.best.figures},
            "fresh_seeds": {goal: self.fresh_values(goal) for goal in self.prepared.goals},
            "pareto_front": [row.trial_id for row in self.front],
            "num_trials": {status: statuses.count(status) for status in (DONE, STOPPED, FAILED)},
            "failures": {row.trial_id: row.reason for row in self.rows if row.reason},
            "notes": self.notes,
        }

    def tables(self) -> list[RenderableType]:
        return [_trials_table(self), *_partitions_table(self)]


def _trials_table(result: SearchResult) -> Table:
    goals, first = list(result.prepared.goals), result.prepared.first_goal
    keys = [key for key in dict.fromkeys(key for row in result.rows for key in row.params) if key[:4] != "move"]
    caption = "; ".join([*result.notes, *(["dim: not Pareto-optimal"] if len(goals) > 1 else [])])
    columns = (Column(name, overflow="fold") for name in ("trial", "status", *goals, *keys))
    table = Table(*columns, title=f"Search {result.uri}: best trial {result.best.trial_id}", caption=caption)
    sign = 1 if result.prepared.goals[first] == "min" else -1
    for row in sorted(result.rows, key=lambda r: (r.status != DONE, np.nan_to_num(sign * r.value(first), nan=np.inf))):
        style = "bold" if row is result.best else None if len(goals) == 1 or row in result.front else "dim"
        cells = [*map(row.text, goals), *(_setting_text(row, key) for key in keys)]
        table.add_row(row.trial_id[-5:], ": ".join(filter(None, (row.status, row.reason))), *cells, style=style)
    if result.fresh:
        values = [", ".join(f"{value:.4f}" for value in result.fresh_values(goal)) for goal in goals]
        table.add_row("best", f"{len(result.fresh)} fresh seeds", *values)
    return table


def _partitions_table(result: SearchResult) -> list[Table]:
    """Unmoved partitions at the usual settings, with random ones of as many groups, or all."""
    metric, first, groups_files = result.prepared.first_goal, result.prepared.first, result.prepared.specs.groups_files
    done = [row for row in result.rows if row.status == DONE and GROUPS in row.params]
    rows = {str(row.params[GROUPS]): row for row in done if any(one.items() <= row.params.items() for one in first)}
    random = {name: row.value(metric) for name, row in rows.items() if name.startswith("random")}
    if not random or not groups_files:
        return []
    num_groups = {name: len(groups.names) for name, groups in groups_files.partitions.items()}
    columns = ("partition", "groups", metric, "gain over the mean of random partitions")
    table = Table(*columns, title=f"Partitions by {metric}, all else equal")
    for name, row in sorted(rows.items(), key=lambda item: -item[1].value(metric)):
        as_many = [value for other, value in random.items() if num_groups[other] == num_groups[name]]
        gain = row.value(metric) / float(np.mean(as_many or list(random.values()))) - 1
        table.add_row(name, str(num_groups[name]), row.text(metric), f"{100 * gain:+.1f}%")
    return [table]


def _setting_text(row: TrialRow, key: str) -> str:
    """A setting; a partition with its moves, as in `taste:4, T001 to T007`."""
    value = row.params.get(key)
    if key == GROUPS:
        moves = (f"{territory} to {host}" for territory, host in moves_of(row.params) if territory != host)
        return ", ".join([str(value), *moves])
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)

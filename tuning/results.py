"""What a search found: trials.csv, best-config.yaml, summary.json and a page of Optuna's plots."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import optuna
import pandas as pd
import yaml
from ray import tune

from mtrec_ray.files import join, write_file, write_json
from mtrec_ray.tuning.plots import plots_page
from mtrec_ray.tuning.search import Prepared
from mtrec_ray.tuning.trainable import is_there

Settings = Callable[[dict[str, Any]], dict[str, Any]]
Confirm = Callable[[dict[str, Any]], list[dict[str, float]]]
DONE, STOPPED, FAILED = "done", "stopped early", "failed"
TIMES = ("steps_s", "reading_s", "validating_s", "time_total_s")


@dataclass(frozen=True)
class TrialRow:
    """One trial as it ended."""

    trial_id: str
    status: str
    params: dict[str, Any]
    metrics: dict[str, float]
    """Of the last look."""
    looks: list[dict[str, float]]


@dataclass(frozen=True)
class SearchResult:
    """A finished search."""

    uri: str
    rows: list[TrialRow]
    best: TrialRow
    prepared: Prepared
    notes: list[str]
    front: list[TrialRow]
    """Trials that no other equals or beats in every goal, sorted by the first; of equal ones the first."""
    fresh: list[dict[str, float]] = field(default_factory=list)
    """Figures of the best configuration with seeds of its own."""

    def confirmed(self, metric: str) -> int:
        """How many fresh seeds lie inside the best trial's interval."""
        low, high = (self.best.metrics.get(metric + end, math.nan) for end in ("_low", "_high"))
        return sum(low <= figures[metric] <= high for figures in self.fresh)

    def flat(self) -> dict[str, Any]:
        """What `--json` prints."""
        counts = {status: sum(row.status == status for row in self.rows) for status in (DONE, STOPPED, FAILED)}
        return {
            "search": self.uri,
            "best_config": join(self.uri, "best-config.yaml"),
            "best/trial": self.best.trial_id,
            **{f"best/{key}": value for key, value in self.best.metrics.items()},
            **{f"best/params/{key}": value for key, value in self.best.params.items()},
            **{f"fresh/{g.metric}": [one[g.metric] for one in self.fresh] for g in self.prepared.goals},
            **{f"fresh_inside/{g.metric}": self.confirmed(g.metric) for g in self.prepared.goals},
            "front": [row.trial_id for row in self.front],
            **{f"trials/{status.replace(' ', '_')}": count for status, count in counts.items()},
            "notes": self.notes,
        }


class NothingFound(RuntimeError):
    """No trial came to its end."""


def collect(
    uri: str,
    grid: tune.ResultGrid,
    prepared: Prepared,
    settings: Settings,
    notes: list[str],
    confirm: Confirm,
    choose: Callable[[list[TrialRow]], TrialRow] | None = None,
) -> SearchResult:
    """Write the files of a finished search.

    Args:
        uri: of the search.
        grid: Tune's results.
        prepared: space and goals.
        settings: parameters -> the document that `mtrec train` reads.
        notes: what a reader of the figures must know.
        confirm: trains parameters anew with fresh seeds.
        choose: among whole trials; None: the best by the only goal.

    Raises:
        NothingFound: no trial came to its end with a figure.
    """
    rows = [_row(result, prepared.num_validations) for result in grid]
    whole = [row for row in rows if row.status == DONE and all(_known(row, goal.metric) for goal in prepared.goals)]
    if not whole:
        errors = [(str(error).strip() or type(error).__name__).splitlines()[-1] for error in grid.errors]
        raise NothingFound(
            f"none of {len(rows)} trials came to its end with a figure; first error: {[*errors, 'none'][0]}"
        )
    goal = prepared.goals[0]
    best = choose(whole) if choose else max(whole, key=lambda row: _signed(row, goal.metric, goal.mode))
    write_file(join(uri, "trials.csv"), _table(rows).to_csv(index=False).encode())
    write_file(join(uri, "best-config.yaml"), yaml.safe_dump(settings(best.params), sort_keys=False).encode())
    fresh = confirm(best.params)
    result = SearchResult(uri, rows, best, prepared, notes, pareto_front(whole, prepared), fresh)
    write_file(join(uri, "plots.html"), plots_page(study_of(result), [g.metric for g in prepared.goals]).encode())
    write_json(join(uri, "summary.json"), result.flat())
    for ended in grid:
        if ended.checkpoint is not None and is_there(ended.checkpoint):  # nobody goes on from them
            ended.checkpoint.filesystem.delete_dir(ended.checkpoint.path)
    return result


def study_of(result: SearchResult) -> optuna.Study:
    """The trials as an Optuna study, for its plots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goals = result.prepared.goals
    study = optuna.create_study(directions=["maximize" if goal.mode == "max" else "minimize" for goal in goals])
    for row in result.rows:
        if not all(_known(row, goal.metric) for goal in goals):
            continue
        fixed = optuna.trial.FixedTrial(row.params)
        result.prepared.space.suggest(fixed)  # pyright: ignore[reportArgumentType]
        metric = goals[0].metric
        looks = {number: look[metric] for number, look in enumerate(row.looks, 1) if len(goals) == 1}
        study.add_trial(
            optuna.trial.create_trial(
                params=fixed.params,
                distributions=fixed.distributions,
                values=[row.metrics[goal.metric] for goal in goals],
                intermediate_values=looks,
                state=optuna.trial.TrialState.COMPLETE if row.status == DONE else optuna.trial.TrialState.PRUNED,
            )
        )
    return study


def pareto_front(rows: list[TrialRow], prepared: Prepared) -> list[TrialRow]:
    """Rows that no other one equals or beats in every goal and beats in one, by the first goal's value.

    Of rows with equal figures it holds the first, as a choice by `min` or `max` does.
    """

    def point(row: TrialRow) -> tuple[float, ...]:
        return tuple(_signed(row, goal.metric, goal.mode) for goal in prepared.goals)

    def beaten(row: TrialRow) -> bool:
        own = point(row)
        return any(
            all(o >= m for o, m in zip(point(other), own, strict=True)) and point(other) != own for other in rows
        )

    front: dict[tuple[float, ...], TrialRow] = {}
    for row in rows:
        if not beaten(row):
            front.setdefault(point(row), row)
    return [front[key] for key in sorted(front)]


def _row(result: Any, num_validations: int) -> TrialRow:
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if isinstance(v, int | float)}
    history = result.metrics_dataframe
    looks = [] if history is None else history.drop_duplicates("training_iteration", keep="last").to_dict("records")
    done = metrics.get("training_iteration", 0) >= num_validations
    status = FAILED if result.error else DONE if done else STOPPED
    trial_id = (result.metrics or {}).get("trial_id") or str(result.path).rsplit("/", 1)[-1]
    return TrialRow(str(trial_id), status, dict(result.config or {}), _own(metrics), looks)


def _own(metrics: dict[str, float]) -> dict[str, float]:
    """What the trial reported, without what Tune adds."""
    return {key: value for key, value in metrics.items() if "/" in key or key in TIMES}


def _known(row: TrialRow, metric: str) -> bool:
    return math.isfinite(row.metrics.get(metric, math.nan))


def _signed(row: TrialRow, metric: str, mode: str) -> float:
    return row.metrics[metric] if mode == "max" else -row.metrics[metric]


def _table(rows: list[TrialRow]) -> pd.DataFrame:
    records = [
        {"trial": row.trial_id, "status": row.status, "looks": len(row.looks), **row.params, **row.metrics}
        for row in rows
    ]
    return pd.DataFrame.from_records(records)

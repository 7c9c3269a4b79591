"""Result files of a search: choice, Pareto front and figures."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from ray.tune.utils import flatten_dict

from mtrec_ray.errors import UserError
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning import collect
from mtrec_ray.tuning.collect import run_search, study_of
from mtrec_ray.tuning.data import Figures
from mtrec_ray.tuning.results import DONE, FAILED, STOPPED, SearchResult, TrialRow
from mtrec_ray.tuning.search import PreparedSearch
from mtrec_ray.tuning.space import Space, parse_space
from tests.tuning.conftest import specs_of
from tests.tuning.test_propensity_search import search

SPACE, _ = parse_space(
    {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.group_block": ["dense", "hierarchical"]},
    {},
    PropensityConfig,
    (),
    {},
)
DIVERGED = "training diverged: loss is nan at step 2"
ACCURACY, LEAKAGE = "pr_auc/weighted", "leakage/mean"
FRESH = {ACCURACY: {"value": 0.39}, LEAKAGE: {"value": 0.1}}


def prepared(*goals: str, space: Space = SPACE, folder: Path = Path("x")) -> PreparedSearch:
    modes = {goal: "min" if goal == LEAKAGE else "max" for goal in goals}
    config = search("lake", searches=str(folder.parent), name=folder.name)
    return PreparedSearch(config, specs_of(space), modes, [], ("a note",), num_validations=2)


def values_of(figures: dict[str, float]) -> Figures:
    return {name: {"value": value} for name, value in figures.items()}


class Grid(list):
    """As much of Tune's results as is read."""

    @property
    def errors(self) -> list[Exception]:
        return [result.error for result in self if result.error]


def result(
    trial_id: str, reports: list[Any], lr: float, block: str = "dense", error: Exception | None = None, **more: str
) -> Any:
    """A trial with a report at each validation: of `ACCURACY`, or of several metrics."""
    named = [report if isinstance(report, dict) else {ACCURACY: report} for report in reports]
    rows = [{"training_iteration": n, "figures": values_of(one), "time_total_s": n} for n, one in enumerate(named, 1)]
    rows = [row | {"trial_id": trial_id, "pid": 7} for row in rows]
    return SimpleNamespace(
        metrics=rows[-1] | more if rows else {"trial_id": trial_id},
        metrics_dataframe=pd.DataFrame(map(flatten_dict, rows)) if rows else None,
        error=error,
        checkpoint=None,
        path=f"/searches/x/tune/{trial_id}",
        config={"optim.lr": lr, "model.group_block": block},
    )


def some_trials() -> Grid:
    return Grid(
        [
            result("t1", [0.10, 0.20], 1e-3),
            result("t2", [0.20, 0.40], 1e-2, "hierarchical"),
            result("t3", [0.05], 5e-2),
            result("t4", [0.30, 0.35], 3e-3, "hierarchical"),
            result("t5", [], 9e-2, error=RuntimeError("it died\nout of memory")),
            result("t6", [0.5, float("nan")], 2e-3),
            result("t7", [float("nan")], 1e30, failed=DIVERGED),
        ]
    )


def collected(folder: Path, grid: Any, *goals: str, **changes: Any) -> SearchResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "train_with_fresh_seeds", lambda *_: [FRESH])
        patch.setattr(collect, "run_trials", lambda *_: grid)
        return run_search(prepared(*goals or (ACCURACY,), folder=folder), False, None, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def found(folder) -> SearchResult:
    """`some_trials`, collected in `folder`."""
    return collected(folder, some_trials())


def test_the_best_is_the_complete_trial_with_the_best_figure(found, folder):
    assert {row.trial_id: row.status for row in found.rows} == {
        "t1": DONE, "t2": DONE, "t3": STOPPED, "t4": DONE, "t5": FAILED, "t6": DONE, "t7": FAILED,
    }  # fmt: skip
    assert found.best.trial_id == "t2"
    assert found.front == [found.best]
    best_config = {"optim": {"lr": 1e-2}, "model": {"group_block": "hierarchical"}}
    assert yaml.safe_load((folder / "best-config.yaml").read_text()) == best_config
    assert json.loads((folder / "summary.json").read_text()) == found.document()
    assert found.document()["failures"] == {"t5": "out of memory", "t7": DIVERGED}
    assert (found.fresh, found.notes) == ([FRESH], ["a note"])


def test_choose_receives_complete_trials_with_figures_and_adds_notes(tmp_path):
    offered = []

    def choose(rows: list[TrialRow]) -> tuple[TrialRow, list[str]]:
        offered.extend(row.trial_id for row in rows)
        return rows[0], ["chosen"]

    result = collected(tmp_path, some_trials(), choose=choose)
    assert (result.best.trial_id, result.notes) == ("t1", ["a note", "chosen"])
    assert offered == ["t1", "t2", "t4"]


@pytest.mark.parametrize(
    ("figures", "front"),
    [
        (
            {"leaks most": (0.30, 0.9), "between": (0.20, 0.8), "leaks least": (0.10, 0.5)}
            | {"less accurate than between": (0.20, 0.7), "worse in both": (0.25, 0.6), "leaks more": (0.15, 0.5)},
            ["leaks most", "between", "leaks least"],
        ),
        ({"a": (0.2, 0.8), "b": (0.2, 0.8), "c": (0.1, 0.4)}, ["a", "c"]),  # the first of equal ones
    ],
)
def test_the_front_is_pareto_optimal_and_sorted_by_the_first_goal(tmp_path, figures, front):
    grid = Grid(
        result(name, [dict(zip((LEAKAGE, ACCURACY), values, strict=True))] * 2, 1e-3)
        for name, values in figures.items()
    )
    found = collected(tmp_path, grid, LEAKAGE, ACCURACY, choose=lambda rows: (rows[0], []))
    assert [row.trial_id for row in found.front] == front


def test_trials_csv_has_settings_and_metrics_csv_has_figures_without_what_tune_adds(found, folder):
    trials, metrics = (pd.read_csv(folder / f"{name}.csv") for name in ("trials", "metrics"))
    assert trials.columns.tolist() == ["trial", "status", "validations", "optim.lr", "model.group_block"]
    assert trials["trial"].tolist() == ["t1", "t2", "t3", "t4", "t5", "t6", "t7"]
    assert trials["validations"].tolist() == [2, 2, 1, 2, 0, 2, 0]
    assert metrics.columns.tolist() == ["trial", "metric", "value", "low", "high"]
    values = metrics[metrics["metric"] == ACCURACY].set_index("trial")["value"]
    assert values.dropna().to_dict() == {"t1": 0.20, "t2": 0.40, "t3": 0.05, "t4": 0.35}
    assert set(metrics["metric"]) == {ACCURACY, "time_total_s"}


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Grid([result("t1", [], 1e-3, error=RuntimeError("it died\nout of memory"))]), "out of memory"),
        (Grid([result("t1", [], 1e-3, error=RuntimeError())]), "RuntimeError"),
        (Grid([result("t1", [0.1], 1e-3)]), "none"),
        (Grid([result("t1", [0.1, float("nan")], 1e-3)]), "none"),
    ],
    ids=["all failed", "error without text", "all stopped", "no figure"],
)
def test_without_a_complete_trial_the_first_error_is_raised(grid, reason, tmp_path):
    with pytest.raises(RuntimeError, match=f"none of 1 trials .* first error: {reason}"):
        collected(tmp_path, grid)
    assert not list(tmp_path.iterdir())


def test_a_search_whose_trials_all_diverge_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=f"none of 1 trials .* first error: {DIVERGED}"):
        collected(tmp_path, Grid([result("t1", [float("nan")], 1e30, failed=DIVERGED)]))


def test_a_study_has_each_trial_with_a_figure_and_its_validations(found):
    study = study_of(found.rows, prepared(ACCURACY))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert study.best_params == {"optim.lr": 1e-2, "model.group_block": "hierarchical"}
    assert study.trials[1].intermediate_values == {1: 0.20, 2: 0.40}

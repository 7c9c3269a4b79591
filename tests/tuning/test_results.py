"""What a search leaves behind: the front by hand, its table and plots, and no result where nothing was found."""

import html
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml

import mtrec_ray.tuning.plots
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.plots import BY_GOAL, plots_page
from mtrec_ray.tuning.results import (
    DONE,
    FAILED,
    STOPPED,
    NothingFound,
    SearchResult,
    TrialRow,
    collect,
    pareto_front,
    study_of,
)
from mtrec_ray.tuning.search import Goal, Prepared
from mtrec_ray.tuning.space import Space, parse_space

LOOKS = 2
SPACE, _ = parse_space(
    {"optim.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "model.group_block": ["dense", "shift"]},
    PropensityConfig,
    (),
)


def prepared(*goals: Goal, space: Space = SPACE) -> Prepared:
    return Prepared(space=space, goals=goals, make_trial_spec=lambda params: params, first=[], num_validations=LOOKS)


ONE, TWO = Goal("pr_auc/weighted", "max"), Goal("leakage/mean", "min")


def row(trial_id: str, *values: float, goals: tuple[Goal, ...] = (TWO, ONE)) -> TrialRow:
    metrics = {goal.metric: value for goal, value in zip(goals, values, strict=True)}
    return TrialRow(trial_id, DONE, {}, metrics, [])


def test_the_front_holds_who_is_not_beaten_sorted_by_the_first_goal():
    rows = [
        row("leaks most", 0.30, 0.9),
        row("between", 0.20, 0.8),
        row("beaten by between", 0.20, 0.7),
        row("beaten in both", 0.25, 0.6),
        row("leaks least", 0.10, 0.5),
        row("beaten by least", 0.15, 0.5),
    ]
    front = pareto_front(rows, prepared(TWO, ONE))
    assert [found.trial_id for found in front] == ["leaks most", "between", "leaks least"]


def test_of_trials_with_equal_figures_the_front_holds_the_first():
    rows = [row("a", 0.2, 0.8), row("b", 0.2, 0.8), row("c", 0.1, 0.4)]
    assert [found.trial_id for found in pareto_front(rows, prepared(TWO, ONE))] == ["a", "c"]


def test_the_front_of_one_goal_is_the_best():
    rows = [row(str(value), value, goals=(ONE,)) for value in (0.1, 0.5, 0.3)]
    assert [found.trial_id for found in pareto_front(rows, prepared(ONE))] == ["0.5"]


class Grid(list):
    """As much of Tune's results as is read."""

    @property
    def errors(self) -> list[Exception]:
        return [result.error for result in self if result.error]


def result(trial_id: str, values: list[float], lr: float, block: str = "dense", error: Exception | None = None) -> Any:
    """A trial that reported `values`, one a look."""
    reports = [
        {"trial_id": trial_id, "training_iteration": number, ONE.metric: value, "time_total_s": number, "pid": 7}
        for number, value in enumerate(values, 1)
    ]
    return SimpleNamespace(
        metrics=reports[-1] if reports else {"trial_id": trial_id},
        metrics_dataframe=pd.DataFrame(reports) if reports else None,
        error=error,
        checkpoint=None,
        path=f"/searches/x/tune/{trial_id}",
        config={"optim.lr": lr, "model.group_block": block},
    )


def some_trials() -> Grid:
    return Grid(
        [
            result("t1", [0.10, 0.20], 1e-3),
            result("t2", [0.20, 0.40], 1e-2, "shift"),
            result("t3", [0.05], 5e-2),
            result("t4", [0.30, 0.35], 3e-3, "shift"),
            result("t5", [], 9e-2, error=RuntimeError("it died\nout of memory")),
            result("t6", [0.5, float("nan")], 2e-3),
        ]
    )


def collected(folder: Path, grid: Any, **changes: Any) -> SearchResult:
    again = lambda params: [{ONE.metric: 0.39}]  # noqa: E731
    settings = lambda params: {"settings": params}  # noqa: E731
    return collect(str(folder), grid, prepared(ONE), settings, ["a note"], again, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def found(folder) -> SearchResult:
    """`some_trials`, collected in `folder`."""
    return collected(folder, some_trials())


def test_the_best_is_the_whole_trial_with_the_best_figure(found, folder):
    assert {row.trial_id: row.status for row in found.rows} == {
        "t1": DONE, "t2": DONE, "t3": STOPPED, "t4": DONE, "t5": FAILED, "t6": DONE,
    }  # fmt: skip
    assert found.best.trial_id == "t2"
    assert found.front == [found.best]
    assert yaml.safe_load((folder / "best-config.yaml").read_text()) == {"settings": found.best.params}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == found.flat()
    assert summary["best/pr_auc/weighted"] == 0.40
    assert (summary["trials/done"], summary["trials/stopped_early"], summary["trials/failed"]) == (4, 1, 1)


def test_who_chooses_chooses_among_whole_trials_with_figures(tmp_path):
    offered = []

    def choose(rows: list[TrialRow]) -> TrialRow:
        offered.extend(row.trial_id for row in rows)
        return rows[0]

    assert collected(tmp_path, some_trials(), choose=choose).best.trial_id == "t1"
    assert offered == ["t1", "t2", "t4"]


def test_the_table_has_a_row_a_trial_with_settings_and_figures_without_what_tune_adds(found, folder):
    table = pd.read_csv(folder / "trials.csv")
    assert table.columns.tolist() == [
        "trial", "status", "looks", "optim.lr", "model.group_block", "pr_auc/weighted", "time_total_s",
    ]  # fmt: skip
    assert table["trial"].tolist() == ["t1", "t2", "t3", "t4", "t5", "t6"]
    assert table["looks"].tolist() == [2, 2, 1, 2, 0, 2]
    assert table["pr_auc/weighted"].isna().tolist() == [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("grid", "reason"),
    [
        (Grid([result("t1", [], 1e-3, error=RuntimeError("it died\nout of memory"))]), "out of memory"),
        (Grid([result("t1", [], 1e-3, error=RuntimeError())]), "RuntimeError"),
        (Grid([result("t1", [0.1], 1e-3)]), "none"),
        (Grid([result("t1", [0.1, float("nan")], 1e-3)]), "none"),
    ],
    ids=["all failed", "without a word", "all stopped", "no figure"],
)
def test_nothing_found_is_said_with_the_first_error(grid, reason, tmp_path):
    with pytest.raises(NothingFound, match=f"none of 1 trials .* first error: {reason}"):
        collected(tmp_path, grid)
    assert not list(tmp_path.iterdir())


class Page(HTMLParser):
    """Headlines, drawings by name, and everything that a page points to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headlines, self.drawings, self.links, self._in_headline = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_headline = tag == "h2"
        found = dict(attrs)
        if tag == "svg" and "aria-label" in found:
            self.drawings.append(found["aria-label"])
        self.links += [str(value) for name, value in attrs if name in ("href", "xlink:href", "src", "srcset", "data")]
        assert tag not in ("script", "link", "iframe", "object")

    def handle_data(self, data: str) -> None:
        if self._in_headline:
            self.headlines.append(data)
            self._in_headline = False


def test_the_page_of_one_goal_has_its_plots_and_loads_nothing(found, folder):
    text = (folder / "plots.html").read_text()
    page = Page(text)
    assert page.headlines == ["History", "Parallel coordinates", "Importance", "Looks"]
    assert page.drawings == page.headlines
    assert page.links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert "@import" not in text
    assert text.startswith("<!doctype html>")


def two_goals() -> optuna.Study:
    figures = ({TWO.metric: 0.3, ONE.metric: 0.9}, {TWO.metric: 0.1, ONE.metric: 0.5})
    rows = [
        TrialRow(f"t{n}", DONE, {"optim.lr": 10.0**-n, "model.group_block": ["dense", "shift"][n % 2]}, metrics, [])
        for n, metrics in enumerate(figures, 2)
    ]
    return study_of(SearchResult("x", rows, rows[0], prepared(TWO, ONE), [], rows))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Optuna's, of importance from two trials
def test_the_page_of_two_goals_has_their_front_and_plots_of_each():
    page = Page(plots_page(two_goals(), [TWO.metric, ONE.metric]))
    kinds = ("History", "Parallel coordinates", "Importance")
    names = ["Pareto front", *(f"{kind} of {goal.metric}" for goal in (TWO, ONE) for kind in kinds)]
    assert page.headlines == page.drawings == names
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)


def test_a_study_holds_each_trial_with_a_figure_with_its_looks(found):
    study = study_of(found)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    assert study.best_params == {"optim.lr": 1e-2, "model.group_block": "shift"}
    assert study.trials[1].intermediate_values == {1: 0.20, 2: 0.40}


def test_too_little_for_a_plot_is_said_in_a_sentence(found, monkeypatch):
    def too_little(*_: Any, **__: Any) -> None:
        raise ValueError("fewer than <two> trials")

    monkeypatch.setitem(BY_GOAL, "Importance", too_little)
    text = plots_page(study_of(found), [ONE.metric])
    assert "<p>Nothing to draw: fewer than &lt;two&gt; trials</p>" in text
    assert Page(text).drawings == ["History", "Parallel coordinates", "Looks"]


def test_importance_is_for_low_values_of_a_goal_that_is_minimised_and_high_ones_of_one_that_is_maximised(monkeypatch):
    targets = {}

    def remember(study: optuna.Study, target: Callable[[Any], float], target_name: str) -> None:
        targets[target_name] = [target(trial) for trial in study.trials]

    monkeypatch.setattr(mtrec_ray.tuning.plots, "BY_GOAL", {"Importance": remember})
    study = two_goals()
    plots_page(study, [TWO.metric, ONE.metric])
    assert targets == {TWO.metric: [0.3, 0.1], ONE.metric: [-0.9, -0.5]}


def page_with_a_choice(name: str) -> str:
    rows = [
        TrialRow(f"t{n}", DONE, {"optim.lr": 10.0**-n, "model.group_block": block}, {ONE.metric: n / 10}, [])
        for n, block in enumerate([name, "shift"], 2)
    ]
    space = Space(ranges=SPACE.ranges, choices={"model.group_block": [name, "shift"]})
    return plots_page(study_of(SearchResult("x", rows, rows[0], prepared(ONE, space=space), [], rows)), [ONE.metric])


@pytest.mark.parametrize("name", ["日本", "<b>&"])
def test_a_name_is_a_text_of_its_plots(name, recwarn):
    assert f">{html.escape(name, quote=False)}</text>" in page_with_a_choice(name)
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_name_that_matplotlib_takes_for_a_formula_costs_its_plots_alone():
    page = Page(page_with_a_choice("$\\frac{$"))
    assert "History" in page.drawings
    assert "Parallel coordinates" not in page.drawings

"""What a search tried: history, importance of settings, and the front of two goals."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportReturnType=false
# the stubs of pandas know no columns of rows, and few results of selections

import warnings

import numpy as np
import optuna
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import MUTED, SERIES, Chart, Section, canvas
from mtrec_ray.reports.inputs import Folder, Inputs
from mtrec_ray.reports.marks import name_rows

DONE = "done"
NO_SETTINGS = ("trial", "status", "validations")  # columns of trials.csv that are none
MIN_TRIALS = 8  # fewer say nothing of importance


def searches_section(inputs: Inputs) -> Section:
    """Charts of every search given."""
    section = Section("searches", "Searches")
    for search in inputs.of("search"):
        trials, figures = search.table("trials"), search.table("metrics")
        goals = search.document.get("goals")
        if trials is None or figures is None or not goals:
            section.notes.append(
                f"Search {search.name} has no finished trial: continue it with `mtrec search ... --resume`."
            )
            continue
        rows = trial_rows(trials, figures, list(goals))
        if rows.empty:
            section.notes.append(f"Search {search.name}: no trial came to its end.")
            continue
        section.charts.append(history_chart(search, rows, goals))
        section.charts += [front_chart(search, rows, goals)] if len(goals) > 1 else []
        section.charts += importance_charts(search, rows, goals)
    if not section.charts and not section.notes:
        section.notes.append("No search was given: name a folder of searches/ to see what it tried.")
    return section


def trial_rows(trials: pd.DataFrame, figures: pd.DataFrame, goals: list[str]) -> pd.DataFrame:
    """Finished trials in their order: settings, and a column a goal."""
    values = figures[figures["metric"].isin(goals)].pivot(index="trial", columns="metric", values="value")
    rows = trials[trials["status"] == DONE].join(values, on="trial")
    return rows.dropna(subset=[goal for goal in goals if goal in rows]).reset_index(drop=True)


def history_chart(search: Folder, rows: pd.DataFrame, goals: dict[str, str]) -> Chart:
    """The first goal, trial by trial, and the best so far."""
    goal, mode = next(iter(goals.items()))
    values = rows[goal].to_numpy(dtype=float)
    best = np.minimum.accumulate(values) if mode == "min" else np.maximum.accumulate(values)
    found = int(np.argmax(best == best[-1])) + 1

    def draw() -> Figure:
        figure, axes = canvas(2.6)
        number = np.arange(1, len(values) + 1)
        axes[0].scatter(number, values, s=16, color=SERIES[0], label="a trial")
        axes[0].step(number, best, where="post", color=SERIES[1], label="best so far")
        axes[0].set_xlabel("finished trials")
        axes[0].set_ylabel(goal)
        axes[0].legend(fontsize=7.5)
        return figure

    return Chart(
        f"{search.name}_history",
        f"Search {search.name}: {goal}",
        f"The best of {len(values)} finished trials has {goal} {best[-1]:.4g} ({mode}imum wanted), found after "
        f"{found}; the median trial has {np.median(values):.4g}.",
        rows,
        draw,
    )


def front_chart(search: Folder, rows: pd.DataFrame, goals: dict[str, str]) -> Chart:
    """Two goals against each other: trials that no other beats in both."""
    (first, first_mode), (second, second_mode) = list(goals.items())[:2]
    x, y = rows[second].to_numpy(dtype=float), rows[first].to_numpy(dtype=float)
    front = pareto(np.stack([x, y], axis=1), [second_mode, first_mode])
    order = np.argsort(x[front], kind="stable")
    ends = np.flatnonzero(front)[order]

    def draw() -> Figure:
        figure, axes = canvas(3.0)
        axes[0].scatter(x[~front], y[~front], s=14, color=MUTED, marker="x", label="beaten in both")
        axes[0].plot(x[ends], y[ends], "o-", color=SERIES[0], label="front")
        axes[0].set_xlabel(f"{second} ({second_mode}imum wanted)")
        axes[0].set_ylabel(f"{first} ({first_mode}imum wanted)")
        axes[0].legend(fontsize=7.5)
        return figure

    one, other = ends[0], ends[-1]
    return Chart(
        f"{search.name}_front",
        f"Search {search.name}: {first} against {second}",
        f"{int(front.sum())} of {len(rows)} trials are beaten by no other in both goals: from {first} {y[one]:.4g} at "
        f"{second} {x[one]:.4g} to {y[other]:.4g} at {x[other]:.4g}.",
        rows.assign(front=front),
        draw,
    )


def pareto(values: np.ndarray, modes: list[str]) -> np.ndarray:
    """(N, goals) -> (N,) True where no other row is at least as good in all and better in one."""
    costs = values * np.array([1.0 if mode == "min" else -1.0 for mode in modes])
    at_least = (costs[None] <= costs[:, None]).all(axis=2)
    better = (costs[None] < costs[:, None]).any(axis=2)
    return ~(at_least & better).any(axis=1)


def importance_charts(search: Folder, rows: pd.DataFrame, goals: dict[str, str]) -> list[Chart]:
    """Which settings decided the first goal (fANOVA, Hutter et al. 2014, by Optuna)."""
    goal, mode = next(iter(goals.items()))
    settings = [name for name in rows if name not in (*NO_SETTINGS, *goals) and rows[name].notna().all()]
    settings = [name for name in settings if rows[name].nunique() > 1]
    if len(rows) < MIN_TRIALS or not settings or rows[goal].nunique() < 2:
        return []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    kinds = {name: _distribution(rows[name]) for name in settings}
    for _, row in rows.iterrows():
        params = {name: _plain(row[name], kinds[name]) for name in settings}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=kinds, value=float(row[goal])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    table = pd.DataFrame({"setting": list(found), "importance": list(found.values())})
    if not np.isfinite(table["importance"]).all():
        return []

    def draw() -> Figure:
        figure, axes = canvas(0.8 + 0.24 * len(table))
        axes[0].barh(range(len(table)), 100 * table["importance"], 0.6, color=SERIES[0])
        name_rows(axes[0], list(table["setting"]))
        axes[0].set_xlabel(f"% of the variance of {goal}")
        return figure

    top = table.iloc[0]
    return [
        Chart(
            f"{search.name}_importance",
            f"Search {search.name}: which settings mattered",
            f"{top['setting']} explains most of {goal}: {top['importance']:.0%} of its variance over {len(rows)} "
            "trials.",
            table,
            draw,
            how="fANOVA over the finished trials; with few trials the order of the smaller ones is noise.",
        )
    ]


def _distribution(column: pd.Series) -> optuna.distributions.BaseDistribution:
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        low, high = float(column.min()), float(column.max())
        return optuna.distributions.FloatDistribution(low, high, log=low > 0 and high / low > 20)
    return optuna.distributions.CategoricalDistribution(sorted(set(column.astype(str))))


def _plain(value: object, kind: optuna.distributions.BaseDistribution) -> float | str:
    numeric = isinstance(kind, optuna.distributions.FloatDistribution)
    return float(str(value)) if numeric else str(value)

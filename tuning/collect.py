"""A prepared search to its end: trials, the choice, fresh seeds, and the result files.

trials.csv         one row a trial: status and settings
metrics.csv        one row a trial and metric: value, low, high
best-config.yaml   what `mtrec train ... --config` reads
summary.json       `SearchResult.document`
plots.html         Optuna's plots
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import optuna
import pandas as pd
import ray
import yaml
from optuna.trial import TrialState

from mtrec_ray.console import ProgressCallback
from mtrec_ray.files import exists, join, read_json, write_file, write_json
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.tuning.config import SearchConfig
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.plots import plots_page
from mtrec_ray.tuning.results import BEST_CONFIG, DONE, FAILED, STOPPED, SearchResult, TrialRow
from mtrec_ray.tuning.search import RETRIES, VERSION, PreparedSearch, run_trials, search_uri, trials_at_once
from mtrec_ray.tuning.trainable import is_stored
from mtrec_ray.tuning.trial import TrialSpec, make_trial

FRESH_SEEDS = "fresh-seeds.json"
FIRST_FRESH_SEED = 1_000
TIMES = ("steps_s", "reading_s", "validating_s", "time_total_s")
Choose = Callable[[list[TrialRow]], tuple[TrialRow, list[str]]]
"""Complete trials -> the best of them, and notes on the choice."""


class NothingFound(RuntimeError):
    """No trial came to its end."""


def run_search(
    config: SearchConfig,
    prepared: PreparedSearch,
    notes: list[str],
    resume: bool,
    progress: ProgressCallback | None,
    choose: Choose | None = None,
) -> SearchResult:
    """Run all trials, choose the best, train it with fresh seeds, and write the result files.

    `notes`: what a reader of the figures must know. `choose`: None chooses the best by the only goal.

    Raises:
        NothingFound: no trial came to its end with a figure.
    """
    uri, grid = search_uri(config), run_trials(config, prepared, resume, progress)
    rows = [_row(result, prepared.num_validations) for result in grid]
    study = study_of(rows, prepared)
    complete = [rows[trial.user_attrs["row"]] for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    if not complete:
        errors = [(str(error).strip() or type(error).__name__).splitlines()[-1] for error in grid.errors]
        reason = [*errors, "none"][0]
        raise NothingFound(f"none of {len(rows)} trials came to its end with a figure; first error: {reason}")
    goals, first_of_equal = prepared.goals, reversed(study.best_trials)
    front = list({tuple(trial.values): rows[trial.user_attrs["row"]] for trial in first_of_equal}.values())
    front.sort(key=lambda row: row.metrics[prepared.first_goal], reverse=goals[prepared.first_goal] == "min")
    best, notes_on_choice = choose(complete) if choose else (front[0], [])
    result = SearchResult(uri, rows, best, prepared, [*notes, *notes_on_choice], front)
    trials = [{"trial": r.trial_id, "status": r.status, "validations": len(r.reports), **r.params} for r in rows]
    write_file(join(uri, "trials.csv"), pd.DataFrame(trials).to_csv(index=False).encode())
    write_file(join(uri, "metrics.csv"), result.metrics.to_csv(index=False).encode())
    best_config = yaml.safe_dump(prepared.specs.settings(best.params), sort_keys=False)
    write_file(join(uri, BEST_CONFIG), best_config.encode())
    result = replace(result, fresh=train_with_fresh_seeds(config, prepared, progress, best.params))
    write_file(join(uri, "plots.html"), plots_page(study, list(goals)).encode())
    write_json(join(uri, "summary.json"), result.document())
    for ended in grid:
        if ended.checkpoint is not None and is_stored(ended.checkpoint):  # no trial will resume from it
            ended.checkpoint.filesystem.delete_dir(ended.checkpoint.path)
    return result


def train_with_fresh_seeds(
    config: SearchConfig, prepared: PreparedSearch, progress: ProgressCallback | None, params: dict[str, Any]
) -> list[dict[str, float]]:
    """Train parameters with `config.confirm` fresh seeds; figures are stored for `--resume`."""
    uri = join(search_uri(config), FRESH_SEEDS)
    known = read_json(uri) if exists(uri) else {}
    figures = known["figures"] if known.get("params") == params else []
    task = ray.remote(num_cpus=config.cpus_per_worker, max_retries=RETRIES)(_train_to_end)
    spec, at_once = prepared.specs.spec(params), trials_at_once(config)
    while len(figures) < config.confirm:
        numbers = range(len(figures) + 1, min(len(figures) + at_once, config.confirm) + 1)
        seeds = [{"seed": config.seed + FIRST_FRESH_SEED + number} for number in numbers]
        figures += ray.get([task.remote(spec | {"config": spec["config"] | seed}) for seed in seeds])
        write_json(uri, {"version": VERSION, "params": params, "figures": figures})
        if progress:
            progress("fresh seeds", len(figures), config.confirm)
    return figures


def _train_to_end(spec: TrialSpec) -> dict[str, float]:
    trial, metrics = make_trial(spec, TrialCache(), Workers()), {}
    while trial.validations_done < trial.num_validations:
        metrics = trial.advance()
    return metrics


def study_of(rows: list[TrialRow], prepared: PreparedSearch) -> optuna.Study:
    """Trials with finite figures as an Optuna study, for its Pareto front and plots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goals, distributions = prepared.goals, prepared.specs.space.parameters()
    study = optuna.create_study(directions=["maximize" if mode == "max" else "minimize" for mode in goals.values()])
    for index, row in enumerate(rows):
        values = [row.metrics.get(metric, math.nan) for metric in goals]
        if not all(map(math.isfinite, values)):
            continue
        reports = enumerate(row.reports if len(goals) == 1 else (), 1)
        study.add_trial(
            optuna.trial.create_trial(
                params=row.params,
                distributions={key: distributions[key] for key in row.params},
                values=values,
                intermediate_values={number: report[prepared.first_goal] for number, report in reports},
                state=TrialState.COMPLETE if row.status == DONE else TrialState.PRUNED,
                user_attrs={"row": index},
            )
        )
    return study


def _row(result: Any, num_validations: int) -> TrialRow:
    """A trial of Tune's grid, without the figures that Tune adds."""
    report, history = result.metrics or {}, result.metrics_dataframe
    figures = {key: value for key, value in report.items() if isinstance(value, int | float)}
    ended = figures.get("training_iteration", 0) >= num_validations
    return TrialRow(
        trial_id=str(report.get("trial_id") or str(result.path).rsplit("/", 1)[-1]),
        status=FAILED if result.error else DONE if ended else STOPPED,
        params=dict(result.config or {}),
        metrics={key: float(value) for key, value in figures.items() if "/" in key or key in TIMES},
        reports=[]
        if history is None
        else history.drop_duplicates("training_iteration", keep="last").to_dict("records"),
    )

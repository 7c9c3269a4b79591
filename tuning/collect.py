"""A prepared search to its end: trials, the choice, fresh seeds, and the result files.

trials.csv         one row a trial: status and settings
metrics.csv        one row a trial and metric: value, low, high
best-config.yaml   what `mtrec train ... --config` reads
summary.json       `SearchResult.document`
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import optuna
import pandas as pd
import ray
from optuna.trial import TrialState

from mtrec_ray.config import Config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_json, write_file, write_json
from mtrec_ray.trainers.trainer import Diverged
from mtrec_ray.tuning.data import Figures, TrialCache
from mtrec_ray.tuning.results import BEST_CONFIG, DONE, FAILED, STOPPED, SearchResult, TrialRow
from mtrec_ray.tuning.search import RETRIES, VERSION, PreparedSearch, reported, run_trials, trials_at_once
from mtrec_ray.tuning.space import TrialSpecs
from mtrec_ray.workers import Workers
from mtrec_ray.yaml12 import format_yaml

FRESH_SEEDS = "fresh-seeds.json"
FIRST_FRESH_SEED = 1_000
Choose = Callable[[list[TrialRow]], tuple[TrialRow, list[str]]]  # complete trials -> the best, notes on the choice


def run_search(
    prepared: PreparedSearch, resume: bool, progress: ProgressCallback | None, choose: Choose | None = None
) -> SearchResult:
    """Run all trials, choose the best, train it with fresh seeds, and write the result files.

    `choose`: None chooses the best by the only goal. RuntimeError if no trial came to its end with a figure.
    """
    uri, goal, grid = prepared.config.uri, prepared.first_goal, run_trials(prepared, resume, progress)
    rows = [_row(result, prepared) for result in grid]
    study = study_of(rows, prepared)
    complete = [rows[trial.user_attrs["row"]] for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    if not complete:
        reason = next((row.reason for row in rows if row.reason), "none")
        kind = RuntimeError if grid.errors or reason == "none" else UserError  # all failed trials diverged
        raise kind(f"none of {len(rows)} trials came to its end with a figure; first error: {reason}")
    of_values = {tuple(trial.values): rows[trial.user_attrs["row"]] for trial in reversed(study.best_trials)}
    front = sorted(of_values.values(), key=lambda row: row.value(goal), reverse=prepared.goals[goal] == "min")
    best, notes = choose(complete) if choose else (front[0], [])
    fresh = train_with_fresh_seeds(prepared, progress, best.params)
    if diverged := sum(not figures for figures in fresh):
        notes = [*notes, f"training diverged with {diverged} of {len(fresh)} fresh seeds"]
    result = SearchResult(prepared, rows, best, [*prepared.notes, *notes], front, fresh)
    trials = [{"trial": r.trial_id, "status": r.status, "validations": len(r.reports), **r.params} for r in rows]
    best_config = format_yaml(prepared.specs.settings(best.params))
    write_file(join(uri, "trials.csv"), pd.DataFrame(trials).to_csv(index=False).encode())
    write_file(join(uri, "metrics.csv"), result.metrics.to_csv(index=False).encode())
    write_file(join(uri, BEST_CONFIG), best_config.encode())
    write_json(join(uri, "summary.json"), result.document())
    for ended in grid:
        if ended.checkpoint is not None:  # no trial will resume from it
            with suppress(FileNotFoundError):  # it was deleted before
                ended.checkpoint.filesystem.delete_dir(ended.checkpoint.path)
    return result


def train_with_fresh_seeds(
    prepared: PreparedSearch, progress: ProgressCallback | None, params: dict[str, Any]
) -> list[Figures]:
    """Train parameters with `confirm` fresh seeds; figures are stored for `--resume`."""
    config, uri = prepared.config, join(prepared.config.uri, FRESH_SEEDS)
    known = read_json(uri) if exists(uri) else {}
    figures = known["figures"] if known.get("params") == params else []
    task = ray.remote(num_cpus=config.cpus_per_worker, max_retries=RETRIES)(_train_to_end)
    settings, at_once = prepared.specs.config(params), trials_at_once(config)
    while len(figures) < config.confirm:
        numbers = range(len(figures) + 1, min(len(figures) + at_once, config.confirm) + 1)
        seeds = [{"seed": config.seed + FIRST_FRESH_SEED + number} for number in numbers]
        figures += ray.get([task.remote(prepared.specs, settings.model_copy(update=seed)) for seed in seeds])
        write_json(uri, {"version": VERSION, "params": params, "figures": figures})
        if progress:
            progress("fresh seeds", len(figures), config.confirm)
    return figures


def _train_to_end(specs: TrialSpecs, config: Config) -> Figures:
    """Figures of the last validation; none where training diverges."""
    trial, figures = specs.make(config, TrialCache(), Workers()), {}
    with suppress(Diverged):
        while trial.validations_done < trial.num_validations:
            figures = trial.advance()
        return figures
    return {}


def study_of(rows: list[TrialRow], prepared: PreparedSearch) -> optuna.Study:
    """Trials with finite figures as an Optuna study, for its Pareto front."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    goals, distributions = prepared.goals, prepared.specs.space.parameters()
    study = optuna.create_study(directions=["maximize" if mode == "max" else "minimize" for mode in goals.values()])
    for index, row in enumerate(rows):
        values = [row.value(goal) for goal in goals]
        if np.isfinite(values).all():
            trial = optuna.trial.create_trial(
                params=row.params,
                distributions={key: distributions[key] for key in row.params},
                values=values,
                intermediate_values=dict(enumerate(row.reports if len(goals) == 1 else (), 1)),
                state=TrialState.COMPLETE if row.status == DONE else TrialState.PRUNED,
                user_attrs={"row": index},
            )
            study.add_trial(trial)
    return study


def _row(result: Any, prepared: PreparedSearch) -> TrialRow:
    """A trial of Tune's grid, without the figures that Tune adds but its time."""
    report, history = result.metrics or {}, result.metrics_dataframe
    failed = report.get("failed") or (str(result.error).strip() or type(result.error).__name__) * bool(result.error)
    figures = {} if "failed" in report else dict(report.get("figures", {}))
    if figures:
        figures["time_total_s"] = {"value": report["time_total_s"]}
        history = history.drop_duplicates("training_iteration", keep="last")
    ended = report.get("training_iteration", 0) >= prepared.num_validations
    return TrialRow(
        trial_id=str(report.get("trial_id") or str(result.path).rsplit("/", 1)[-1]),
        status=FAILED if failed else DONE if ended else STOPPED,
        params=dict(result.config or {}),
        figures=figures,
        reports=history[reported(prepared.first_goal)].tolist() if figures else [],
        reason=failed.splitlines()[-1] if failed else "",
    )

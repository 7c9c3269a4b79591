"""Trials of any kind: Optuna proposes, Ray Tune runs them, ASHA stops weak ones.

searches/NAME/search.yaml        settings, content hashes of inputs, partitions to start from
searches/NAME/tune/              Ray Tune's own state (its pickles are read on --resume: resume only your own searches)
searches/NAME/partitions/        groups files of the partitions that trials used
searches/NAME/fresh-seeds.json   figures of the chosen configuration with fresh seeds
"""

import json
import logging
import os
from contextvars import ContextVar
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import optuna
import pyarrow.fs as pafs
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.optuna import OptunaSearch
from ray.tune.utils import flatten_dict

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError, check_version
from mtrec_ray.files import exists, join, read_file, write_file
from mtrec_ray.identity import Identity, check_same
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.training.fit import check_fits, jobs_that_fit
from mtrec_ray.tuning.config import SearchConfig
from mtrec_ray.tuning.space import GROUPS, TrialSpecs
from mtrec_ray.tuning.trainable import TrialProcess

logger = logging.getLogger(__name__)

TUNE, RECORD = "tune", "search.yaml"
VERSION = 3  # format of a search's folder
NUM_RANDOM = 8  # trials, first ones included, before the sampler proposes by what it has learned
REDUCTION_FACTOR = 2  # aSHA's rungs are validations 1, 2, 4, ...; a larger factor leaves hardly any
RETRIES = 2  # restarts of a trial whose process died: enough where machines are preempted
# Of the search that runs: Tune pickles callbacks and limiters, and a resumed search would have those of its start.
PROGRESS: ContextVar[ProgressCallback | None] = ContextVar("PROGRESS", default=None)
TRIALS_AT_ONCE: ContextVar[int] = ContextVar("TRIALS_AT_ONCE")


@dataclass(frozen=True)
class PreparedSearch:
    """A checked search."""

    config: SearchConfig
    specs: TrialSpecs
    goals: dict[str, str]  # reported metric -> max or min
    first: list[dict[str, Any]]  # parameters to try before the sampler proposes: each partition, all else equal
    notes: tuple[str, ...] = ()  # what a reader of the figures must know
    num_validations: int = 1
    workers: int = 1  # of each trial

    @property
    def first_goal(self) -> str:
        return next(iter(self.goals))


def stored_search(config: SearchConfig, inputs: dict[str, str], resume: bool) -> dict[str, Any] | None:
    """Record of the search to resume; UserError for a taken name, none, or another search.

    `inputs`: name -> content hash of what the trials' figures depend on beside the settings.
    """
    uri = config.uri
    if not exists(join(uri, RECORD)):
        if resume:
            raise UserError(f"--resume: there is no search {uri!r}; start it without --resume")
        return None
    if not resume:
        raise UserError(f"search {uri!r} was started before: continue it with --resume, or choose another name")
    document = yaml.safe_load(read_file(join(uri, RECORD)))
    check_version(f"search {uri!r}", document.get("version"), VERSION, "choose another name")
    now = Identity(config.model_dump(mode="json"), inputs)
    check_same(f"search {config.name!r}", Identity(document["settings"], document["inputs"]), now)
    return document


def record_search(config: SearchConfig, inputs: dict[str, str], **more: Any) -> None:
    """Write what `stored_search` compares and returns."""
    document = {"version": VERSION, "settings": config.model_dump(mode="json"), "inputs": inputs, **more}
    write_file(join(config.uri, RECORD), yaml.safe_dump(document, sort_keys=False).encode())


def trials_at_once(config: SearchConfig, workers: int = 1) -> int:
    """How many trials run side by side; UserError where a fixed cluster has no room."""
    runner, wanted = RunnerConfig(workers=workers, cpus_per_worker=config.cpus_per_worker), config.trials_at_once
    setting = f"trials_at_once = {wanted or 1} with workers x cpus_per_worker = {workers * config.cpus_per_worker:g}"
    needed = {"CPU": (wanted or 1) * workers * config.cpus_per_worker}
    check_fits(needed, setting, "trials_at_once, workers or cpus_per_worker")
    return min(wanted or jobs_that_fit(runner), config.trials)


def run_trials(prepared: PreparedSearch, resume: bool, progress: ProgressCallback | None) -> tune.ResultGrid:
    """Run all trials, or those that had not ended when the search was stopped."""
    PROGRESS.set(progress)
    TRIALS_AT_ONCE.set(trials_at_once(prepared.config, prepared.workers))
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its banners go to stdout, whatever `verbose` is
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative URIs of groups files stay valid
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # else an interrupted search ends as a finished one
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder, cpus, workers = join(prepared.config.uri, TUNE), prepared.config.cpus_per_worker, prepared.workers
    data = {"specs": prepared.specs, "goals": tuple(prepared.goals), "workers": workers, "cpus": cpus}
    trainable = tune.with_parameters(TrialProcess, **data)
    trainable = tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": cpus}] * workers))
    started = resume and tune.Tuner.can_restore(folder)
    tuner = _new_tuner(prepared, trainable)  # writes tuner.pkl, of which a killed driver may leave half
    if started:
        tuner = tune.Tuner.restore(folder, trainable=trainable, resume_unfinished=True, resume_errored=True)
    grid = tuner.fit()
    if grid.num_errors:
        # Tune counts a process that dies between its step and its save as two failures: give it another try.
        return tune.Tuner.restore(folder, trainable=trainable, resume_errored=True).fit()
    return grid


def _new_tuner(prepared: PreparedSearch, trainable: Any) -> tune.Tuner:
    config = prepared.config
    metrics, modes = [reported(goal) for goal in prepared.goals], list(prepared.goals.values())
    single = len(metrics) == 1
    searcher = OptunaSearch(
        space=prepared.specs.space.suggest,  # pyright: ignore[reportArgumentType]
        metric=metrics[0] if single else metrics,
        mode=modes[0] if single else modes,
        points_to_evaluate=prepared.first,
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=NUM_RANDOM),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=TrialLimiter(searcher, TRIALS_AT_ONCE.get()),
            scheduler=make_scheduler(prepared),
            num_samples=config.trials,
            reuse_actors=True,
            trial_dirname_creator=attrgetter("trial_id"),
            trial_name_creator=attrgetter("trial_id"),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=config.uri,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[TrialProgress(config.trials)],
            verbose=0,
        ),
    )


class TrialLimiter(ConcurrencyLimiter):
    """At most `TRIALS_AT_ONCE` trials side by side."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self.max_concurrent = TRIALS_AT_ONCE.get()
        return super().suggest(trial_id)


def reported(goal: str) -> str:
    """Tune's name of a goal in `TrialProcess.step`'s report."""
    return f"figures/{goal}/value"


def make_scheduler(prepared: PreparedSearch) -> Any:
    if prepared.num_validations == 1:
        return FIFOScheduler()
    return PartitionSparingASHA(
        spared=[params for params in prepared.first if GROUPS in params],
        time_attr="training_iteration",
        metric=reported(prepared.first_goal),
        mode=prepared.goals[prepared.first_goal],
        max_t=prepared.num_validations,
        grace_period=1,
        reduction_factor=REDUCTION_FACTOR,
    )


class PartitionSparingASHA(ASHAScheduler):
    """ASHA (Li et al. 2020) that trains each unmoved partition to its end, to compare them.

    A resumed search unpickles it as it was before the first trial, so it reads again what its trials reported.
    """

    def __init__(self, spared: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self.spared = spared

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for report in _reports_before(trial):
            super().on_trial_result(tune_controller, trial, flatten_dict(report))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if "failed" not in result:  # NaN would be no rung's figure
            super().on_trial_complete(tune_controller, trial, result)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "failed" in result:
            return self.STOP
        decision = super().on_trial_result(tune_controller, trial, result)
        is_spared = any(params.items() <= trial.config.items() for params in self.spared)
        return self.CONTINUE if is_spared and not result.get("done") else decision


def _reports_before(trial: Any) -> list[dict[str, Any]]:
    """Reports that the state of a resumed search counts for a trial; none of a new one."""
    known = trial.last_result.get("training_iteration", 0)
    if not known:
        return []
    filesystem, path = trial.storage.storage_filesystem, f"{trial.storage.trial_fs_path}/result.json"
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:  # Tune writes it after its state
        return []
    with filesystem.open_input_stream(path) as file:
        lines = file.readall().split(b"\n")[:-1]  # what follows the last line end is incomplete
    return [report for report in map(json.loads, lines) if report["training_iteration"] <= known]


class TrialProgress(tune.Callback):
    """Counts ended trials on the progress bar, and warns of each failed one."""

    def __init__(self, total: int) -> None:
        self.total = total

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        progress = PROGRESS.get()
        if reason := trial.last_result.get("failed"):
            logger.warning("trial %s failed: %s", trial.trial_id, reason)
        if progress:  # `trial` is not marked as finished yet
            progress("trials", sum(one is trial or one.is_finished() for one in trials), self.total)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        logger.warning("trial %s failed: %s", trial.trial_id, trial.config)
        self.on_trial_complete(iteration, trials, trial)

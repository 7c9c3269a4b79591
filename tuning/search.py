"""Trials of any kind: Optuna proposes, Ray Tune runs them, ASHA stops weak ones.

searches/NAME/search.yaml        the settings as given
searches/NAME/inputs.json        content hashes of the lake, the backbone and groups files
searches/NAME/tune/              Ray Tune's own state (its pickles are read on --resume: resume only your own searches)
searches/NAME/partitions/        partitions to start from, and groups files of those that trials used
searches/NAME/fresh-seeds.json   figures of the chosen configuration with fresh seeds
searches/NAME/COMBINATION/       a search for each combination; only settings and hashes stay above
"""

import json
import logging
import os
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import optuna
import pyarrow.fs as pafs
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch

from mtrec_ray.config import dump_yaml
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join, read_file, read_json, write_file, write_json
from mtrec_ray.lake.cluster import cluster_resources, joins_cluster
from mtrec_ray.tuning.config import SearchConfig
from mtrec_ray.tuning.space import GROUPS
from mtrec_ray.tuning.specs import TrialSpecs
from mtrec_ray.tuning.trainable import TrialProcess

logger = logging.getLogger(__name__)

TUNE, SETTINGS, INPUTS = "tune", "search.yaml", "inputs.json"
VERSION = 2
"""Format of a search's folder."""
NUM_RANDOM = 8
"""Trials, first ones included, before the sampler proposes by what it has learned."""
REDUCTION_FACTOR = 2
"""ASHA's rungs are validations 1, 2, 4, ...; a larger factor leaves hardly any."""
RETRIES = 2
"""Restarts of a trial whose process died: enough where machines are preempted."""
PROGRESS: ContextVar[ProgressCallback | None] = ContextVar("PROGRESS", default=None)
"""Reports ended trials; Tune's callback is pickled and cannot hold it."""


@dataclass(frozen=True)
class PreparedSearch:
    """A checked search."""

    specs: TrialSpecs
    goals: dict[str, str]
    """Reported metric -> max or min."""
    first: list[dict[str, Any]]
    """Parameters to try before the sampler proposes: each partition, all else equal."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """Checked warm starts, tried before `first`."""
    num_validations: int = 1
    early_stop: bool = False

    @property
    def first_goal(self) -> str:
        return next(iter(self.goals))


def search_uri(config: SearchConfig) -> str:
    return join(absolute(config.searches), config.name)


def is_recorded(config: SearchConfig) -> bool:
    return exists(join(search_uri(config), SETTINGS))


def check_name(config: SearchConfig, inputs: dict[str, str], resume: bool) -> None:
    """UserError for a taken name, nothing to resume, or a stopped search that differs.

    `inputs`: name -> content hash of what the trials' figures depend on beside the settings.
    """
    uri, other = search_uri(config), "choose another name"
    if not is_recorded(config):
        if resume:
            raise UserError(f"--resume: there is no search {uri!r}; start it without --resume")
        return
    if not resume:
        raise UserError(f"search {uri!r} was started before: continue it with --resume, or {other}")
    recorded = read_json(join(uri, INPUTS))
    if recorded.get("version", 1) != VERSION:
        raise UserError(f"search {uri!r} has format {recorded.get('version', 1)}, not {VERSION}: {other}")
    before, now = (yaml.safe_load(text) for text in (read_file(join(uri, SETTINGS)), dump_yaml(config)))
    for key in now:
        if before.get(key) != now[key] and key != "searches":  # one folder can be written in many ways
            change = f"{key} = {before.get(key)!r} (now {now[key]!r})"
            raise UserError(f"search {config.name!r} was started with other settings: {change}: {other}")
    for name, state in inputs.items():
        if recorded["inputs"].get(name) != state:
            raise UserError(f"search {config.name!r} was started on another state of {name}: {other}")


def record_search(config: SearchConfig, inputs: dict[str, str]) -> None:
    """Write what `check_name` compares."""
    write_json(join(search_uri(config), INPUTS), {"version": VERSION, "inputs": inputs})
    write_file(join(search_uri(config), SETTINGS), dump_yaml(config).encode())


def trials_at_once(config: SearchConfig) -> int:
    """How many trials run side by side; UserError where the cluster cannot hold one."""
    cpus, wanted = config.workers * config.cpus_per_worker, config.trials_at_once
    available = cluster_resources().get("CPU", 0.0)
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if cpus > available or config.cpus_per_worker > largest:
        message = (
            f"a trial needs {cpus:g} logical CPUs (workers = {config.workers} x cpus_per_worker = "
            f"{config.cpus_per_worker:g}), the cluster has {available:g}, {largest:g} on its largest node: "
            "lower workers or cpus_per_worker"
        )
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless it can grow", message)
        return min(wanted or 1, config.trials)
    fitting = int(available // cpus)
    if wanted and wanted > fitting:
        raise UserError(
            f"trials_at_once = {wanted} x {cpus:g} CPUs a trial exceed the cluster's {available:g}: at most {fitting} "
            "fit; lower it or leave it out"
        )
    return min(wanted or max(1, int((available - 1) // cpus)), config.trials)  # a CPU stays free, as for every job


def run_trials(
    config: SearchConfig, prepared: PreparedSearch, resume: bool, progress: ProgressCallback | None = None
) -> tune.ResultGrid:
    """Run all trials, or those that had not ended when the search was stopped."""
    at_once = trials_at_once(config)
    PROGRESS.set(progress)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its banners go to stdout, whatever `verbose` is
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative URIs of groups files stay valid
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # else an interrupted search ends as a finished one
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = join(search_uri(config), TUNE)
    cpus = config.cpus_per_worker
    trainable = tune.with_parameters(TrialProcess, specs=prepared.specs, workers=config.workers, cpus=cpus)
    trainable = tune.with_resources(trainable, tune.PlacementGroupFactory([{"CPU": cpus}] * config.workers))
    if resume and tune.Tuner.can_restore(folder):
        tuner = tune.Tuner.restore(folder, trainable=trainable, resume_unfinished=True, resume_errored=True)
    else:
        tuner = _new_tuner(config, prepared, trainable, at_once)
    grid = tuner.fit()
    if grid.num_errors:
        # Tune counts a process that dies between its step and its save as two failures: give it another try.
        return tune.Tuner.restore(folder, trainable=trainable, resume_errored=True).fit()
    return grid


def _new_tuner(config: SearchConfig, prepared: PreparedSearch, trainable: Any, at_once: int) -> tune.Tuner:
    metrics, modes = list(prepared.goals), list(prepared.goals.values())
    single = len(metrics) == 1
    searcher = OptunaSearch(
        space=prepared.specs.space.suggest,  # pyright: ignore[reportArgumentType]
        metric=metrics[0] if single else metrics,
        mode=modes[0] if single else modes,
        points_to_evaluate=[*prepared.starts, *(one for one in prepared.first if one not in prepared.starts)],
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=NUM_RANDOM),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(prepared),
            num_samples=config.trials,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=attrgetter("trial_id"),
            trial_name_creator=attrgetter("trial_id"),
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=search_uri(config),
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[TrialProgress(config.trials)],
            verbose=0,
        ),
    )


def make_scheduler(prepared: PreparedSearch) -> Any:
    if not prepared.early_stop or prepared.num_validations == 1:
        return FIFOScheduler()
    ((metric, mode),) = prepared.goals.items()
    return PartitionSparingASHA(
        spared=[params for params in prepared.first if GROUPS in params],
        time_attr="training_iteration",
        metric=metric,
        mode=mode,
        max_t=prepared.num_validations,
        grace_period=1,
        reduction_factor=REDUCTION_FACTOR,
    )


class PartitionSparingASHA(ASHAScheduler):
    """ASHA that trains each unmoved partition to its end, so that all of them can be compared.

    A resumed search unpickles it as it was before the first trial, so it reads again what its trials reported.
    """

    def __init__(self, spared: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self.spared = spared

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for report in _reports_before(trial):
            super().on_trial_result(tune_controller, trial, report)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
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
        if progress:  # `trial` is not marked as finished yet
            progress("trials", sum(one is trial or one.is_finished() for one in trials), self.total)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        logger.warning("trial %s failed: %s", trial.trial_id, trial.config)
        self.on_trial_complete(iteration, trials, trial)

"""The search itself, whatever is searched: Optuna proposes, Ray Tune runs trials side by side, ASHA stops weak ones.

1. `prepare_*` (other files): check the settings, know the space, the goals and how a trial is made
2. `trials_at_once`:          can the cluster hold a trial, and how many at once
3. `run`:                     a new Tune experiment, or the stopped one with its searcher's memory
4. `confirm`:                 the chosen configuration with fresh seeds
5. `tuning.results`:          trials.csv, best-config.yaml and plots, from the trials' own reports

searches/NAME/search.yaml        the settings, as they were given
searches/NAME/inputs.json     content hashes of the lake, and of the backbone
searches/NAME/tune/              Ray Tune's own state (its pickles are read on --resume: resume only your own searches)
searches/NAME/partitions/        groups files of the partitions that trials used
searches/NAME/confirmed.json     figures of the chosen configuration with fresh seeds
searches/NAME/COMBINATION/       all but the settings and hashes, where each combination is searched by itself
"""

import json
import logging
import os
from contextvars import ContextVar
from dataclasses import dataclass, field
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
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.kinds import make_trial
from mtrec_ray.tuning.space import GROUPS, Space
from mtrec_ray.tuning.trainable import MakeTrialSpec, TrialProcess
from mtrec_ray.tuning.trial import TrialSpec

logger = logging.getLogger(__name__)

TUNE, SETTINGS, INPUTS, CONFIRMED = "tune", "search.yaml", "inputs.json", "confirmed.json"
FRESH_SEEDS = 1_000
NUM_RANDOM = 8
"""Trials, first ones included, before the sampler proposes by what it has learned."""
SHOWN: ContextVar[ProgressCallback | None] = ContextVar("SHOWN", default=None)
"""Where ended trials are shown: beside Tune's callback, which a resumed search gets back as it was stored."""


@dataclass(frozen=True)
class Goal:
    """A reported metric and whether more of it is better."""

    metric: str
    mode: str
    """max or min."""


@dataclass(frozen=True)
class Prepared:
    """A checked search."""

    space: Space
    goals: tuple[Goal, ...]
    make_trial_spec: MakeTrialSpec
    first: list[dict[str, Any]]
    """Parameters that are tried before the sampler proposes, all else alike."""
    starts: list[dict[str, Any]] = field(default_factory=list)
    """Checked warm starts, tried before these."""
    num_groups: dict[str, int] = field(default_factory=dict)
    """Groups of each candidate partition."""
    num_validations: int = 1
    reduction_factor: int | None = None
    """Of ASHA; None: every trial goes to its end."""


def search_uri(config: SearchConfig) -> str:
    return join(absolute(config.searches), config.name)


def is_started(config: SearchConfig) -> bool:
    return exists(join(search_uri(config), SETTINGS))


def check_name(config: SearchConfig, inputs: dict[str, str], resume: bool) -> None:
    """UserError where the name is taken, or there is nothing to resume.

    Args:
        config: of the search.
        inputs: name -> content hash of what the trials' figures depend on beside the settings.
        resume: whether a stopped search is to be gone on with.
    """
    uri = search_uri(config)
    if not is_started(config):
        if resume:
            raise UserError(f"--resume: there is no search {uri!r}; start it without --resume")
        return
    if not resume:
        raise UserError(f"search {uri!r} was begun before: go on with --resume, or choose another name")
    before, now = (yaml.safe_load(text) for text in (read_file(join(uri, SETTINGS)), dump_yaml(config)))
    for key in now:
        if before.get(key) != now[key] and key != "searches":  # which may be written in many ways
            what = f"{key} = {before.get(key)!r} (now {now[key]!r})"
            raise UserError(f"search {config.name!r} was begun with other settings: {what}: choose another name")
    known = read_json(join(uri, INPUTS))
    changed = [name for name, state in inputs.items() if known.get(name) != state]
    if changed:
        raise UserError(f"search {config.name!r} was begun on another state of {changed[0]}: choose another name")


def record_search(config: SearchConfig, inputs: dict[str, str]) -> None:
    """Write what `check_name` compares."""
    write_json(join(search_uri(config), INPUTS), inputs)
    write_file(join(search_uri(config), SETTINGS), dump_yaml(config).encode())


def trials_at_once(config: SearchConfig) -> int:
    """How many trials run side by side; UserError where the cluster cannot hold one."""
    cpus = config.workers * config.cpus_per_worker
    there = cluster_resources().get("CPU", 0.0)
    largest = max((node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if cpus > there or config.cpus_per_worker > largest:
        message = (
            f"a trial needs {cpus:g} logical CPUs (workers = {config.workers} x cpus_per_worker = "
            f"{config.cpus_per_worker:g}), the cluster has {there:g}, {largest:g} on its largest node: "
            "lower workers or cpus_per_worker"
        )
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless it can grow", message)
        return min(config.trials_at_once or 1, config.trials)
    fitting = int(there // cpus)
    if config.trials_at_once and config.trials_at_once > fitting:
        raise UserError(
            f"trials_at_once = {config.trials_at_once} x {cpus:g} CPUs a trial exceed the cluster's {there:g}: "
            f"at most {fitting} fit; lower it or leave it out"
        )
    beside_others = max(1, int((there - 1) // cpus))  # a CPU stays free, as for every job
    return min(config.trials_at_once or beside_others, config.trials)


def run(
    config: SearchConfig, prepared: Prepared, resume: bool, progress: ProgressCallback | None = None
) -> tune.ResultGrid:
    """Run all trials, or those that were not finished when the search was stopped."""
    at_once = trials_at_once(config)
    SHOWN.set(progress)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # its banners go to stdout, whatever `verbose` says
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # a groups file is named from where the search was started
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # or ctrl-c ends as a search that is done
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trainable, folder = _trainable(config, prepared), join(search_uri(config), TUNE)
    if resume and tune.Tuner.can_restore(folder):
        restored = tune.Tuner.restore(folder, trainable=trainable, resume_unfinished=True, resume_errored=True)
        return _retry_failed(restored.fit(), config, trainable, folder)
    metrics, modes = [goal.metric for goal in prepared.goals], [goal.mode for goal in prepared.goals]
    queue = [*prepared.starts, *(params for params in prepared.first if params not in prepared.starts)]
    single = len(metrics) == 1
    searcher = OptunaSearch(
        space=prepared.space.suggest,  # pyright: ignore[reportArgumentType]
        metric=metrics[0] if single else metrics,
        mode=modes[0] if single else modes,
        points_to_evaluate=queue,
        sampler=optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=NUM_RANDOM),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(prepared),
            num_samples=config.trials,
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=_trial_id,
            trial_name_creator=_trial_id,
        ),
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=search_uri(config),
            failure_config=tune.FailureConfig(max_failures=config.retries),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            callbacks=[_Progress(config.trials)],
            verbose=0,
        ),
    )
    return _retry_failed(tuner.fit(), config, trainable, folder)


def _retry_failed(grid: tune.ResultGrid, config: SearchConfig, trainable: Any, folder: str) -> tune.ResultGrid:
    """The grid after failed trials had another try, from their last look.

    Tune counts a process that dies between its step and its save as two failures, and gives up at the second.
    """
    if not grid.num_errors or not config.retries:
        return grid
    return tune.Tuner.restore(folder, trainable=trainable, resume_errored=True).fit()


def confirm(
    config: SearchConfig, prepared: Prepared, progress: ProgressCallback | None, params: dict[str, Any]
) -> list[dict[str, float]]:
    """Figures of a configuration trained anew with `config.confirm` seeds that no trial had; kept for `--resume`."""
    uri = join(search_uri(config), CONFIRMED)
    known = read_json(uri) if exists(uri) else {}
    figures = known["figures"] if known.get("params") == params else []
    plans = []
    for number in range(1 + len(figures), 1 + config.confirm):
        plan = prepared.make_trial_spec(params)
        plans.append(plan | {"config": plan["config"] | {"seed": config.seed + FRESH_SEEDS + number}})
    if not plans:
        return figures
    task = ray.remote(num_cpus=config.cpus_per_worker, max_retries=config.retries)(_train_to_end)
    at_once = trials_at_once(config)
    for start in range(0, len(plans), at_once):
        figures += ray.get([task.remote(plan) for plan in plans[start : start + at_once]])
        write_json(uri, {"params": params, "figures": figures})
        if progress:
            progress("fresh seeds", len(figures), config.confirm)
    return figures


def _train_to_end(plan: TrialSpec) -> dict[str, float]:
    trial = make_trial(plan, TrialCache())
    metrics: dict[str, float] = {}
    while trial.validations_done < trial.num_validations:
        metrics = trial.advance()
    return metrics


def _trainable(config: SearchConfig, prepared: Prepared) -> Any:
    """What Tune starts for a trial, with all that it holds."""
    shares = {"workers": config.workers, "cpus": config.cpus_per_worker}
    trainable = tune.with_parameters(TrialProcess, make_trial_spec=prepared.make_trial_spec, **shares)
    return tune.with_resources(
        trainable, tune.PlacementGroupFactory([{"CPU": config.cpus_per_worker}] * config.workers)
    )


def _scheduler(prepared: Prepared) -> Any:
    if prepared.reduction_factor is None or prepared.num_validations == 1:
        return FIFOScheduler()
    (goal,) = prepared.goals
    return _SparingASHA(
        spared=[params for params in prepared.first if GROUPS in params],
        time_attr="training_iteration",
        metric=goal.metric,
        mode=goal.mode,
        max_t=prepared.num_validations,
        grace_period=1,
        reduction_factor=prepared.reduction_factor,
    )


class _SparingASHA(ASHAScheduler):
    """ASHA that lets the candidate partitions, as they are, go to their end: a table of them must be whole.

    A resumed search gets it back as it was before the first trial; so it reads what its trials reported again.
    """

    def __init__(self, spared: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__(**settings)
        self.spared = spared

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for look in _reported(trial):
            super().on_trial_result(tune_controller, trial, look)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        is_candidate = any(params.items() <= trial.config.items() for params in self.spared)
        return self.CONTINUE if is_candidate and not result.get("done") else decision


def _reported(trial: Any) -> list[dict[str, Any]]:
    """Looks of a trial before the search was stopped, as far as its state knows of them; none of a new one."""
    known = trial.last_result.get("training_iteration", 0)
    if not known:
        return []
    filesystem, path = trial.storage.storage_filesystem, f"{trial.storage.trial_fs_path}/result.json"
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:  # Tune writes it a moment after its state
        return []
    with filesystem.open_input_stream(path) as file:
        looks = [json.loads(line) for line in file.readall().split(b"\n")[:-1]]  # what follows the last one is torn
    return [look for look in looks if look["training_iteration"] <= known]


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


class _Progress(tune.Callback):
    """Ended trials on the progress bar; a failed one is said at once."""

    def __init__(self, total: int) -> None:
        self.total = total

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._show(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        logger.warning("trial %s failed: %s", trial.trial_id, trial.config)
        self._show(trials, trial)

    def _show(self, trials: list[Any], ending: Any) -> None:
        """`ending` is not marked as finished yet."""
        progress = SHOWN.get()
        if progress:
            progress("trials", sum(one is ending or one.is_finished() for one in trials), self.total)

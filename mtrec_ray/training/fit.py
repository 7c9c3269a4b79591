"""Training runs: on Ray Train, with resources, restarts and progress, or in this process."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import parent
from mtrec_ray.lake.cluster import asking, cluster_resources, joins_cluster, need_ray
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.training.backbone_run import BackboneRecord, new_backbone_run
from mtrec_ray.training.in_process import fit_in_process
from mtrec_ray.training.loop import train_loop_per_worker
from mtrec_ray.training.propensity_run import PropensityRecord, new_propensity_run
from mtrec_ray.training.record import Record, RecordT

POLL_S = 1.0
MAX_FAILURES = 3  # restarts from the last checkpoint before a run fails
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0)
class ProgressActor:
    """Holds rank 0's global step for the progress bar, and a mistake that a worker found."""

    def __init__(self) -> None:
        self.step, self.note, self.mistake = 0, "", ""

    def put(self, step: int, note: str = "") -> None:
        self.step, self.note = step, note

    def get(self) -> tuple[int, str]:
        return self.step, self.note

    def put_mistake(self, message: str) -> None:
        self.mistake = self.mistake or message

    def get_mistake(self) -> str:
        return self.mistake


def train_propensity(config: PropensityConfig, progress: ProgressCallback | None = None) -> PropensityRecord:
    """Train or resume one run to its end; raises what `Record.start` does."""
    lake = Lake.open(config.lake)
    calendar = config.window.resolve(lake.manifest.calendar)
    if config.sample.validation_fraction and not calendar.num_evaluation_days:
        raise UserError("sample.validation_fraction needs a day after the window: set window.num_evaluation_days")
    record = new_propensity_run(config, lake, calendar)
    if config.kind == "mtl" and len(record.groups.names) == 1 < len(record.groups.of_territory):
        logger.warning("model.groups = %r is one group: all territories use the same block", config.model.groups)
    return _train(record, progress)


def train_backbone(config: BackboneConfig, progress: ProgressCallback | None = None) -> BackboneRecord:
    """Train or resume one backbone to its end; raises what `Record.start` does."""
    return _train(new_backbone_run(config, Lake.open(config.lake)), progress)


def _train(new: RecordT, progress: ProgressCallback | None) -> RecordT:
    record = new.start(lambda: check_resources(new.config.runner), progress)
    if record.status == "training":
        fit(record, progress)
        record = record.finish()
    return record


def fit(record: Record, progress: ProgressCallback | None, pack: str = "") -> None:
    """Train a run, or a pack of eliminators, to its end, or resume it.

    UserError for a mistake that a worker found, such as settings with which training diverges.
    """
    if not record.config.runner.workers:
        fit_in_process(record, progress, pack)
        return
    need_ray()
    actor, runner = ProgressActor.remote(), record.config.runner
    storage, name = parent(record.folder(pack))
    settings = {"run": type(record), "record": record.model_dump_json(), "pack": pack, "actor": actor}
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(
            num_workers=runner.workers,
            use_gpu=runner.use_gpu,
            resources_per_worker={"CPU": runner.cpus_per_worker} | ({"GPU": 1} if runner.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=storage,
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_FAILURES,
                controller_failure_limit=-1 if joins_cluster() else MAX_FAILURES,  # workers that did not start
            ),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    outcome = in_background(trainer.fit)  # in the main thread it would take ctrl-c for itself
    while not wait([outcome], timeout=POLL_S).done:
        if progress:
            _report(actor, record.num_steps, progress)
    outcome.result()
    if mistake := ray.get(actor.get_mistake.remote()):
        raise UserError(mistake)
    if progress:
        progress("training steps", record.num_steps, record.num_steps)


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """Run `work()` in a daemon thread; the future holds what it returned or raised.

    A daemon, unlike an executor's thread, does not keep an interrupted command alive. Wait for the future `POLL_S` at a
    time: the system may deliver ctrl-c to any thread, and the main thread only handles it when it wakes.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def check_resources(runner: RunnerConfig, jobs: int = 1) -> None:
    """UserError where jobs side by side could never start: Ray would wait silently."""
    workers = jobs * runner.workers
    if not workers:
        return
    needed = {"CPU": workers * runner.cpus_per_worker + 1, "GPU": workers * runner.use_gpu}
    setting, fewer = (f"jobs_at_once = {jobs}, ", "jobs_at_once, ") if jobs > 1 else ("", "")
    fix = f"{fewer}runner.workers or runner.cpus_per_worker (one CPU stays free for Ray Data)"
    check_fits(needed, f"{setting}runner.workers = {runner.workers}", fix)


def check_fits(needed: dict[str, float], setting: str, fix: str) -> None:
    """UserError where the cluster has fewer `CPU` or `GPU`; a warning where it may grow."""
    available = cluster_resources()
    for kind, amount in needed.items():
        if amount <= available.get(kind, 0.0):
            continue
        message = (
            f"{setting} needs {amount:g} logical {kind}s, the cluster has {available.get(kind, 0.0):g}: lower {fix}"
        )
        if not joins_cluster():
            raise UserError(message)
        logger.warning("%s, unless it can grow", message)


def jobs_that_fit(runner: RunnerConfig) -> int:
    """Jobs that the cluster holds at once, with one CPU free for Ray Data; at least 1."""
    available = cluster_resources()
    fitting = (available.get("CPU", 0) - 1) // (runner.workers * runner.cpus_per_worker)
    if runner.use_gpu:
        fitting = min(fitting, available.get("GPU", 0) // runner.workers)
    return max(1, int(fitting))


def _report(actor: Any, steps: int, progress: ProgressCallback) -> None:
    """Pass rank 0's step on, unless an interrupt has ended Ray's session."""
    with asking:
        if not ray.is_initialized():
            return
        try:
            answer: Any = ray.get(actor.get.remote(), timeout=POLL_S)
        except RayError:  # progress never stops training
            return
    step, note = answer
    progress("training steps", step, steps, note)

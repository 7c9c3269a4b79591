"""One Ray Train run: resources checked, workers started, restarted from the last checkpoint, and watched."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.torch import TorchTrainer

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import asking, cluster_resources, joins_cluster, need_ray
from mtrec_ray.trainers.runner_config import RunnerConfig

POLL_S = 1.0
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0)
class ProgressActor:
    """Where rank 0 leaves the global step for the driver's progress bar."""

    def __init__(self) -> None:
        self.step = 0

    def put(self, step: int) -> None:
        self.step = step

    def get(self) -> int:
        return self.step


def fit(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    runs: str,
    name: str,
    runner: RunnerConfig,
    num_steps: int,
    progress: ProgressCallback | None,
) -> dict[str, float]:
    """Run `loop` on every worker to its end and return the numbers it reported last.

    Args:
        loop: takes `settings` and in them `board`, the `ProgressActor` for rank 0's step.
        settings: plain data.
        runs: folder or URI; Ray Train keeps its checkpoints in its subfolder `name`, and goes on from them.
        name: of the run.
        runner: workers and what each holds.
        num_steps: for the progress bar.
        progress: told of steps.
    """
    need_ray()
    board = ProgressActor.remote()
    trainer = TorchTrainer(
        loop,
        train_loop_config=settings | {"board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=runner.workers,
            use_gpu=runner.use_gpu,
            resources_per_worker={"CPU": runner.cpus_per_worker} | ({"GPU": 1} if runner.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=runs,
            failure_config=ray.train.FailureConfig(max_failures=runner.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with _watch(board, num_steps, progress):
        outcome = in_background(trainer.fit)  # in the main thread it would take ctrl-c for itself
        while not wait([outcome], timeout=POLL_S).done:
            pass
        result = outcome.result()
    return {key: float(value) for key, value in (result.metrics or {}).items() if isinstance(value, int | float)}


def in_background(work: Callable[[], Result]) -> Future[Result]:
    """What `work()` will have returned or raised; it waits for Ray in a thread that nobody has to wait for.

    The thread is a daemon, unlike an executor's: an interrupt ends the command, and with it Ray's session and `work`.
    Wait for it `POLL_S` at a time: the system may give a ctrl-c to any thread, and then the main one hears it only when
    it wakes.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome


def check_resources(runner: RunnerConfig) -> None:
    """UserError where the workers could never start: Ray would wait for them without a word.

    A cluster that scales itself may not have its nodes yet, so there it is a warning.
    """
    there = cluster_resources()
    gpus = runner.workers if runner.use_gpu else 0
    needed = {"CPU": runner.workers * runner.cpus_per_worker + 1, "GPU": float(gpus)}
    for kind, amount in needed.items():
        if amount > there.get(kind, 0.0):
            message = (
                f"runner.workers = {runner.workers} needs {amount:g} logical {kind}s (a CPU stays free for Ray Data), "
                f"the cluster has {there.get(kind, 0.0):g}: lower runner.workers or runner.cpus_per_worker"
            )
            if not joins_cluster():
                raise UserError(message)
            logger.warning("%s, unless it can grow", message)


@contextmanager
def _watch(board: Any, num_steps: int, progress: ProgressCallback | None) -> Iterator[None]:
    """Show rank 0's step while the block runs."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            with asking:
                if not ray.is_initialized():
                    return  # an interrupt has ended Ray's session
                try:
                    step: Any = ray.get(board.get.remote(), timeout=POLL_S)
                except GetTimeoutError:
                    continue  # an interrupt waits for the answer
            progress("training steps", step, num_steps)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress("training steps", num_steps, num_steps)

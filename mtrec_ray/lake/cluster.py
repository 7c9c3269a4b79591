"""A Ray session for a job, on a cluster or local, and its tasks; imports Ray when called."""

import itertools
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import TryAgain, UserError, find_user_error
from mtrec_ray.lake.environment import check_cluster_address, check_ray_folder, ray_failure, use_own_token

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

CANCEL_TIMEOUT_S = 10.0
LONGER_START = {"RAY_gcs_server_port_wait_time_s": "120"}  # for Ray's head to start, at the second try; else 30
MAX_OOM_RETRIES = 3  # of a task that Ray ends because memory is short; Ray's own number is infinite
MAX_REASON = 300  # characters of an error of Ray's
_start: Callable[[], None] | None = None  # Starts Ray for the enclosing session
_in_process = False  # whether `map_tasks` runs its tasks in this process
asking = threading.Lock()
"""Held by background threads during each request to Ray: one during the shutdown would end the process with code 1."""


@contextmanager
def ray_session(num_cpus: int | None = None, keep: bool = False) -> Iterator[None]:
    """Ray for the length of a job, started by the first `need_ray` unless it runs already.

    Joins the cluster of RAY_ADDRESS, which `ray job submit` sets; else starts a local one with one logical CPU more
    than the `num_cpus` of the training workers: if they held every CPU, Ray Data would wait for one forever. With
    `keep`, a Ray that the block starts outlives it, until the enclosing session or the process ends.
    """
    global _start
    had_ray, outer, _start = _is_running(), _start, partial(_start_ray, num_cpus)
    try:
        yield
    except Exception as error:
        if not find_user_error(error) and (failure := ray_failure(error)):
            raise failure from error
        raise
    finally:
        _start = outer
        if _is_running() and not had_ray and not keep:
            import ray

            with asking:
                ray.shutdown()


def _is_running() -> bool:
    """True if this process has a Ray session; does not import Ray: some jobs run without it."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def need_ray() -> ModuleType:
    """Start Ray for the enclosing session, unless it is running; returns the module `ray`."""
    import ray

    if not ray.is_initialized() and _start is not None:
        _start()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False
    return ray


def _start_ray(num_cpus: int | None) -> None:
    """Raises UserError where the environment does not fit, TryAgain where nothing answers."""
    import ray
    from ray.exceptions import RayError

    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if joins_cluster():
        check_cluster_address()
        try:
            ray.init(**quiet)
        except (RuntimeError, ConnectionError, RayError) as error:  # of another version, say
            raise UserError(f"RAY_ADDRESS = {os.environ['RAY_ADDRESS']!r}: {_in_one_line(error)}") from error
        return
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a local node is not preempted
    os.environ.setdefault("RAY_task_oom_retries", str(MAX_OOM_RETRIES))
    check_ray_folder()
    use_own_token()
    local_cpus = max(os.cpu_count() or 1, 2, num_cpus or 0) + 1
    start = partial(ray.init, "local", num_cpus=local_cpus, include_dashboard=False, **quiet)
    with workers_heed_interrupts():
        try:
            start()
        except Exception as error:
            if not _is_late(error):
                raise
            logger.warning("Ray did not start in time; trying once more with a longer limit")
            os.environ |= LONGER_START
            try:
                start()
            except Exception as again:
                if not _is_late(again):
                    raise
                fix = "end other programs on this busy machine, then start the same command again"
                raise TryAgain(f"Ray did not start, twice ({_in_one_line(again)}): {fix}") from again


def _is_late(error: Exception) -> bool:
    """Whether a part of Ray was not up in time: it raises bare exceptions then."""
    return type(error) is Exception or isinstance(error, RuntimeError | ConnectionError | TimeoutError)


def _in_one_line(error: BaseException) -> str:
    return (" ".join(str(error.__cause__ or error).split()) or type(error).__name__)[:MAX_REASON]


@contextmanager
def workers_heed_interrupts() -> Iterator[None]:
    """Let Ray's workers heed SIGINT, which ends cancelled tasks.

    A process that a script starts with `&` ignores it, and workers would inherit that.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    ignored &= threading.current_thread() is threading.main_thread()  # no other thread may set signal handlers
    if ignored:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def joins_cluster() -> bool:
    """True if Ray runs on an existing cluster, which may grow."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def cluster_resources() -> Mapping[str, float]:
    """Resources of the cluster: `CPU` (logical), `GPU`; in `tasks_in_process` one CPU."""
    if _in_process:
        return {"CPU": 1.0}
    return need_ray().cluster_resources()


def metrics_url() -> str:
    """Address of one node's Prometheus metrics; a local Ray has only this node."""
    node = need_ray().nodes()[0]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


def map_tasks(
    function: Callable[..., Result],
    items: Sequence[Item],
    *shared: object,
    stage: str = "",
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Run `function(item, *shared)` as Ray tasks; yields (item, result) as they end.

    Results come in any order. `shared` is sent once. At most two tasks per CPU are in flight, so that results do not
    pile up. Ray repeats a lost task. An error cancels the others; a UserError or OSError comes unwrapped. Within
    `tasks_in_process` it is `map_in_process`.
    """
    if _in_process:
        yield from map_in_process(function, items, *shared, stage=stage, progress=progress)
        return
    ray = need_ray()
    references = [ray.put(value) for value in shared]
    task = ray.remote(max_retries=3)(function)
    waiting, running, done = iter(items), {}, 0
    try:
        while True:
            free = max(2, 2 * int(ray.cluster_resources().get("CPU", 0))) - len(running)  # the cluster may grow
            for item in itertools.islice(waiting, max(0, free)):
                running[task.remote(item, *references)] = item
            if not running:
                return
            (reference,), _ = ray.wait(list(running), num_returns=1)
            item = running.pop(reference)
            result = ray.get(reference)
            done += 1
            if progress:
                progress(stage, done, len(items))
            yield item, result
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from error
        raise
    finally:  # wait for cancelled tasks to end, so that none writes into what the driver removes next
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=CANCEL_TIMEOUT_S)


def map_in_process(
    function: Callable[..., Result],
    items: Sequence[Item],
    *shared: object,
    stage: str = "",
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[Item, Result]]:
    """The same as `map_tasks`, in order and without Ray."""
    for done, item in enumerate(items, 1):
        result = function(item, *shared)
        if progress:
            progress(stage, done, len(items))
        yield item, result


@contextmanager
def tasks_in_process() -> Iterator[None]:
    """Run the block's tasks in this process: small jobs end before Ray would have started."""
    global _in_process
    before, _in_process = _in_process, True
    try:
        yield
    finally:
        _in_process = before

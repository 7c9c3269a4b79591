"""Starting Ray quietly: the cluster we run on when there is one, a small local one otherwise."""

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import ray

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the length of a job.

    Inside `ray job submit`, or with RAY_ADDRESS set, this joins that cluster; in a process that has Ray already it changes
    nothing; else it starts a local one with one logical CPU more than `num_cpus` training workers need, because Ray Data
    waits silently for ever when workers hold every CPU.
    """
    if ray.is_initialized():
        _quiet_ray_data()
        yield
        return
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": max(os.cpu_count() or 1, 2, num_cpus or 0) + 1, "include_dashboard": False}
    ray.init(address=address, logging_level="ERROR", log_to_driver=False, **local)
    _quiet_ray_data()
    try:
        yield
    finally:
        ray.shutdown()


def _quiet_ray_data() -> None:
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.use_datasource_v2 = False


def available_cpus() -> float:
    """Logical CPUs of the cluster."""
    return ray.cluster_resources().get("CPU", 0.0)


def map_buckets(
    function: Callable[..., Result],
    buckets: Iterable[Item],
    *shared: object,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[Item, Result]]:
    """Run `function(item, *shared)` for each item as Ray tasks and yield (item, result) as they end, in any order.

    `shared` travels once. At most two tasks per CPU are under way, so results never pile up; a lost task is run again by Ray.
    """
    references = [ray.put(value) for value in shared]
    task = ray.remote(max_retries=3)(function)
    waiting, running, done = iter(buckets), {}, 0
    limit = max(2, 2 * int(available_cpus()))
    while True:
        for item in itertools.islice(waiting, limit - len(running)):
            running[task.remote(item, *references)] = item
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        for reference in ready:
            item = running.pop(reference)
            done += 1
            if progress:
                progress(done)
            yield item, ray.get(reference)

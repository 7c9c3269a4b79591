"""`mtrec train propensity`: the driver of one run, from settings to a finished run folder.

1. open the lake, check the settings against it          (errors before any work)
2. the run of this name, to go on with, or a new one
3. `plan.json`: two counting passes over the lake; then `run.json`: from here on it is a run
4. `TorchTrainer.fit`: `train_loop_per_worker`, restarted from the last checkpoint after a failure
5. `run.json` says done
"""

import dataclasses
import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join
from mtrec_ray.lake.cluster import joins_cluster
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.streams.plan import make_plan
from mtrec_ray.training.config import PropensityConfig
from mtrec_ray.training.loop import ProgressBoard, train_loop_per_worker
from mtrec_ray.training.run import RunRecord, save_plan, schedule_of

POLL_S = 1.0

logger = logging.getLogger(__name__)


def train_propensity(config: PropensityConfig, progress: ProgressCallback | None = None) -> RunRecord:
    """Train one run to its end, going on from its last checkpoint if the same name was stopped.

    Args:
        config: the run's settings.
        progress: told of counted buckets and training steps.

    Raises:
        UserError: settings that do not fit the lake, the cluster, or the run of the same name.
    """
    config = config.model_copy(update={"lake": absolute(config.lake), "runs": absolute(config.runs)})
    lake = Lake.open(config.lake)
    calendar = resolve_calendar(lake, config.window)
    record = open_run(config, lake, calendar)
    if record.status == "done":
        return record
    check_resources(config)
    if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
        num_phases = calendar.num_evaluation_days if config.incremental else 1
        plan = make_plan(lake, config.sample, calendar, num_phases, progress)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"num_steps": schedule_of(record, plan).num_steps})
        record.save()
    done = record.model_copy(update={"status": "done", "metrics": _fit(record, progress)})
    done.save()
    return done


def open_run(config: PropensityConfig, lake: Lake, calendar: Calendar) -> RunRecord:
    """The run's record: that of the same run if it was begun before, else a new one, not saved yet."""
    embeddings = lake.manifest.embeddings
    if not (embeddings.user_width and embeddings.title_width):
        raise UserError(f"lake {config.lake!r} has no embeddings: run `mtrec lake embed {config.lake}` first")
    if embeddings.window_end and embeddings.window_end > calendar.window_end:
        raise UserError(
            f"the embeddings of lake {config.lake!r} know events up to {embeddings.window_end}, the window ends at "
            f"{calendar.window_end}: test days would leak; run `mtrec lake embed` with the same window.end"
        )
    if config.incremental and calendar.num_evaluation_days < 2:
        raise UserError(
            f"incremental has no effect with {calendar.num_evaluation_days} evaluation day(s): "
            "day i is trained on for the sake of day i + 1"
        )
    groups = make_groups(config.model.groups or "one", lake.manifest)
    model = TwoTowerConfig(
        user_width=embeddings.user_width,
        title_width=embeddings.title_width,
        d=config.model.d,
        num_groups=len(groups.names) if config.kind == "mtl" else 1,
        group_block=config.model.group_block or "none",
        final_activation=config.model.final_activation,
        final_batch_norm=config.model.final_batch_norm,
        aligned_width=embeddings.interaction_width,
        initial_bias=0.0 if config.sample.alpha == "auto" else -math.log(config.sample.alpha),
    )
    new = RunRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        groups=groups,
        model=dataclasses.asdict(model),
        learning_rates=config.optim.learning_rates(config.model.group_block, bool(embeddings.interaction_width)),
        num_steps=0,
    )
    if not exists(join(new.uri, "run.json")):
        return new
    old = RunRecord.load(new.uri)
    _check_same_run(old, new)
    return old if old.status == "done" else old.model_copy(update={"config": config})


def _check_same_run(old: RunRecord, new: RunRecord) -> None:
    if old.lake_hash != new.lake_hash:
        raise UserError(
            f"run {new.config.name!r} was begun on another state of lake {new.config.lake!r} "
            f"(hash {old.lake_hash[:12]}, now {new.lake_hash[:12]}): choose another name"
        )
    exclude = {"runner", "lake", "runs"}  # the lake's hash tells which lake; places may move
    before, now = (_flat(r.config.model_dump(mode="json", exclude=exclude)) for r in (old, new))
    changed = [
        f"{key} = {before.get(key)!r} (now {now.get(key)!r})"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(
            f"run {new.config.name!r} was begun with other settings: {'; '.join(changed)}: choose another name"
        )
    if old.groups != new.groups:
        raise UserError(f"run {new.config.name!r} was begun with other territory groups: choose another name")


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def check_resources(config: PropensityConfig) -> None:
    """UserError where the workers could never start: Ray would wait for them without a word.

    A cluster that scales itself may not have its nodes yet, so there it is a warning.
    """
    runner, there = config.runner, ray.cluster_resources()
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


def _fit(record: RunRecord, progress: ProgressCallback | None) -> dict[str, float]:
    config = record.config
    board = ProgressBoard.remote()
    trainer = TorchTrainer(
        train_loop_per_worker,
        train_loop_config={"record": record.model_dump_json(), "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.runner.workers,
            use_gpu=config.runner.use_gpu,
            resources_per_worker={"CPU": config.runner.cpus_per_worker} | ({"GPU": 1} if config.runner.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name=config.name,
            storage_path=config.runs,
            failure_config=ray.train.FailureConfig(max_failures=config.runner.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    with _watch(board, record.num_steps, progress):
        result = trainer.fit()
    return {key: float(value) for key, value in (result.metrics or {}).items() if isinstance(value, int | float)}


@contextmanager
def _watch(board: Any, num_steps: int, progress: ProgressCallback | None) -> Iterator[None]:
    """Show rank 0's step while the block runs."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(POLL_S):
            progress("training steps", ray.get(board.get.remote()), num_steps)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress("training steps", num_steps, num_steps)

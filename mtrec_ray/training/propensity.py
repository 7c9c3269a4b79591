"""`mtrec train propensity`: the driver of one run, from settings to a finished run folder.

1. open the lake, check the settings against it          (errors before any work)
2. the stored run of this name to resume, or a new one
3. `plan.json`: two counting passes over the lake; then `run.json`: from here on it is a run
4. `fit`: every worker runs `make_training`'s trainer, from the last checkpoint after a failure
5. `run.json` holds the figures and says done
"""

import dataclasses
import logging
import math
from functools import lru_cache, partial
from typing import Any

import torch

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, check_writable
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.streams.plan import PairPlan, check_sample, make_plan
from mtrec_ray.streams.reader import training_batches
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.streams.validation_users import by_territory, validation_chunks, validation_sampling_fraction
from mtrec_ray.tracking.config import check_tracking
from mtrec_ray.trainers.propensity import PropensityData, PropensityTrainer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.loop import Training
from mtrec_ray.training.propensity_run import PropensityRecord, make_schedule, snapshot_uri
from mtrec_ray.training.record import load_plan, save_plan
from mtrec_ray.training.weights import load_figures

logger = logging.getLogger(__name__)

MAX_VALIDATION_USERS = 10_000
NUM_BOOTSTRAP = 50
"""Replicates behind the intervals of validation figures."""


def train_propensity(config: PropensityConfig, progress: ProgressCallback | None = None) -> PropensityRecord:
    """Train one run to its end, resuming it if the same name was interrupted.

    Args:
        config: the run's settings.
        progress: receives counted buckets and training steps.

    Raises:
        UserError: settings that do not fit the lake, the cluster, or the run of the same name; or a
            place that cannot be written to.
    """
    config = config.model_copy(update={"lake": absolute(config.lake), "runs": absolute(config.runs)})
    lake = Lake.open(config.lake)
    calendar = resolve_calendar(lake, config.window)
    record = new_propensity_run(config, lake, calendar).resume_or_new()
    if config.kind == "mtl" and len(record.groups.names) == 1 < len(record.groups.of_territory):
        logger.warning("model.groups = %r is one group: all territories use the same block", config.model.groups)
    if record.status == "done":
        return record.relocate_inputs(lake=config.lake)
    if config.sample.validation_fraction and not calendar.num_evaluation_days:
        raise UserError("sample.validation_fraction needs a day after the window: set window.num_evaluation_days")
    check_tracking(config.tracking)
    check_writable(config.runs)
    check_resources(config.runner)
    if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
        num_periods = calendar.num_evaluation_days if config.incremental else 1
        plan = make_plan(lake, config.sample, calendar, num_periods, progress)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"num_steps": make_schedule(record, plan).num_steps})
        record.save()
    arguments = {"record": record.model_dump_json()}
    fit(make_training, arguments, config.runs, config.name, config.runner, record.num_steps, progress)
    days = [period.day for period in load_plan(record.uri, PairPlan).periods]
    return record.finish({f"day_{day}": load_figures(snapshot_uri(record.uri, day)) for day in days})


def new_propensity_run(config: PropensityConfig, lake: Lake, calendar: Calendar) -> PropensityRecord:
    """The record of a new run; UserError where its settings do not fit the lake."""
    embeddings = lake.manifest.embeddings
    if not (embeddings.user_width and embeddings.title_width):
        raise UserError(f"lake {config.lake!r} has no embeddings: run `mtrec lake embed {config.lake}` first")
    if embeddings.window_end and embeddings.window_end > calendar.window_end:
        raise UserError(
            f"the embeddings of lake {config.lake!r} use events up to {embeddings.window_end}, the window ends at "
            f"{calendar.window_end}: test days would leak; run `mtrec lake embed` with the same window.end"
        )
    if config.incremental and calendar.num_evaluation_days < 2:
        raise UserError(
            f"incremental has no effect with {calendar.num_evaluation_days} evaluation day(s): "
            "day i is trained on for the sake of day i + 1"
        )
    check_sample(lake, config.sample)
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
    return PropensityRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        groups=groups,
        model=dataclasses.asdict(model),
        learning_rates=config.optim.learning_rates(config.model.group_block, bool(embeddings.interaction_width)),
        num_steps=0,
    )


def make_training(arguments: dict[str, Any], workers: Workers, device: torch.device) -> Training:
    """One worker's trainer and batches; `arguments` holds `record` (PropensityRecord as JSON)."""
    record = PropensityRecord.model_validate_json(arguments["record"])
    lake, plan = record.open_lake(), load_plan(record.uri, PairPlan)
    schedule = make_schedule(record, plan)
    data = propensity_data(record, lake, plan, schedule, workers)
    trainer = PropensityTrainer(record.config, data, device=device, workers=workers)
    batches = partial(training_batches, lake, plan, schedule, workers.rank, workers.size)
    return Training(trainer, batches, record.uri, record.config.name, record.config)


def propensity_data(
    record: PropensityRecord, lake: Lake, plan: PairPlan, schedule: Schedule, workers: Workers
) -> PropensityData:
    """What the trainer is built from; it validates after each epoch, on the next day."""
    sample, calendar = record.config.sample, plan.calendar
    buckets = range(workers.rank, lake.manifest.num_buckets, workers.size)
    fraction = validation_sampling_fraction(lake, sample, lake.manifest.num_buckets, MAX_VALIDATION_USERS)

    @lru_cache(maxsize=1)
    def validation_users(period: int) -> list[ScoringChunk]:
        bounds = calendar.day_bounds(min(plan.periods[period].day + 1, calendar.num_evaluation_days))
        chunks = validation_chunks(lake, sample, bounds, buckets, fraction=fraction, fixed_candidates=True)
        return by_territory(chunks)

    return PropensityData(
        model=record.two_tower_config(),
        learning_rates=record.learning_rates,
        group_of_territory=record.groups.of_territory,
        titles=lake.title_embeddings(),
        schedule=schedule,
        days=tuple(period.day for period in plan.periods),
        validate_at=schedule.epoch_ends() if sample.validation_fraction else frozenset(),
        validation_users=validation_users,
        num_bootstrap=NUM_BOOTSTRAP,
    )

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

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, check_writable
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.streams.plan import check_sample, make_plan
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.propensity_loop import train_loop_per_worker
from mtrec_ray.training.propensity_run import PropensityRecord, schedule_of
from mtrec_ray.training.record import save_plan

logger = logging.getLogger(__name__)


def train_propensity(config: PropensityConfig, progress: ProgressCallback | None = None) -> PropensityRecord:
    """Train one run to its end, going on from its last checkpoint if the same name was stopped.

    Args:
        config: the run's settings.
        progress: told of counted buckets and training steps.

    Raises:
        UserError: settings that do not fit the lake, the cluster, or the run of the same name; or a
            place that cannot be written to.
    """
    config = config.model_copy(update={"lake": absolute(config.lake), "runs": absolute(config.runs)})
    lake = Lake.open(config.lake)
    calendar = resolve_calendar(lake, config.window)
    record = new_run(config, lake, calendar).resume_or_new()
    if config.kind == "mtl" and len(record.groups.names) == 1 < len(record.groups.of_territory):
        logger.warning("model.groups = %r is one group, so all territories share one block", config.model.groups)
    if record.status == "done":
        return record.relocate_inputs(lake=config.lake)
    check_writable(config.runs)
    check_resources(config.runner)
    if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
        num_periods = calendar.num_evaluation_days if config.incremental else 1
        plan = make_plan(lake, config.sample, calendar, num_periods, progress)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"num_steps": schedule_of(record, plan).num_steps})
        record.save()
    done = record.model_copy(update={"status": "done", "metrics": _fit(record, progress)})
    done.save()
    return done


def new_run(config: PropensityConfig, lake: Lake, calendar: Calendar) -> PropensityRecord:
    """The record of a run that has not begun; UserError where its settings do not fit the lake."""
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


def _fit(record: PropensityRecord, progress: ProgressCallback | None) -> dict[str, float]:
    config, settings = record.config, {"record": record.model_dump_json()}
    return fit(train_loop_per_worker, settings, config.runs, config.name, config.runner, record.num_steps, progress)

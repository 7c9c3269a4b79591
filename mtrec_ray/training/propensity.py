"""`mtrec train propensity`: from settings to a finished run folder."""

import dataclasses
import logging
import math

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.propensity_run import PropensityRecord

logger = logging.getLogger(__name__)


def train_propensity(config: PropensityConfig, progress: ProgressCallback | None = None) -> PropensityRecord:
    """Train or resume one run to its end; raises what `Record.start` does."""
    lake = Lake.open(config.lake)
    calendar = config.window.resolve(lake.manifest.calendar)
    if config.sample.validation_fraction and not calendar.num_evaluation_days:
        raise UserError("sample.validation_fraction needs a day after the window: set window.num_evaluation_days")
    record = new_propensity_run(config, lake, calendar)
    if config.kind == "mtl" and len(record.groups.names) == 1 < len(record.groups.of_territory):
        logger.warning("model.groups = %r is one group: all territories use the same block", config.model.groups)
    record = record.start(lambda: check_resources(config.runner), progress)
    if record.status == "done":
        return record
    fit(record, progress)
    return record.finish(record.snapshot_figures())


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
    )

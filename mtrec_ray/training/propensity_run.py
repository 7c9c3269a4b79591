"""The folder of a propensity run; all of it is read without unpickling anything.

runs/NAME/run.json                           settings, lake hash, groups, model shape, status, figures
runs/NAME/plan.json                          the plan of its pair streams
runs/NAME/prior.safetensors                  what is popular where, and since when (`streams.prior`)
runs/NAME/snapshots/day_D/model.safetensors  weights after the training window (D = 0) or after training on day D
runs/NAME/metrics.jsonl, tensorboard/        figures over its steps
runs/NAME/checkpoint_*/                      Ray Train's checkpoints
"""

import hashlib
import math
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import Any, ClassVar, Literal

import numpy as np
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file, write_file
from mtrec_ray.identity import Identity
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.models.shapes import check_block
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.streams.groups import Groups, make_groups, training_volume
from mtrec_ray.streams.plan import PairPlan, make_plan
from mtrec_ray.streams.prior import NUM_ACTIVITIES, Prior, PriorGrid
from mtrec_ray.streams.reader import training_batches
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.scored_users import ScoringChunk, validation_users
from mtrec_ray.trainers.propensity import PropensityData, PropensityTrainer, snapshot_file
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.record import Record, Training, lake_reader, load_plan
from mtrec_ray.training.weights import load_weights, read_weights
from mtrec_ray.workers import Workers

PRIOR = "prior.safetensors"
NUM_BOOTSTRAP = 50  # replicates behind the intervals of validation figures


class PropensityRecord(Record):
    """The content of a propensity run's `run.json`."""

    format_version: int = 3
    kind: Literal["propensity"] = "propensity"
    config: PropensityConfig
    groups: Groups
    model: TwoTowerConfig
    learning_rates: tuple[float, float, float]
    """Learning rates at the start of each period: (towers, block matrices, block vectors)."""

    figures_of: ClassVar[str] = "snapshot"

    @classmethod
    def check_document(cls, uri: str, document: dict[str, Any]) -> None:
        model = document.get("model")
        check_block(f"run {uri!r}", model.get("group_block") if isinstance(model, dict) else None)

    def identity(self) -> Identity:
        """Territory groups come from a file, so they count with their content."""
        base = super().identity()
        groups = hashlib.sha256(self.groups.model_dump_json().encode()).hexdigest()
        return Identity(base.settings, base.inputs | {"territory groups": groups})

    def make_plan(self, progress: ProgressCallback | None) -> PairPlan:
        lake, config = self.open_lake(), self.config
        calendar = config.window.resolve(lake.manifest.calendar)
        num_periods = calendar.num_evaluation_days if config.incremental else 1
        plan, prior = make_plan(lake, config.sample, calendar, num_periods, progress, reader=self.reader)
        if prior and self.model.prior_shape:
            write_file(join(self.uri, PRIOR), prior.dump())
        return plan

    def prior(self) -> Prior | None:
        """The prior of the planned run; None without one."""
        return Prior.load(read_file(join(self.uri, PRIOR))) if self.model.prior_shape else None

    def schedule(self, plan: PairPlan) -> Schedule:
        optim = self.config.optim
        epochs = (optim.epochs, *[1] * (len(plan.periods) - 1))
        return plan.schedule(epochs, optim.batch_pairs, optim.lanes, self.config.seed)

    def training(self, workers: Workers, pack: str = "") -> Training:
        lake, plan = self.open_lake(), load_plan(self.uri, PairPlan)
        schedule, prior = self.schedule(plan), self.prior()
        data = self.data(lake, plan, schedule, workers, prior)
        trainer = PropensityTrainer(self.config, data, workers)
        arguments = lake, plan, schedule, workers.rank, workers.size
        return trainer, partial(training_batches, *arguments, prior=prior, reader=self.reader)

    def data(
        self, lake: Lake, plan: PairPlan, schedule: Schedule, workers: Workers, prior: Prior | None = None
    ) -> PropensityData:
        """Inputs of the trainer, which validates after each epoch, on the next day."""
        sample, calendar = self.config.sample, plan.calendar
        buckets = range(workers.rank, lake.manifest.num_buckets, workers.size)

        @lru_cache(maxsize=1)
        def of_next_day(period: int) -> list[ScoringChunk]:
            bounds = calendar.day_bounds(min(plan.periods[period].day + 1, calendar.num_evaluation_days))
            return validation_users(lake, sample, bounds, buckets, lake.manifest.num_buckets, fixed_candidates=True)

        return PropensityData(
            model=self.model,
            learning_rates=self.learning_rates,
            group_of_territory=self.groups.of_territory,
            titles=lake.title_embeddings(),
            schedule=schedule,
            days=tuple(period.day for period in plan.periods),
            validate_at=schedule.epoch_ends() if sample.validation_fraction else frozenset(),
            validation_users=of_next_day,
            num_bootstrap=NUM_BOOTSTRAP,
            prior=prior,
        )

    def weights_uris(self) -> dict[str, str]:
        days = [period.day for period in load_plan(self.uri, PairPlan).periods]
        return {f"day_{day}": join(self.uri, snapshot_file(day)) for day in days}

    def tables(self) -> list[RenderableType]:
        """The run and the figures of its snapshots."""
        config = self.config
        groups = f"{len(self.groups.names)} ({config.model.group_block})" if config.kind == "mtl" else "none"
        facts: dict[str, object] = {"model": config.kind, "groups": groups, "steps": self.num_steps}
        for snapshot, figures in self.figures.items():
            shown = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
            facts |= {f"{snapshot} {name}": value for name, value in shown.items()}
        return [facts_table(f"Run {self.uri}", facts)]


def new_propensity_run(
    config: PropensityConfig,
    lake: Lake,
    calendar: Calendar,
    volume: Callable[[], np.ndarray] | None = None,
) -> PropensityRecord:
    """The record of a new run; UserError where its settings do not fit the lake.

    `volume` gives territories' discoveries for groups that need them; None: counted on the cluster.
    """
    embeddings = lake.manifest.embeddings
    if not (embeddings.user_width and embeddings.title_width):
        raise UserError(f"lake {config.lake!r} has no embeddings: run `mtrec lake embed {config.lake}` first")
    if embeddings.window_end and embeddings.window_end > calendar.window_end:
        found = f"use events up to {embeddings.window_end}, the window ends at {calendar.window_end}"
        fix = "test days would leak; run `mtrec lake embed` with the same window.end"
        raise UserError(f"the embeddings of lake {config.lake!r} {found}: {fix}")
    if config.incremental and calendar.num_evaluation_days < 2:
        found = f"incremental has no effect with {calendar.num_evaluation_days} evaluation day(s)"
        raise UserError(f"{found}: day i is trained on for the sake of day i + 1")
    counted = partial(training_volume, lake, config.sample, calendar, reader=lake_reader(config.runner))
    volume = cache(volume or counted)  # groups and blocks ask for it
    groups = make_groups(config.model.groups or "one", lake.manifest, volume)
    is_paper = config.preset == "paper"
    model = TwoTowerConfig(
        user_width=embeddings.user_width,
        title_width=embeddings.title_width,
        d=config.model.d,
        num_groups=len(groups.names) if config.kind == "mtl" else 1,
        group_block=config.model.group_block or "none",
        discoveries=(0,) if config.model.group_block in (None, "dense") else tuple(volume().tolist()),
        paper=is_paper,
        aligned_width=0 if is_paper else embeddings.interaction_width,
        initial_bias=0.0 if is_paper or config.sample.alpha == "auto" else -math.log(config.sample.alpha),
        one_hot_of_territory=_one_hot_of_territory(config, lake),
        prior_shape=None if is_paper else _prior_shape(config, lake, calendar),
    )
    return PropensityRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        groups=groups,
        model=model,
        learning_rates=config.optim.learning_rates(config.model.group_block, bool(embeddings.interaction_width)),
    )


def _one_hot_of_territory(config: PropensityConfig, lake: Lake) -> tuple[int, ...]:
    """One-hot column of each territory's users; UserError where all have the same."""
    kind, territories = config.model.territory_input, lake.manifest.territories
    if kind == "none":
        return ()
    values = [t.name if kind == "territory" else t.region for t in territories]
    if len(set(values)) == 1:
        raise UserError(f"model.territory_input = {kind} has no effect on a lake of one {kind}: drop it")
    return tuple(sorted(set(values)).index(value) for value in values)


def _prior_shape(config: PropensityConfig, lake: Lake, calendar: Calendar) -> tuple[int, int, int] | None:
    num_territories, num_titles = len(lake.manifest.territories), lake.titles.num_rows
    if not config.model.prior or PriorGrid.of(calendar, 1, num_territories * num_titles) is None:
        return None
    return num_territories, num_titles, NUM_ACTIVITIES


def load_snapshot(record: PropensityRecord, day: int) -> TwoTower:
    """The model after the period of `day`, on the CPU, ready for inference."""
    uri, model = join(record.uri, snapshot_file(day)), TwoTower(record.model)
    load_weights(uri, read_weights(uri), model)
    return model.eval()

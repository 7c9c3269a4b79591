"""One configuration of a propensity model, trained and validated on a sample of users."""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import training_volume
from mtrec_ray.streams.reader import StepRows, training_batches
from mtrec_ray.trainers.propensity import METRICS, PropensityTrainer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import new_propensity_run
from mtrec_ray.training.record import require_lake
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import Figures, TrialCache, trial_data
from mtrec_ray.workers import Workers


class PropensityTrial:
    """A run without Ray Train, in one process or as one of several workers."""

    def __init__(
        self,
        config: PropensityConfig,
        cache: TrialCache,
        workers: Workers,
        search: PropensitySearchConfig,
        lake_hash: str,
    ) -> None:
        """Raises UserError where the lake has changed since the search was started."""
        self.config, self.cache = config, cache
        self.num_validations, self.validations_done = search.validations, 0
        lake, sample = Lake.open(self.config.lake), self.config.sample
        require_lake(lake, lake_hash, self.config.name)
        calendar = self.config.window.resolve(lake.manifest.calendar)
        self.data = data = trial_data(lake, calendar, search.buckets, search.validation_days)
        self.plan, prior = cache.plan(data, sample)
        volume = partial(training_volume, lake, sample, data.calendar, data.buckets, reader=cache)
        record = new_propensity_run(self.config, lake, data.calendar, volume)
        self.prior = prior if record.model.prior_shape else None
        self.schedule = record.schedule(self.plan)
        steps = self.schedule.num_steps
        self.validate_at = [round(n / search.validations * steps) for n in range(1, search.validations + 1)]
        chunks = cache.validation(data, sample, data.buckets[workers.rank :: workers.size])
        trained_on = replace(
            record.data(lake, self.plan, self.schedule, workers, self.prior),
            validation_users=lambda period: chunks,
            validate_at=frozenset(self.validate_at),
        )
        self.trainer = PropensityTrainer(self.config, trained_on, workers)
        self._reported: dict[str, float] = {}
        self._batches: Iterator[StepRows] | None = None

    def advance(self) -> Figures:
        """Train to the next validation; returns figures with bounds, mean loss and times."""
        started, trainer, workers = time.monotonic(), self.trainer, self.trainer.workers
        if self._batches is None:
            place = (workers.rank, workers.size, trainer.next_step)
            self._batches = training_batches(
                self.data.lake, self.plan, self.schedule, *place, reader=self.cache, prior=self.prior
            )
        trainer.run(self._batches, until=self.validate_at[self.validations_done], on_milestone=self._reported.update)
        reported = self._reported = self._reported or trainer.validate()  # of a trial with more validations than steps
        self.validations_done += 1
        ends = {"value": "", "low": "_low", "high": "_high"}
        figures = {name: {key: reported[f"val/{name}{end}"] for key, end in ends.items()} for name in METRICS}
        times = trainer.meter.take()
        steps_s, reading_s = times["train/step_s"], times["train/data_wait_s"]
        plain = {"train/loss": reported.get("train/loss", 0.0), "steps_s": steps_s, "reading_s": reading_s}
        plain["validating_s"] = time.monotonic() - started - steps_s - reading_s
        return figures | {name: {"value": value} for name, value in plain.items()}

    def save(self, folder: Path) -> None:
        state = self.trainer.state_dict()
        own = {"validations_done": self.validations_done, "reported": self._reported}
        save_checkpoint(str(folder), replace(state, plain=state.plain | own))

    def load(self, folder: Path) -> None:
        state = load_checkpoint(str(folder))
        assert state is not None, "Ray Tune restores only what `save` wrote"
        self.trainer.load_state_dict(state)
        self.validations_done, self._reported = state.plain["validations_done"], state.plain["reported"]
        self._batches = None

"""One configuration of a propensity model, trained and validated on a sample of users."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.streams.reader import StepRows, training_batches
from mtrec_ray.trainers.propensity import PropensityTrainer
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training.checkpoint import load_checkpoint, save_checkpoint
from mtrec_ray.training.propensity import new_propensity_run
from mtrec_ray.training.record import require_lake
from mtrec_ray.tuning.data import TrialCache, TrialData, trial_data
from mtrec_ray.tuning.trial import TrialSpec


class PropensityTrial:
    """A run without Ray Train, in one process or as one of several workers."""

    def __init__(
        self,
        config: PropensityConfig,
        data: TrialData,
        num_validations: int,
        num_bootstrap: int,
        validation_users: int,
        workers: Workers,
        cache: TrialCache,
    ) -> None:
        self.config, self.data, self.cache = config, data, cache
        self.num_validations, self.validations_done = num_validations, 0
        self.figures: dict[str, float] = {}
        self.plan = cache.plan(data, config.sample)
        record = new_propensity_run(config, data.lake, data.calendar)
        self.schedule = record.schedule(self.plan)
        chunks = cache.validation(data, config.sample, data.buckets[workers.rank :: workers.size], validation_users)
        steps = self.schedule.num_steps
        self.validate_at = [round(n / num_validations * steps) for n in range(1, num_validations + 1)]
        trained_on = record.data(data.lake, self.plan, self.schedule, workers)
        own = {"validation_users": lambda period: chunks, "validate_at": frozenset(self.validate_at)}
        self.trainer = PropensityTrainer(
            config, replace(trained_on, num_bootstrap=num_bootstrap, **own), workers=workers
        )
        self._batches: Iterator[StepRows] | None = None

    @staticmethod
    def of(spec: TrialSpec, workers: Workers, cache: TrialCache) -> "PropensityTrial":
        """Raises UserError where the lake is not that of `spec["lake_hash"]`."""
        config = PropensityConfig.model_validate(spec["config"])
        lake = Lake.open(config.lake)
        require_lake(lake, spec["lake_hash"], config.name)
        data = trial_data(lake, resolve_calendar(lake, config.window), spec["buckets"], spec["validation_days"])
        numbers = (spec["validations"], spec["num_bootstrap"], spec["validation_users"])
        return PropensityTrial(config, data, *numbers, workers, cache)

    def advance(self) -> dict[str, float]:
        """Train to the next validation; returns figures with bounds, mean loss and times."""
        started, trainer, workers = time.monotonic(), self.trainer, self.trainer.workers
        if self._batches is None:
            place = (workers.rank, workers.size, trainer.next_step)
            self._batches = training_batches(self.data.lake, self.plan, self.schedule, *place, stream=self.cache.stream)
        trainer.run(self._batches, until=self.validate_at[self.validations_done], on_validate=self.figures.update)
        self.figures = self.figures or trainer.validate()  # of a trial with more validations than steps
        self.validations_done += 1
        times = trainer.meter.take()
        steps_s, reading_s = times["train/step_s"], times["train/data_wait_s"]
        return {name.removeprefix("val/"): value for name, value in self.figures.items()} | {
            "steps_s": steps_s,
            "reading_s": reading_s,
            "validating_s": time.monotonic() - started - steps_s - reading_s,
        }

    def save(self, folder: Path) -> None:
        """Write all that `load` needs."""
        state = self.trainer.state_dict()
        own = {"validations_done": self.validations_done, "figures": self.figures}
        save_checkpoint(folder, replace(state, progress=state.progress | own), self.config)

    def load(self, folder: Path) -> None:
        """Resume from what `save` wrote."""
        state = load_checkpoint(folder)
        self.trainer.load_state_dict(state)
        self.validations_done, self.figures = state.progress["validations_done"], state.progress["figures"]
        self._batches = None

"""One configuration of a propensity model: trained on a sample of buckets, validated on users and days of its own."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mtrec_ray.config import dump_yaml
from mtrec_ray.evaluation.intervals import interval
from mtrec_ray.evaluation.state import EvaluationResult, EvaluationSettings, EvaluationState
from mtrec_ray.jobs.scorers import PropensityScorer
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.streams.reader import StepRows, training_batches
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.workers import RunningMean
from mtrec_ray.training.checkpoint import Position, load_checkpoint, save_checkpoint
from mtrec_ray.training.propensity import new_run
from mtrec_ray.training.propensity_loop import make_trainee
from mtrec_ray.training.propensity_run import schedule_of
from mtrec_ray.training.record import check_lake
from mtrec_ray.tuning.data import TrialCache, TrialData, trial_data
from mtrec_ray.tuning.trial import TrialSpec

MEASURES = ("pr_auc", "ndcg@10")
MEANS = ("all", "mean", "weighted")
METRICS = tuple(f"{measure}/{mean}" for measure in MEASURES for mean in MEANS)
"""What a trial reports, each with `_low` and `_high`: of all users pooled, the mean over territories, and that mean
weighted by the territories' positives."""


class PropensityTrial:
    """A run that trains without starting anything, in one process or as one of several workers."""

    def __init__(
        self,
        config: PropensityConfig,
        data: TrialData,
        num_validations: int,
        num_bootstrap: int,
        validation_users: int,
        rank: int,
        world_size: int,
        cache: TrialCache,
    ) -> None:
        self.config, self.data, self.num_validations, self.validations_done = config, data, num_validations, 0
        self.rank, self.world_size, self.num_bootstrap = rank, world_size, num_bootstrap
        self.record = new_run(config, data.lake, data.calendar)
        self.cache = cache
        self.plan = cache.plan(data, config.sample)
        self.schedule = schedule_of(self.record, self.plan)
        self.trainee = make_trainee(self.record, data.lake, torch.device("cpu"), world_size)
        self.next_step, self.mean_loss, self.step_s = 0, RunningMean(), 0.0
        self._batches: Iterator[StepRows] | None = None
        own_buckets = data.buckets[rank::world_size]
        self._chunks = cache.validation(data, config.sample, own_buckets, validation_users)

    @staticmethod
    def of(plan: TrialSpec, rank: int, world_size: int, cache: TrialCache) -> "PropensityTrial":
        """The trial of a plan with `config`, and of the search `lake_hash`, `buckets`, `validation_days` and `_users`,
        `looks` and `num_bootstrap`; UserError where the lake is another one by now."""
        config = PropensityConfig.model_validate(plan["config"])
        lake = Lake.open(config.lake)
        check_lake(lake, plan["lake_hash"], config.name)
        data = trial_data(lake, resolve_calendar(lake, config.window), plan["buckets"], plan["validation_days"])
        numbers = (plan["looks"], plan["num_bootstrap"], plan["validation_users"])
        return PropensityTrial(config, data, *numbers, rank, world_size, cache)

    def advance(self) -> dict[str, float]:
        """Train to the next look; returns `METRICS` with their bounds, the mean loss, and where the time went."""
        began, step_s = time.monotonic(), self.step_s
        end = round((self.validations_done + 1) / self.num_validations * self.schedule.num_steps)
        self.trainee.model.train()
        if self._batches is None:
            share = (self.rank, self.world_size, self.next_step)
            self._batches = training_batches(self.data.lake, self.plan, self.schedule, *share, stream=self.cache.stream)
        while self.next_step < end:
            rows = next(self._batches)
            started = time.monotonic()
            self.mean_loss.add(self.trainee.step(rows, self.schedule.period_progress(rows.step)))
            self.step_s += time.monotonic() - started
            self.next_step = rows.step + 1
        trained = time.monotonic()
        metrics = summary(self._validate())
        self.validations_done += 1
        return metrics | {
            "train/loss": self.mean_loss.mean(),
            "steps_s": self.step_s - step_s,
            "reading_s": trained - began - (self.step_s - step_s),
            "validating_s": time.monotonic() - trained,
        }

    def save(self, folder: Path) -> None:
        position = Position(self.next_step, float(self.mean_loss.total), self.mean_loss.count)
        save_checkpoint(folder, self.trainee.model, self.trainee.optimizer, position, dump_yaml(self.config))
        (folder / "progress.json").write_text(json.dumps({"validations_done": self.validations_done}))

    def load(self, folder: Path) -> None:
        position = load_checkpoint(folder, self.trainee.model, self.trainee.optimizer)
        self.next_step, self.mean_loss = position.next_step, RunningMean(position.loss_sum, position.loss_count)
        self.validations_done = json.loads((folder / "progress.json").read_text())["validations_done"]
        self._batches = None

    def _validate(self) -> EvaluationResult:
        """Validation users of this worker's buckets against all that they could discover, merged over workers."""
        lake = self.data.lake
        settings = EvaluationSettings(
            num_territories=len(lake.manifest.territories),
            num_titles=lake.titles.num_rows,
            num_bootstrap=self.num_bootstrap,
        )
        state = EvaluationState(settings)
        scorer = PropensityScorer(self.trainee.model, lake.title_embeddings(), self.record.groups.of_territory)
        for chunk in self._chunks:
            state.add(
                chunk.territory,
                chunk.keys,
                scorer.score(chunk),
                chunk.labels,
                chunk.candidates,
                chunk.title_index,
            )
        return _merged(state, self.world_size).summarise()


def summary(result: EvaluationResult) -> dict[str, float]:
    """`METRICS` of a result, each with `_low` and `_high`; NaN where no territory has a positive."""
    figures = {}
    for measure in MEASURES:
        rows = result.pr_auc if measure == "pr_auc" else result.ranking[measure]  # (N + 1, R)
        territories, weights = rows[:-1], result.num_positives[:-1]
        means = (rows[-1], _mean(territories, np.ones(len(weights))), _mean(territories, weights))
        for name, replicates in zip(MEANS, means, strict=True):
            found = interval(replicates)
            key = f"{measure}/{name}"
            figures |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
    return figures


def _mean(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, R), (N,) -> (R,) weighted mean of the rows that have a value."""
    there = np.isfinite(rows) & np.isfinite(rows[:, :1]) & (weights[:, None] > 0)
    total = (there * weights[:, None]).sum(axis=0)
    summed = (np.where(there, rows, 0.0) * weights[:, None]).sum(axis=0)
    return np.divide(summed, total, out=np.full(rows.shape[1], np.nan), where=total > 0)


def _merged(state: EvaluationState, world_size: int) -> EvaluationState:
    if world_size == 1:
        return state
    states: list[EvaluationState | None] = [None] * world_size
    torch.distributed.all_gather_object(states, state)
    first, *others = states
    assert first is not None, "every worker sent one"
    for other in others:
        assert other is not None, "every worker sent one"
        first.merge(other)
    return first

"""Trainer of a propensity model (paper A, 4.2): Adam, period by period."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.evaluation.intervals import interval, nan_mean
from mtrec_ray.evaluation.state import EvaluationResult, EvaluationSettings, EvaluationState
from mtrec_ray.models.training_state import Part
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.process import use_fast_matmul
from mtrec_ray.steps.batch import make_pair_batch
from mtrec_ray.steps.propensity import loss_and_gradients
from mtrec_ray.streams.prior import Prior
from mtrec_ray.streams.reader import StepRows
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.trainer import Meter, Trainer
from mtrec_ray.workers import Workers

GAIN_LR = 3e-3
"""Learning rate of `TwoTower.gain`. At 1e-2 it became too large: pairs of a training window follow their users' history
more closely than those of later months do (validation users of dated markets)."""
MEASURES = ("pr_auc", "ndcg@10")
MEANS = ("all", "mean", "weighted")
METRICS = tuple(f"{measure}/{mean}" for measure in MEASURES for mean in MEANS)
"""Over all users pooled, as mean over territories, and as their mean weighted by positives."""
BEST_METRIC = "val/pr_auc/weighted"  # decides which weights of a period are the best


@dataclass(frozen=True)
class PropensityData:
    """Inputs of a propensity model's training, beside its batches."""

    model: TwoTowerConfig
    learning_rates: tuple[float, float, float]
    """Learning rates at the start of each period: (towers, block matrices, block vectors)."""
    group_of_territory: list[int]
    titles: np.ndarray  # (titles, title_width) float16 embeddings
    schedule: Schedule
    days: tuple[int, ...]  # evaluation day of each period, 0 for the training window
    validate_at: frozenset[int] = frozenset()  # numbers of finished steps after which validation users are scored
    validation_users: Callable[[int], Sequence[ScoringChunk]] = field(default=lambda period: ())
    """Period -> this worker's validation users on the days after it."""
    num_bootstrap: int = 0  # replicates behind the intervals of validation figures
    prior: Prior | None = None  # batches bring its values for their pairs


class PropensityTrainer(Trainer[StepRows]):
    """Trains one two-tower model; its weights after each period are its outputs."""

    saved: ClassVar[tuple[str, ...]] = (*Trainer.saved, "best_figures")

    def __init__(self, config: PropensityConfig, data: PropensityData, workers: Workers | None = None) -> None:
        milestones = {*data.validate_at, *data.schedule.period_ends()}
        super().__init__(data.schedule.num_steps, milestones, config.runner.cpus_per_worker, workers)
        use_fast_matmul()
        self.config, self.data = config, data
        self.model = TwoTower(data.model)
        self.model.init_weights(torch.Generator().manual_seed(config.seed))
        self.model.to(self.device).train()
        self.optimizer = make_optimizer(self.model, data.learning_rates)
        (self.titles,) = self.tensors(data.titles.copy())
        self.group_of_territory = np.array(data.group_of_territory, dtype=np.int64)
        self.compute_dtype = torch.bfloat16 if self.device.type == "cuda" else None
        best = self.model.state_dict() if config.optim.snapshot == "best" else {}
        self.best_weights = {name: tensor.clone() for name, tensor in best.items()}
        self.best_figures: dict[str, float] = {}  # figures of `best_weights`; empty before a period's first validation

    def train_step(self, batch: StepRows) -> Tensor:
        is_constant = self.config.preset == "paper"
        decay = 1.0 if is_constant else 1.0 - self.data.schedule.period_progress(self.next_step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * decay
        pairs = make_pair_batch(
            batch.embedding,
            self.group_of_territory[batch.territory],
            batch.offsets,
            batch.title_index,
            batch.label,
            self.titles,
            num_groups=self.model.config.num_groups,
            user_territory=batch.territory,
            prior=batch.prior,
            device=self.device,
        )
        all_reduce = self.workers.all_reduce
        loss = loss_and_gradients(self.model, pairs, all_reduce=all_reduce, compute_dtype=self.compute_dtype)
        self.optimizer.step()
        return loss

    def reach_milestone(self) -> dict[str, float]:
        """Validate where that is due; at a period's end put its snapshot in `outputs`."""
        ends = self.data.schedule.period_ends()
        period = next(number for number, end in enumerate(ends) if self.next_step <= end)
        figures = {"train/loss": self.recent.mean_loss()}
        self.set_prior(period)
        if self.next_step in self.data.validate_at:
            figures |= self.validate(period)
            if self.best_weights and figures[BEST_METRIC] > self.best_figures.get(BEST_METRIC, -1.0):  # NaN is not
                self.best_figures = figures
                for name, tensor in self.model.state_dict().items():
                    self.best_weights[name].copy_(tensor)
        if self.next_step == ends[period]:
            if self.best_figures:
                self.model.load_state_dict(self.best_weights)
            weights = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
            self.outputs[snapshot_file(self.data.days[period])] = weights, self.best_figures or figures
            self.recent, self.best_figures = Meter(), {}
        return figures

    def set_prior(self, period: int) -> None:
        """Give the model the prior for predictions after a period."""
        if (prior := self.data.prior) is not None:
            values = {"title_prior": prior.after(period), "user_prior": prior.users, "seen_prior": np.array(prior.seen)}
            for name, value in values.items():
                self.model.get_buffer(name).copy_(torch.from_numpy(value))

    def validate(self, period: int = 0) -> dict[str, float]:
        """`val/` figures of the validation users of all workers, each with `_low` and `_high`."""
        settings = EvaluationSettings(
            num_territories=len(self.group_of_territory),
            num_titles=len(self.titles),
            num_bootstrap=self.data.num_bootstrap,
        )
        scorer = PropensityScorer(self.model, self.data.titles, self.data.group_of_territory)
        state = EvaluationState(settings)
        for chunk in self.data.validation_users(period):
            logits = scorer.score(chunk)
            state.add(chunk.territory, chunk.keys, logits, chunk.labels, chunk.candidates, chunk.title_index)
        if self.workers.size > 1:
            states: list[EvaluationState | None] = [None] * self.workers.size
            torch.distributed.all_gather_object(states, state)
            state, *others = [one for one in states if one is not None]
            for other in others:
                state.merge(other)
        self.model.train()
        return {f"val/{name}": value for name, value in summarise(state.summarise()).items()}

    def rates(self) -> dict[str, float]:
        return {"optim.lr": self.data.learning_rates[0]}

    def parts(self) -> list[Part]:
        return [("model", self.model.state_dict(keep_vars=True), self.optimizer), ("best", self.best_weights, None)]


def make_optimizer(model: TwoTower, rates: tuple[float, float, float]) -> torch.optim.Optimizer:
    """Adam (paper A, 4.2), with separate rates for the group block's matrices and vectors."""
    block = model.group_block
    parts = (model.tower_parameters(), block.matrices() if block else [], block.vectors() if block else [])
    groups = [{"params": part, "first_lr": rate} for part, rate in zip(parts, rates, strict=True) if part]
    if model.gain is not None:
        groups.append({"params": [model.gain], "first_lr": GAIN_LR})
    return torch.optim.Adam(groups, lr=rates[0], fused=True)


def snapshot_file(day: int) -> str:
    """Where a run's folder holds the weights after the period of `day`."""
    return f"snapshots/day_{day}/model.safetensors"


class PropensityScorer:
    """A two-tower model at one point of its training, in eval mode. Picklable."""

    def __init__(self, model: TwoTower, title_embeddings: np.ndarray, group_of_territory: list[int]) -> None:
        self.model, self.device = model.eval(), model.user_tower.first.device
        titles = torch.from_numpy(title_embeddings.astype(np.float32)).to(self.device)
        self.titles = model.title_vectors(titles)  # (titles, d)
        self.group_of_territory = group_of_territory

    def score(self, chunk: ScoringChunk) -> np.ndarray:
        """(U, T) float32 logits."""
        users = torch.from_numpy(chunk.embedding.astype(np.float32)).to(self.device)
        num_groups = self.model.config.num_groups
        group = self.group_of_territory[chunk.territory] if num_groups > 1 else 0
        groups, territories = torch.tensor([[group], [chunk.territory]], device=self.device).expand(2, len(users))
        index = torch.from_numpy(chunk.title_index.astype(np.int64)).to(self.device)
        logits = self.model.logits(self.model.user_vectors(users, groups, territories), self.titles[index])
        return self._with_prior(logits, chunk, index)

    def score_prior(self, chunk: ScoringChunk) -> np.ndarray:
        """(U, T) float32: the prior alone, without what the towers say."""
        index = torch.from_numpy(chunk.title_index.astype(np.int64)).to(self.device)
        return self._with_prior(torch.zeros(chunk.labels.shape, device=self.device), chunk, index)

    def _with_prior(self, logits: Tensor, chunk: ScoringChunk, index: Tensor) -> np.ndarray:
        activity, seen = (torch.from_numpy(array).to(self.device) for array in (chunk.activity, chunk.seen))
        return self.model.with_prior(logits, chunk.territory, index, activity, seen).cpu().numpy()


def summarise(result: EvaluationResult) -> dict[str, float]:
    """`METRICS` of a result with `_low` and `_high`; NaN without any positive."""
    figures = {}
    for measure in MEASURES:
        rows = result.metrics[measure]  # (G + 1, R)
        territories, weights = rows[:-1], result.counts["num_positives"][:-1, None]
        means = (rows[-1], nan_mean(territories), nan_mean(territories, weights))
        for name, replicates in zip(MEANS, means, strict=True):
            found, key = interval(replicates), f"{measure}/{name}"
            figures |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
    return figures

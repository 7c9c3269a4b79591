"""Trainer of a sequential backbone (paper B, 2.2), and its figures on held-out events."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.evaluation.next_title import NextTitleMetrics, next_title_metrics, sample_negatives
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from mtrec_ray.models.training_state import Part, averaged
from mtrec_ray.steps.pretraining import LOSSES, draw_negatives, positions_of, pretraining_step
from mtrec_ray.streams.crops import SequenceBatch
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.trainer import Trainer, seed_step
from mtrec_ray.workers import Workers

WEIGHTS = "backbone.safetensors"
MASK_FRACTION = 0.3  # fraction of a crop's events that bert4rec has to predict
AVERAGING = 0.995  # decay of the weights' running mean, which is validated and kept; +0.010 NDCG@10 on MovieLens-100K
NEGATIVES_SEED = 0  # the sampled negatives are the same for every model and run
PATIENCE = 5  # validations without a better NDCG@10 before the run stops


@dataclass(frozen=True)
class BackboneData:
    """Inputs of a backbone's training, beside its batches."""

    num_titles: int
    schedule: Schedule
    users: HeldOutUsers  # this worker's part of the users whose validation event is predicted


class BackboneTrainer(Trainer[SequenceBatch]):
    """Trains one backbone; the weights with the best validation NDCG@10 are its output."""

    saved: ClassVar[tuple[str, ...]] = (*Trainer.saved, "best", "best_epoch")

    def __init__(self, config: BackboneConfig, data: BackboneData, workers: Workers | None = None) -> None:
        every, schedule = config.optim.evaluate_every, data.schedule
        milestones = sorted(schedule.epoch_ends())[every - 1 :: every]
        super().__init__(schedule.num_steps, milestones, config.runner.cpus_per_worker, workers)
        self.config, self.data = config, data
        self.best, self.best_epoch = -1.0, 0
        self.model = SequentialBackbone(SequentialConfig(num_titles=data.num_titles, **config.model.model_dump()))
        self.model.init_weights(torch.Generator().manual_seed(config.seed))
        self.model.to(self.device).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=config.optim.lr, fused=True)
        self.average = averaged(self.model, AVERAGING)

    def train_step(self, batch: SequenceBatch) -> Tensor:
        optim, seed = self.config.optim, self.config.seed
        seed_step(seed, batch.step)
        negatives = draw_negatives(self.data.num_titles, optim.num_negatives).to(self.device)
        seed_step(seed, batch.step, self.workers.rank)
        history, targets = self.tensors(batch.history, batch.targets)
        positions = positions_of(self.model, history, targets, MASK_FRACTION)
        losses, all_reduce = LOSSES[optim.loss], self.workers.all_reduce
        loss = pretraining_step(self.model, self.optimizer, positions, negatives, losses, all_reduce)
        self.average.update_parameters(self.model)
        return loss

    def reach_milestone(self) -> dict[str, float]:
        """Validate the running mean of the weights, keep the best, stop when nothing improves."""
        epoch = self.next_step // self.data.schedule.steps_per_epoch[0]
        averaged, users = cast("SequentialBackbone", self.average.module), self.data.users
        vectors = vectors_in_chunks(averaged.user_vectors, *self.tensors(users.history))
        means = held_out_metrics(users, vectors, averaged.title_vectors()).means()
        figures = {f"val/{name}": value for name, value in self.workers.mean(means, len(users)).items()}
        if not np.isfinite(figures["val/ndcg"]):
            raise self.diverged("validation scores are nan or inf")
        figures |= {"train/loss": self.recent.take()["train/loss"], "epoch": float(epoch)}
        if figures["val/ndcg"] > self.best:
            self.best, self.best_epoch = figures["val/ndcg"], epoch
            weights = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
            self.outputs[WEIGHTS] = weights, figures
        elif epoch - self.best_epoch >= PATIENCE * self.config.optim.evaluate_every:
            self.stopped = True
        return figures

    def rates(self) -> dict[str, float]:
        return {"optim.lr": self.config.optim.lr}

    def parts(self) -> list[Part]:
        return [
            ("model", self.model.state_dict(keep_vars=True), self.optimizer),
            ("average", self.average.state_dict(keep_vars=True), None),
        ]


def held_out_metrics(users: HeldOutUsers, user_vectors: Tensor, title_vectors: Tensor) -> NextTitleMetrics:
    """Figures of U users, maybe none, from vectors (U, d) and titles (N, d) by dot product."""
    return stacked_metrics(users, user_vectors[None], title_vectors)[0]


@torch.no_grad()
def stacked_metrics(users: HeldOutUsers, user_vectors: Tensor, title_vectors: Tensor) -> list[NextTitleMetrics]:
    """`held_out_metrics` of each of K models with vectors (K, U, d), on the same negatives."""
    parts: list[list[NextTitleMetrics]] = [[] for _ in user_vectors]
    for rows, seen in users.chunks(len(title_vectors)):
        negatives = sample_negatives(users.target[rows], seen, users.keys[rows], NEGATIVES_SEED)
        for part, vectors in zip(parts, user_vectors[:, rows], strict=True):
            scores = (vectors @ title_vectors.t()).cpu().numpy()
            part.append(next_title_metrics(scores, users.target[rows], negatives))
    return [NextTitleMetrics(*map(np.concatenate, zip(*part, strict=True))) for part in parts]


@torch.no_grad()
def vectors_in_chunks(vectors_of: Callable[..., Tensor], *inputs: Tensor, size: int = 1024) -> Tensor:
    """`vectors_of` U rows of each input -> (..., U, d), a bounded number of rows at a time."""
    parts = zip(*(rows.split(size) for rows in inputs), strict=True)
    return torch.cat([vectors_of(*part) for part in parts], dim=-2)

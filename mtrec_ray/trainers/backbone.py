"""Trainer of a sequential backbone (paper B, 2.2): BPR, averaging, early stopping."""

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from mtrec_ray.models.training_state import Part, averaged
from mtrec_ray.steps.pretraining import positions_of, pretraining_step
from mtrec_ray.streams.crops import SequenceBatch
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers.accuracy import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.trainer import Trainer, seed_step
from mtrec_ray.workers import Workers

WEIGHTS = "backbone.safetensors"
MASK_FRACTION = 0.3  # fraction of a crop's events that bert4rec has to predict
AVERAGING = 0.995  # decay of the weights' running mean, which is validated and kept; +0.010 NDCG@10 on MovieLens-100K
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
        negatives = torch.randint(self.data.num_titles, (optim.num_negatives,)).to(self.device)
        seed_step(seed, batch.step, self.workers.rank)
        history, targets = self.tensors(batch.history, batch.targets)
        positions = positions_of(self.model, history, targets, MASK_FRACTION)
        loss = pretraining_step(self.model, self.optimizer, positions, negatives, self.workers.all_reduce)
        self.average.update_parameters(self.model)
        return loss

    def num_examples(self, batch: SequenceBatch) -> int:
        return int((batch.targets >= 0).sum())

    def reach_milestone(self) -> dict[str, float]:
        """Validate the running mean of the weights, keep the best, stop when nothing improves."""
        epoch = self.next_step // self.data.schedule.steps_per_epoch[0]
        means = self.workers.mean(self.validate().means(), len(self.data.users))
        figures = {f"val/{name}": value for name, value in means.items()}
        figures |= {"train/loss": self.recent.take()["train/loss"], "epoch": float(epoch)}
        if figures["val/ndcg"] > self.best:
            self.best, self.best_epoch = figures["val/ndcg"], epoch
            averaged = self.average.module.state_dict()
            self.outputs[WEIGHTS] = {name: tensor.clone() for name, tensor in averaged.items()}, figures
        elif epoch - self.best_epoch >= PATIENCE * self.config.optim.evaluate_every:
            self.stopped = True
        return figures

    def validate(self) -> NextTitleMetrics:
        """Figures of the averaged weights on the validation event of this worker's users."""
        averaged = cast("SequentialBackbone", self.average.module)
        vectors = vectors_in_chunks(averaged.user_vectors, *self.tensors(self.data.users.history))
        return held_out_metrics(self.data.users, vectors, averaged.title_vectors())

    def parts(self) -> list[Part]:
        return [
            ("model", self.model.state_dict(keep_vars=True), self.optimizer),
            ("average", self.average.state_dict(keep_vars=True), None),
        ]

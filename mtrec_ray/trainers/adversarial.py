"""Adversarial training of one pack of combinations; subclasses choose what to keep."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.models.closed_form import ClosedFormMaps, ClosedFormMethod
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import (
    EliminatorMethod,
    ExtendedEliminatorMethod,
    FairnessMethod,
    FilterMethod,
    FineTuningMethod,
)
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.training_state import Part
from mtrec_ray.steps.adversary import AdversaryGame
from mtrec_ray.steps.pretraining import positions_of
from mtrec_ray.streams.crops import Prefixes, SequenceBatch
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers.backbone import MASK_FRACTION, stacked_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.probe_leakage import BEYOND_CHANCE, ProbeScores, probe_attribute
from mtrec_ray.trainers.trainer import Trainer, seed_step
from mtrec_ray.workers import Workers

WEIGHTS = "eliminators.safetensors"
PREFIXES_PER_USER = 8  # histories of each user that a transport is fitted to, or a probe reads
NUM_NEGATIVES = 16  # negatives drawn per batch


@dataclass(frozen=True)
class EliminatorData:
    """Inputs of a pack's training, beside its batches."""

    backbone: SequentialBackbone
    num_values: dict[str, int]  # of each sensitive attribute, in the lake's order
    value_counts: list[list[int]]  # users who are trained on with each value, for each attribute
    schedule: Schedule
    users: HeldOutUsers  # this worker's part of the train split's users whose validation event is predicted
    prefixes: Prefixes  # this worker's part of the histories that the transport is fitted to, or that a probe reads


@dataclass(frozen=True)
class UserRows:
    """Rows of all workers' users in the order of their keys, and how to order vectors so."""

    values: Tensor  # (N, m) -1 unknown
    keys: Tensor  # (N,) int64
    order: Tensor  # (N,) place among the gathered rows

    @staticmethod
    def gather(workers: Workers, values: Tensor, keys: Tensor) -> "UserRows":
        """Of each worker's (N_w, m) values and (N_w,) keys; the number of workers changes nothing."""
        values, keys = workers.gather_rows(values), workers.gather_rows(keys)
        order = keys.argsort(stable=True)
        return UserRows(values[order], keys[order], order)

    def vectors(self, workers: Workers, vectors: Tensor) -> Tensor:
        """(K, N_w, d) of each worker -> (K, N, d)."""
        return workers.gather_rows(vectors.transpose(0, 1))[self.order].transpose(0, 1).contiguous()

    def probe(self, vectors: Tensor, num_values: Mapping[str, int], attribute: str) -> ProbeScores | None:
        """What a linear probe reads of an attribute in vectors (N, d), as `probe_attribute`."""
        column = self.values[:, list(num_values).index(attribute)]
        return probe_attribute(vectors, column, self.keys.cpu().numpy(), num_values[attribute])


def is_written(figures: Mapping[str, float], attribute: str) -> bool:
    """Whether vectors tell more of an attribute than the backbone's, beyond chance."""
    return figures.get(f"errors_above/{attribute}", 0.0) > BEYOND_CHANCE


class AdversarialTrainer(Trainer[SequenceBatch]):
    """Trains some combinations together; a subclass chooses the weights to keep."""

    saved: ClassVar[tuple[str, ...]] = (*Trainer.saved, "figures")
    figures: dict[str, dict[str, float]]  # by combination; `none` is the backbone

    def __init__(
        self,
        config: EliminatorsConfig,
        combinations: Sequence[Combination],
        data: EliminatorData,
        workers: Workers | None,
        **adversary: Any,  # settings of the game
    ) -> None:
        every, schedule = config.optim.evaluate_every, data.schedule
        milestones = sorted(schedule.epoch_ends())[every - 1 :: every]
        super().__init__(schedule.num_steps, milestones, config.runner.cpus_per_worker, workers)
        self.config, self.data = config, data
        data.backbone.to(self.device)
        method = make_method(config, data.num_values, data.backbone, combinations).to(self.device)
        counts, sum_over = data.value_counts, self.workers.all_reduce
        self.game = AdversaryGame(method, data.num_values, counts, config.seed, sum_over, **adversary)
        self.optimizer = self.game.generator_optimizer
        self.method, self.averaged = method, self.game.averaged  # the averaged weights are validated and kept
        self.kept = {name: value.detach().clone() for name, value in method.own_parameters().items()}
        self.names = [combination_name(combination) for combination in combinations]

    def train_step(self, batch: SequenceBatch) -> Tensor:
        seed, backbone = self.config.seed, self.method.backbone
        seed_step(seed, batch.step)
        negatives = torch.randint(backbone.config.num_titles, (NUM_NEGATIVES,)).to(self.device)
        seed_step(seed, batch.step, self.workers.rank)
        history, targets, values = self.tensors(batch.history, batch.targets, batch.attribute_index)
        positions = positions_of(backbone, history, targets, MASK_FRACTION)
        move = (batch.step + 1) % self.config.adversary.discriminator_steps == 0
        bpr, _ = self.game.step(positions, values, negatives, move_generator=move)
        return bpr.mean()

    def validate(self) -> list[float]:
        """NDCG@10 of each combination's averaged weights, over the users of all workers."""
        users = self.data.users
        inputs = self.tensors(users.history, users.attribute_index)
        vectors = vectors_in_chunks(self.averaged.user_vectors, *inputs)  # (K, U, d)
        metrics = stacked_metrics(users, vectors, self.averaged.backbone.title_vectors())
        found = [self.workers.mean(one.means(), len(users))["ndcg"] for one in metrics]
        if not np.isfinite(found).all():
            raise self.diverged("validation scores are nan or inf")
        return found

    def finish(self) -> None:
        """Put the kept weights in `outputs`, after a probe of what they leave in the vectors."""
        self._record_written_values()
        self.outputs[WEIGHTS] = self.kept, self.figures

    def rates(self) -> dict[str, float]:
        adversary = self.config.adversary
        return {"adversary.generator_lr": adversary.generator_lr, "adversary.weight": adversary.weight}

    def parts(self) -> list[Part]:
        return [*self.game.parts(), ("kept", self.kept, None)]

    @torch.no_grad()
    def _keep(self, method: FairnessMethod, row: int | EllipsisType) -> None:
        """Copy one combination's row of each stacked tensor to `kept`, or (...) all rows."""
        newest = method.own_parameters()
        for name, tensor in self.kept.items():
            tensor[row] = newest[name][row]

    def _record(self, figure: str, values: list[float]) -> None:
        """A figure of each combination."""
        for name, value in zip(self.names, values, strict=True):
            self.figures[name][figure] = value

    def _record_written_values(self) -> None:
        """A probe's AUC of each hidden attribute, and how far it is above the backbone's.

        A personal prompt can write the value that it is made of: more can then be read than the backbone says. It does
        so for every user, so all of the train split are probed, trained on or not: few of them would show little.
        """
        users, num_values = self.data.users, self.data.num_values
        history, values, keys = self.tensors(users.history, users.attribute_index, users.keys.view(np.int64))
        rows = UserRows.gather(self.workers, values, keys)
        plain = rows.vectors(self.workers, vectors_in_chunks(self.data.backbone.user_vectors, history)[None])[0]
        hidden = rows.vectors(self.workers, self._kept_vectors(history, values))  # (K, N, d)
        before = {name: rows.probe(plain, num_values, name) for name in num_values}
        self.figures[NONE] |= {f"auc/{name}": found.auc for name, found in before.items() if found}
        for vectors, combination in zip(hidden, self.method.combinations, strict=True):
            figures = self.figures[combination_name(combination)]
            for name in combination:
                found, base = rows.probe(vectors, num_values, name), before[name]
                if found and base:
                    figures |= {f"auc/{name}": found.auc, f"errors_above/{name}": found.errors_above(base)}
            figures["written"] = float(sum(is_written(figures, name) for name in combination))

    @torch.no_grad()
    def _kept_vectors(self, history: Tensor, values: Tensor) -> Tensor:
        """(K, N_w, d) user vectors by the kept weights; the trained ones stay as they are."""
        own = self.method.own_parameters()
        trained = {name: tensor.detach().clone() for name, tensor in own.items()}
        for name, tensor in own.items():
            tensor.copy_(self.kept[name])
        vectors = vectors_in_chunks(self.method.user_vectors, history, values)
        for name, tensor in own.items():
            tensor.copy_(trained[name])
        return vectors


def make_method(
    config: EliminatorsConfig,
    num_values: Mapping[str, int],
    backbone: SequentialBackbone,
    combinations: Sequence[Combination],
) -> FairnessMethod:
    """Untrained weights of some combinations, drawn by seed and combination name alone."""
    if config.method == "fine_tuning":
        return FineTuningMethod(backbone, combinations[0])
    if config.method == "filter":
        filters = FilterMethod(backbone, {name: num_values[name] for (name,) in combinations})
        filters.init_weights(config.seed)
        return filters
    shape = backbone.config
    if config.method == "closed_form":
        return ClosedFormMethod(backbone, ClosedFormMaps(num_values, combinations, shape.width))
    pack = StackedEliminators(config.shape, num_values, combinations, shape.width, shape.num_layers)
    pack.init_weights(config.seed)
    if config.method == "pfrec":
        return EliminatorMethod(backbone, pack)
    pack.close_gate()
    return ExtendedEliminatorMethod(backbone, pack)

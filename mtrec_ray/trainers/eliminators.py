"""Trainer of one pack of eliminators: adversarial steps, transport, choice of weights.

Each combination keeps, at each validation, weights whose NDCG@10 is at or above its floor: a fraction of the
backbone's, lower where the backbone leaks more of the combination's attributes. Below the floor, more accurate weights
replace less accurate ones. The transport has the largest strength at which it stays above the floor by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.hashing import mix
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.fairness_methods import EliminatorMethod, FairnessMethod, FilterMethod, FineTuningMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.training_state import Part
from mtrec_ray.models.transport import FOLDS, STRENGTHS, num_steps
from mtrec_ray.steps.adversary import AdversaryGame
from mtrec_ray.steps.pretraining import positions_of
from mtrec_ray.streams.crops import Prefixes, SequenceBatch
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.trainers.backbone import MASK_FRACTION, held_out_metrics, stacked_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.probe_leakage import probe_leakage
from mtrec_ray.trainers.trainer import Trainer, seed_step
from mtrec_ray.workers import Workers

WEIGHTS = "eliminators.safetensors"
PREFIXES_PER_USER = 8  # histories of each user that the transport is fitted to
NUM_NEGATIVES = 16  # negatives drawn per batch


@dataclass(frozen=True)
class EliminatorData:
    """Inputs of a pack's training, beside its batches."""

    backbone: SequentialBackbone
    num_values: dict[str, int]  # of each sensitive attribute, in the lake's order
    value_counts: list[list[int]]  # users of the train split with each value, for each attribute
    schedule: Schedule
    users: HeldOutUsers  # this worker's part of the train split's users whose validation event is predicted
    prefixes: Prefixes  # this worker's part of the histories that the transport is fitted to


class EliminatorTrainer(Trainer[SequenceBatch]):
    """Trains some combinations together; the weights it keeps are its output at the end."""

    saved: ClassVar[tuple[str, ...]] = (*Trainer.saved, "figures")

    def __init__(
        self,
        config: EliminatorsConfig,
        combinations: Sequence[Combination],
        data: EliminatorData,
        workers: Workers | None = None,
    ) -> None:
        every, schedule = config.optim.evaluate_every, data.schedule
        milestones = sorted(schedule.epoch_ends())[every - 1 :: every]
        super().__init__(schedule.num_steps, milestones, config.runner.cpus_per_worker, workers)
        self.config, self.data = config, data
        data.backbone.to(self.device)
        method = make_method(config, data.num_values, data.backbone, combinations).to(self.device)
        settings, sum_over = config.adversary.model_dump(), self.workers.all_reduce
        self.game = AdversaryGame(method, data.num_values, data.value_counts, config.seed, sum_over, **settings)
        self.optimizer = self.game.generator_optimizer
        self.method, self.averaged = method, self.game.averaged  # the averaged weights are validated and kept
        self.kept = {name: value.detach().clone() for name, value in method.own_parameters().items()}
        self.names = [combination_name(combination) for combination in combinations]
        floors, ndcg = self._ndcg_floors()
        self.figures: dict[str, dict[str, float]] = {NONE: {"ndcg": ndcg}}  # by combination
        self.figures |= {name: {"ndcg_floor": floor, "step": 0.0} for name, floor in floors.items()}

    @property
    def with_transport(self) -> EliminatorMethod | None:
        """The averaged method, if it is a pack of eliminators with a transport."""
        method = self.averaged
        return method if isinstance(method, EliminatorMethod) and method.pack.config.transport_units else None

    def start(self) -> bool:
        """Fit the transport, limit its strength by the NDCG floor, and keep what there is."""
        self.fit_transport()
        if method := self.with_transport:
            strengths = method.pack.transport_strength[:, 0, 0]  # (K,) a view
            self._record("strength_confirmed", strengths.tolist())
            self._limit_strengths(strengths)
            self._record("strength", strengths.tolist())
        self._record("ndcg", self.validate())
        self._keep(self.method, ...)
        return True

    def train_step(self, batch: SequenceBatch) -> Tensor:
        seed, backbone = self.config.seed, self.method.backbone
        seed_step(seed, batch.step)
        negatives = torch.randint(backbone.config.num_titles, (NUM_NEGATIVES,)).to(self.device)
        seed_step(seed, batch.step, self.workers.rank)
        history, targets, values = self.tensors(batch.history, batch.targets, batch.attribute_index)
        bpr, _ = self.game.step(positions_of(backbone, history, targets, MASK_FRACTION), values, negatives)
        return bpr.mean()

    def reach_milestone(self) -> dict[str, float]:
        """Fit the transport again, validate, and keep the combinations that are accurate enough."""
        self.fit_transport()
        figures = {f"val/ndcg/{name}": ndcg for name, ndcg in self.keep_accurate().items()}
        if self.next_step == self.num_steps:
            self.outputs[WEIGHTS] = self.kept, self.figures
        return {"train/loss": self.recent.take()["train/loss"]} | figures

    def keep_accurate(self) -> dict[str, float]:
        """Validate, keep what holds its floor or is more accurate than before; NDCG@10 of each."""
        measured = dict(zip(self.names, self.validate(), strict=True))
        for row, (name, ndcg) in enumerate(measured.items()):
            kept = self.figures[name]
            if ndcg >= kept["ndcg_floor"] or ndcg > kept["ndcg"]:
                self._keep(self.averaged, ... if len(measured) == 1 else row)
                kept |= {"ndcg": ndcg, "step": float(self.next_step)}
        return measured

    def fit_transport(self) -> None:
        """Fit the maps, which live and averaged weights share, to the users of all workers.

        Rows are sorted by user, so the number of workers changes nothing; all take the first worker's result, since
        different machines round differently.
        """
        config, workers, method = self.config, self.workers, self.with_transport
        if method is None:
            return
        prefixes, first = self.data.prefixes, self.next_step == 0
        keys = prefixes.keys.view(np.int64)
        history, values, user = self.tensors(prefixes.history, prefixes.attribute_index, keys)
        vectors = vectors_in_chunks(method.vectors_before_transport, history, values)  # (K, V, d)
        vectors, values, user = (workers.gather_rows(rows) for rows in (vectors.transpose(0, 1), values, user))
        order = user.argsort(stable=True)
        vectors, values, user = vectors[order], values[order], user[order]
        (fold,) = self.tensors((mix(user.cpu().numpy(), "transport", config.seed) % np.uint64(FOLDS)).astype(np.int64))
        method.pack.fit_transport(
            vectors.transpose(0, 1).contiguous(),
            values,
            user,
            fold,
            method.backbone.title_vectors(),
            weight=config.transport.weight,
            steps=num_steps(config.transport.passes if first else config.transport.later_passes, len(user)),
            seed=config.seed + self.next_step,
            find_strength=first,
        )
        for tensor in vars(method.pack.transport).values():
            workers.all_reduce(tensor if workers.rank == 0 else tensor.zero_())

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

    def _limit_strengths(self, strengths: Tensor) -> None:
        """Lower each transport's strength (K,) until it holds its NDCG floor by itself."""
        for lower in reversed(STRENGTHS[:-1]):
            measured = zip(self.names, self.validate(), strict=True)
            below = torch.tensor([ndcg < self.figures[name]["ndcg_floor"] for name, ndcg in measured])
            if not below.any():
                break
            strengths.copy_(torch.where(below.to(self.device), strengths.clamp(max=lower), strengths))

    def _record(self, figure: str, values: list[float]) -> None:
        """A figure of each combination."""
        for name, value in zip(self.names, values, strict=True):
            self.figures[name][figure] = value

    def _ndcg_floors(self) -> tuple[dict[str, float], float]:
        """Minimum NDCG@10 of each combination, from the backbone's leakage; the backbone's own."""
        users, optim, backbone, workers = self.data.users, self.config.optim, self.data.backbone, self.workers
        history, values, keys = self.tensors(users.history, users.attribute_index, users.keys.view(np.int64))
        vectors = vectors_in_chunks(backbone.user_vectors, history)  # (U, d)
        means = held_out_metrics(users, vectors, backbone.title_vectors()).means()
        ndcg = workers.mean(means, len(users))["ndcg"]
        vectors, values, keys = (workers.gather_rows(rows) for rows in (vectors, values, keys))
        leakage = probe_leakage(vectors, values, keys.cpu().numpy(), self.data.num_values)
        most = {combination_name(chosen): max(leakage[one] for one in chosen) for chosen in self.method.combinations}
        floors = {n: min(optim.min_ndcg_ratio, 1 - optim.leakage_budget * found**2) * ndcg for n, found in most.items()}
        return floors, ndcg


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
    pack = StackedEliminators(config.shape, num_values, combinations, shape.width, shape.num_layers)
    pack.init_weights(config.seed)
    return EliminatorMethod(backbone, pack)

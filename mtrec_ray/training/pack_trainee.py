"""One pack of eliminators in training: the game, its maps, and which of its weights are kept.

What is kept is decided for each combination alone, so a pack's outcome is that of its members: at each look at the
validation event, the weights of those whose NDCG@10 has not fallen below a bar, which is a share of the backbone's and
lower where the backbone tells more of what is hidden; below it, those that are more accurate than what is kept (a
filter begins as a random layer). The map behind the last layer is used as far as it stays above the bar by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce
from mtrec_ray.combinations import NONE, Combination
from mtrec_ray.hashing import mix
from mtrec_ray.models.discriminators import Discriminators, value_weights
from mtrec_ray.models.fairness_methods import EliminatorMethod, FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.transport import FOLDS, STRENGTHS, num_steps
from mtrec_ray.process import prepare_process
from mtrec_ray.steps.adversary import AdversaryGame, GameSettings
from mtrec_ray.steps.pretraining import positions_of
from mtrec_ray.streams.crops import SequenceBatch, SequencePlan
from mtrec_ray.streams.held_out import HeldOutUsers, Prefixes
from mtrec_ray.trainers.accuracy import held_out_metrics, stacked_metrics, vectors_in_chunks
from mtrec_ray.trainers.probe_leakage import probe_leakage
from mtrec_ray.trainers.workers import all_reduce, gather_rows, mean_over_workers, seed_step
from mtrec_ray.training.eliminators_run import EliminatorsRecord, figure_name, make_method

PREFIXES = 8
"""Histories of each user that the transport is fitted on."""


@dataclass
class PackTrainee:
    """The game of one pack, the weights kept so far, and their figures."""

    record: EliminatorsRecord
    game: AdversaryGame
    kept: dict[str, Tensor]
    figures: dict[str, float]
    bars: dict[Combination, float]
    """Least validation NDCG@10 of each combination."""
    device: torch.device
    next_step: int = 0

    @property
    def method(self) -> FairnessMethod:
        return self.game.method

    def step(self, batch: SequenceBatch, rank: int) -> None:
        """Train on one worker's share of a global batch."""
        optim, seed = self.record.config.optim, self.record.config.seed
        seed_step(seed, batch.step)
        negatives = torch.randint(self.method.backbone.config.num_titles, (optim.num_negatives,)).to(self.device)
        seed_step(seed, batch.step, rank)
        history, targets, values = (
            torch.from_numpy(array).to(self.device) for array in (batch.history, batch.targets, batch.attribute_index)
        )
        positions = positions_of(self.method.backbone, history, targets, optim.mask_share)
        self.game.step(positions, values, negatives)
        self.next_step = batch.step + 1

    def fit_transport(self, seen: Prefixes, rank: int, world_size: int) -> None:
        """Fit the maps, which live and averaged weights share, on the users of all workers.

        Batches are drawn by row, so rows are sorted by user: how many workers read them changes nothing. All take the
        maps of the first worker, for unlike machines round differently.
        """
        average, config = self.game.average.module, self.record.config
        if not _has_map(average):
            return
        history, values = (torch.from_numpy(a).to(self.device) for a in (seen.history, seen.attribute_index))
        user = torch.from_numpy(seen.keys.view(np.int64)).to(self.device)
        vectors = vectors_in_chunks(average.vectors_before_transport, history, values)  # (K, V, d)
        vectors, values, user = (gather_rows(t, rank, world_size) for t in (vectors.transpose(0, 1), values, user))
        order = user.argsort(stable=True)
        vectors, values, user = vectors[order], values[order], user[order]
        fold = mix(user.cpu().numpy().view(np.uint64), "transport", config.seed) % np.uint64(FOLDS)
        first = self.next_step == 0
        average.pack.fit_transport(
            vectors.transpose(0, 1).contiguous(),
            values,
            user,
            torch.from_numpy(fold.astype(np.int64)).to(self.device),
            average.backbone.title_vectors(),
            weight=config.transport.weight,
            steps=num_steps(config.transport.passes if first else config.transport.later_passes, len(user)),
            seed=config.seed + self.next_step,
            find_strength=first,
        )
        if world_size > 1:
            for tensor in vars(average.pack.transport).values():
                all_reduce(tensor if rank == 0 else tensor.zero_())

    def begin(self, seen: Prefixes, users: HeldOutUsers, rank: int, world_size: int) -> None:
        """Before the first step: fit the maps to `seen`, bound them by the accuracy of `users`, keep what is there."""
        self.fit_transport(seen, rank, world_size)
        self._record_strengths("strength_confirmed")
        self._bound_strength(users)
        self._record_strengths("strength")
        for combination, ndcg in zip(self.game.average.module.combinations, self._validate(users), strict=True):
            self.figures[figure_name("val/ndcg", combination)] = ndcg
        self.kept = {name: value.detach().clone() for name, value in self.method.own_parameters().items()}

    def look(self, users: HeldOutUsers) -> None:
        """Validate the running mean and keep the combinations that are accurate enough."""
        average = self.game.average.module
        for k, (combination, ndcg) in enumerate(zip(average.combinations, self._validate(users), strict=True)):
            name = figure_name("val/ndcg", combination)
            if not (ndcg >= self.bars[combination] or ndcg > self.figures[name]):  # NaN is neither
                continue
            keep(self.kept, average.own_parameters(), None if len(average.combinations) == 1 else k)
            self.figures[name] = ndcg
            self.figures[figure_name("step", combination)] = float(self.next_step)

    def _bound_strength(self, users: HeldOutUsers) -> None:
        """Use less of each map until it stays above its bar by itself."""
        average = self.game.average.module
        if not _has_map(average):
            return
        share = average.pack.transport_strength[:, 0, 0]  # (K,) a view
        for lower in reversed(STRENGTHS[:-1]):
            measured = zip(average.combinations, self._validate(users), strict=True)
            costly = torch.tensor([ndcg < self.bars[combination] for combination, ndcg in measured], device=self.device)
            if not costly.any():
                break
            share.copy_(torch.where(costly, share.clamp(max=lower), share))

    def _record_strengths(self, name: str) -> None:
        """A figure of each combination: the share of its map that is used."""
        average = self.game.average.module
        if not _has_map(average):
            return
        for combination, share in zip(average.combinations, average.pack.transport_strength.flatten(), strict=True):
            self.figures[figure_name(name, combination)] = float(share)

    def _validate(self, users: HeldOutUsers) -> list[float]:
        """NDCG@10 of each combination's running mean, over the users of all workers."""
        average = self.game.average.module
        history, values = (torch.from_numpy(a).to(self.device) for a in (users.history, users.attribute_index))
        vectors = vectors_in_chunks(average.user_vectors, history, values)  # (K, U, d)
        metrics = stacked_metrics(users, vectors, average.backbone.title_vectors())
        means = (mean_over_workers(one.means(), len(users), self.game.all_reduce, self.device) for one in metrics)
        return [one["ndcg"] for one in means]


def _has_map(method: FairnessMethod) -> TypeGuard[EliminatorMethod]:
    return isinstance(method, EliminatorMethod) and method.pack.config.transport_units > 0


def make_pack_trainee(
    record: EliminatorsRecord,
    pack: str,
    backbone: SequentialBackbone,
    plan: SequencePlan,
    device: torch.device,
    users: HeldOutUsers,
    rank: int,
    world_size: int,
) -> PackTrainee:
    """The game before its first step; the seed and the combinations' names alone decide the weights."""
    config = record.config
    prepare_process(config.runner.cpus_per_worker)
    backbone.to(device)
    reduce: AllReduce | None = all_reduce if world_size > 1 else None
    history = torch.from_numpy(users.history).to(device)
    vectors = vectors_in_chunks(backbone.user_vectors, history)
    means = held_out_metrics(users, vectors, backbone.title_vectors()).means()
    means = mean_over_workers(means, len(users), reduce, device)
    method = make_method(record, backbone, record.packs[pack]).to(device)
    sizes = {name: len(values) for name, values in record.attributes.items()}
    adversary = config.adversary
    discriminators = Discriminators(
        sizes, method.combinations, width=backbone.config.width, hidden=adversary.discriminator_width
    )
    discriminators.init_weights(config.seed)
    game = AdversaryGame(
        method,
        discriminators.to(device),
        value_weights(plan.value_counts, power=adversary.class_power).to(device),
        GameSettings(
            weight=adversary.weight,
            discriminator_steps=adversary.discriminator_steps,
            columns=adversary.columns,
            generator_lr=adversary.generator_lr,
            discriminator_lr=adversary.discriminator_lr,
            l2=adversary.l2,
            average=adversary.averaging,
        ),
        reduce,
    )
    bars = _bars(record, method.combinations, means["ndcg"], vectors, users, rank, world_size)
    figures = {f"val/ndcg/{NONE}": means["ndcg"]}
    figures |= {figure_name("val/ndcg_floor", combination): bar for combination, bar in bars.items()}
    figures |= {figure_name("step", combination): 0.0 for combination in method.combinations}
    return PackTrainee(record, game, {}, figures, bars, device)


def _bars(
    record: EliminatorsRecord,
    combinations: Sequence[Combination],
    backbone_ndcg: float,
    vectors: Tensor,
    users: HeldOutUsers,
    rank: int,
    world_size: int,
) -> dict[Combination, float]:
    """The least validation NDCG@10 of each combination, from the backbone's (U, d) vectors of each worker's users."""
    optim, sizes = record.config.optim, {name: len(values) for name, values in record.attributes.items()}
    values, keys = (torch.from_numpy(a).to(vectors.device) for a in (users.attribute_index, users.keys.view(np.int64)))
    vectors, values, keys = (gather_rows(rows, rank, world_size) for rows in (vectors, values, keys))
    told = probe_leakage(vectors, values, keys.cpu().numpy().view(np.uint64), sizes)
    most = {combination: max(told[name] for name in combination) for combination in combinations}
    return {
        c: min(optim.min_ndcg_ratio, 1 - optim.leakage_budget * told**2) * backbone_ndcg for c, told in most.items()
    }


def keep(kept: Mapping[str, Tensor], newest: Mapping[str, Tensor], combination: int | None) -> None:
    """Copy one combination's part of each stacked tensor, or everything where there is only one."""
    for name, tensor in kept.items():
        if combination is None:
            tensor.copy_(newest[name])
        else:
            tensor[combination].copy_(newest[name][combination])

"""One configuration of eliminators, or of a baseline, cross-fitted on the train split.

No user of the audit split is read. The train split is cut in two halves by the same hash. Attackers of its own measure
each half through eliminators trained on the other half, so every user is attacked once, and never through a model that
has seen its attribute values. Figures are means over the halves: attackers that learn from both halves see what two
eliminators leave with opposite signs cancel out (on a lake with strong planted attributes they read an AUC of 0.46
where each half gave 0.59, and a fresh audit 0.60).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings, audit_vectors
from mtrec_ray.evaluation.audit_metrics import AuditResult
from mtrec_ray.evaluation.intervals import interval, poisson_weights
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.process import prepare_process
from mtrec_ray.streams.crops import make_sequence_plan, sequence_batches
from mtrec_ray.streams.held_out import HeldOutUsers, read_held_out, read_prefixes
from mtrec_ray.streams.sequences import VALIDATION_EVENT, in_split
from mtrec_ray.trainers.accuracy import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators import PREFIXES_PER_USER, EliminatorData, EliminatorTrainer
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import make_packs
from mtrec_ray.tuning.data import TrialCache, first_buckets, map_here
from mtrec_ray.tuning.trial import TrialSpec

NUM_BOOTSTRAP = 200
Half = Literal["train_lower", "train_upper"]
HALVES: tuple[Half, ...] = ("train_lower", "train_upper")
METRICS = ("leakage/mean", "leakage/worst", "ndcg@10/mean", "ndcg_ratio/mean")
"""Best attackers' balanced accuracy above chance; NDCG@10, its ratio to the backbone's."""


@dataclass(frozen=True)
class CombinationVectors:
    """All users under one combination."""

    vectors: Tensor
    """(U, d)"""
    ndcg: np.ndarray
    """(U,) NDCG@10 of their validation event."""


class EliminatorsTrial:
    """Trains all combinations under one configuration and validates once, at its end."""

    num_validations = 1

    def __init__(self, spec: TrialSpec, cache: TrialCache) -> None:
        """`spec` holds `config`, and from the search `buckets` and `num_permutations`."""
        self.spec, self.validations_done, self.cache = spec, 0, cache
        self.config = EliminatorsConfig.model_validate(spec["config"])
        self.source = BackboneRecord.load(self.config.backbone)
        self.packs = make_packs(self.config, self.source.attributes)
        self.lake = self.source.open_lake()
        self.buckets = first_buckets(self.lake, spec["buckets"])
        expected = self.lake.manifest.counts["users"] * len(self.buckets) / self.lake.manifest.num_buckets
        self.fraction = min(1.0, self.config.optim.validation_users / max(1.0, expected))
        prepare_process(self.config.runner.cpus_per_worker)

    def advance(self) -> dict[str, float]:
        """Train to the end, then attack; returns `METRICS` and each combination's figures."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        figures = self._measure(backbone, users, self._train(backbone, users))
        self.validations_done = 1
        return figures

    def backbone_figures(self) -> dict[str, float]:
        """The same figures of the backbone, which hides nothing, under every combination."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        combinations = [combination for pack in self.packs.values() for combination in pack]
        return self._measure(backbone, users, dict.fromkeys(combinations, _of_backbone(backbone, users)))

    def save(self, folder: Path) -> None:
        """Write that the trial has ended."""
        (folder / "progress.json").write_text(json.dumps({"validations_done": self.validations_done}))

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.validations_done = json.loads((folder / "progress.json").read_text())["validations_done"]

    def _train_split_users(self) -> HeldOutUsers:
        """Users of the train split with their validation event."""
        sequences, length = self.source.config.sequences, self.source.config.model.history
        users = read_held_out(self.lake, sequences, VALIDATION_EVENT, length, self.buckets, self.fraction)
        return users.only(~users.audit_split)

    def _train(self, backbone: SequentialBackbone, users: HeldOutUsers) -> dict[Combination, CombinationVectors]:
        """All users under each combination, by eliminators trained on the other half."""
        history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
        found: dict[Combination, CombinationVectors] = {}
        for half in HALVES:
            unseen = ~in_split(users.keys, self.source.config.sequences, half)
            for combinations in self.packs.values():
                trained = self._train_pack(combinations, backbone, users.only(~unseen), half)
                vectors = vectors_in_chunks(trained.user_vectors, history[unseen], values[unseen])  # (K, U', d)
                for combination, own in zip(combinations, vectors, strict=True):
                    empty = CombinationVectors(torch.empty(len(users), own.shape[1]), np.empty(len(users)))
                    one = found.setdefault(combination, empty)
                    metrics = held_out_metrics(users.only(unseen), own, trained.backbone.title_vectors())
                    one.vectors[unseen], one.ndcg[unseen] = own, metrics.ndcg
        return found

    def _train_pack(
        self,
        combinations: list[Combination],
        backbone: SequentialBackbone,
        users: HeldOutUsers,
        half: Half,
    ) -> FairnessMethod:
        """What `mtrec train eliminators` makes of a pack, its weights averaged to the last step."""
        lake, optim, length = self.lake, self.config.optim, self.source.config.model.history
        sequences = self.source.config.sequences
        plan = make_sequence_plan(lake, sequences, length, half, buckets=self.buckets, map_over=map_here)
        schedule = plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, self.config.seed)
        fraction = plan.validation_fraction_of(optim.validation_users)
        data = EliminatorData(
            backbone=backbone,
            attributes=self.source.attributes,
            value_counts=plan.value_counts,
            schedule=schedule,
            users=users,
            prefixes=read_prefixes(lake, sequences, length, self.buckets, fraction, PREFIXES_PER_USER, half),
        )
        trainer = EliminatorTrainer(self.config, combinations, data)
        trainer.run(sequence_batches(lake, plan, schedule, 0, 1, stream=self.cache.crops))
        return trainer.averaged

    def _measure(
        self, backbone: SequentialBackbone, users: HeldOutUsers, combinations: dict[Combination, CombinationVectors]
    ) -> dict[str, float]:
        attacks = {
            (combination_name(combination), attribute): self._attack(one.vectors, users, attribute)
            for combination, one in combinations.items()
            for attribute in combination
        }
        ndcg, base = np.stack([one.ndcg for one in combinations.values()]), _of_backbone(backbone, users).ndcg
        figures = _accuracy(ndcg, base, poisson_weights(users.keys, NUM_BOOTSTRAP)) | _leakage(list(attacks.values()))
        for (name, attribute), halves in attacks.items():
            figures[f"balanced_accuracy/{name}/{attribute}"] = mean(half.balanced_accuracy.value for half in halves)
            figures[f"null_high/{name}/{attribute}"] = mean(half.null[1] for half in halves)
            figures[f"auc/{name}/{attribute}"] = mean(half.auc.value for half in halves)
        return figures

    def _attack(self, vectors: Tensor, users: HeldOutUsers, attribute: str) -> list[AuditResult]:
        """Leakage of each half; UserError where it has too few users."""
        column, size = list(self.source.attributes).index(attribute), len(self.source.attributes[attribute])
        settings = AuditSettings(num_permutations=self.spec["num_permutations"], num_bootstrap=NUM_BOOTSTRAP)
        found = []
        for half in HALVES:
            unseen = ~in_split(users.keys, self.source.config.sequences, half)
            labels = AttributeLabels(attribute, users.attribute_index[unseen, column], size)
            try:
                found.append(audit_vectors(vectors[unseen].numpy(), labels, users.keys[unseen], settings))
            except ValueError as error:
                raise UserError(f"half of the train split: {error}; {self._more_users()}") from error
        return found

    def _more_users(self) -> str:
        """What would give attackers more users."""
        if self.fraction < 1:
            return f"raise base.optim.validation_users = {self.config.optim.validation_users}"
        if len(self.buckets) < self.lake.manifest.num_buckets:
            return f"read more than buckets = {len(self.buckets)}"
        return "the lake has too few users for a search"


def _of_backbone(backbone: SequentialBackbone, users: HeldOutUsers) -> CombinationVectors:
    vectors = vectors_in_chunks(backbone.user_vectors, torch.from_numpy(users.history))
    return CombinationVectors(vectors, held_out_metrics(users, vectors, backbone.title_vectors()).ndcg)


def _accuracy(ndcg: np.ndarray, base: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Mean NDCG@10 of (K, U) users and its ratio to the backbone's (U,), paired by user."""
    total = weights.sum(axis=1)
    now, before = weights @ ndcg.mean(axis=0) / total, weights @ base / total  # (R,)
    backbone = {f"ndcg@10/{NONE}": float(before[0])}
    return (
        backbone
        | _with_bounds("ndcg@10/mean", *interval(now))
        | _with_bounds("ndcg_ratio/mean", *interval(now / before))
    )


def _leakage(attacks: list[list[AuditResult]]) -> dict[str, float]:
    """Mean and worst leakage over attributes; 0 where attackers do worse than chance.

    Bounds of a mean are the mean bounds, which errs on the wide side.
    """
    halves = np.array([[np.array(half.balanced_accuracy) - half.chance for half in of] for of in attacks])  # (n, 2, 3)
    each = np.maximum(halves.mean(axis=1), 0.0)
    worst = each[each[:, 0].argmax()]
    return _with_bounds("leakage/mean", *each.mean(axis=0)) | _with_bounds("leakage/worst", *worst)


def _with_bounds(name: str, value: float, low: float, high: float) -> dict[str, float]:
    return {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}

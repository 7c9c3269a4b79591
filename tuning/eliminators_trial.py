"""One configuration of eliminators, or of what they are compared with, cross-fitted on the users open to training.

Users whose attribute values an audit may attack are never looked at. The others are cut in two halves by the same hash;
each half is attacked through eliminators that were trained on the other one, by attackers of its own, so that every
open user is attacked once and none through what had seen its values. Figures are means over the halves. Attackers that
learn from both halves see what two eliminators left differently cancel out: on a strongly planted lake they read an
AUC of 0.46 where each half by itself gave 0.59, and a fresh audit 0.60.
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
from mtrec_ray.evaluation.audit_result import AuditResult
from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.intervals import interval
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
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.tuning.data import TrialCache, first_buckets, map_here
from mtrec_ray.tuning.trial import TrialSpec

NUM_BOOTSTRAP = 200
Half = Literal["train_lower", "train_upper"]
HALVES: tuple[Half, ...] = ("train_lower", "train_upper")
METRICS = ("leakage/mean", "leakage/worst", "ndcg@10/mean", "ndcg_share/mean")
"""`leakage`: the best attacker's balanced accuracy above chance, over the combinations' own attributes;
`ndcg_share`: NDCG@10 over the backbone's."""


@dataclass(frozen=True)
class Represented:
    """Users under one combination."""

    vectors: Tensor
    """(U, d)"""
    ndcg: np.ndarray
    """(U,) NDCG@10 of their validation event."""

    @staticmethod
    def empty(num_users: int, width: int) -> "Represented":
        return Represented(torch.empty(num_users, width), np.empty(num_users))


class EliminatorsTrial:
    """A pack of combinations under one configuration. It looks once, at its end: two goals cannot stop it early."""

    num_validations = 1

    def __init__(self, plan: TrialSpec, cache: TrialCache) -> None:
        """`plan` holds `config`, and of the search `buckets` and `num_permutations`."""
        self.plan, self.validations_done = plan, 0
        self.config = EliminatorsConfig.model_validate(plan["config"])
        self.source = BackboneRecord.load(self.config.backbone)
        self.lake, self.cache = self.source.open_lake(), cache
        self.buckets = first_buckets(self.lake, plan["buckets"])
        expected = self.lake.manifest.counts["users"] * len(self.buckets) / self.lake.manifest.num_buckets
        self.fraction = min(1.0, self.config.optim.validation_users / max(1.0, expected))
        prepare_process(self.config.runner.cpus_per_worker)

    def advance(self) -> dict[str, float]:
        """Train to the end, then attack; returns `METRICS` with bounds, and each combination's own figures."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        figures = self._measure(backbone, users, self._train(backbone, users))
        self.validations_done = 1
        return figures

    def backbone_figures(self) -> dict[str, float]:
        """The same figures of the backbone, which hides nothing, under every combination."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        chosen = [combination for pack in self._record().packs.values() for combination in pack]
        return self._measure(backbone, users, dict.fromkeys(chosen, _as_is(backbone, users)))

    def _measure(
        self, backbone: SequentialBackbone, users: HeldOutUsers, represented: dict[Combination, Represented]
    ) -> dict[str, float]:
        read = {
            (combination, attribute): self._attack(one.vectors, users, attribute)
            for combination, one in represented.items()
            for attribute in combination
        }
        ndcgs, base = np.stack([one.ndcg for one in represented.values()]), _as_is(backbone, users).ndcg
        figures = _accuracy(ndcgs, base, poisson_weights(users.keys, NUM_BOOTSTRAP)) | _leakage(list(read.values()))
        for (combination, attribute), halves in read.items():
            name = f"{combination_name(combination)}/{attribute}"
            figures[f"balanced_accuracy/{name}"] = mean(half.balanced_accuracy.value for half in halves)
            figures[f"null_high/{name}"] = mean(half.null[1] for half in halves)
            figures[f"auc/{name}"] = mean(half.auc.value for half in halves)
        return figures

    def save(self, folder: Path) -> None:
        """Nothing is left to do after the only look."""
        (folder / "progress.json").write_text(json.dumps({"validations_done": self.validations_done}))

    def load(self, folder: Path) -> None:
        self.validations_done = json.loads((folder / "progress.json").read_text())["validations_done"]

    def _train_split_users(self) -> HeldOutUsers:
        """Users whom no audit attacks, with their validation event."""
        sequences, length = self.source.config.sequences, self.source.config.model.history
        users = read_held_out(self.lake, sequences, VALIDATION_EVENT, length, self.buckets, self.fraction)
        return users.only(~users.audit_split)

    def _train(self, backbone: SequentialBackbone, users: HeldOutUsers) -> dict[Combination, Represented]:
        """All users under each combination, by eliminators that were trained on the other half."""
        history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
        record, found = self._record(), {}
        for half in HALVES:
            unseen = ~in_split(users.keys, self.source.config.sequences, half)
            for pack, combinations in record.packs.items():
                trained = self._train_pack(record, pack, backbone, users.only(~unseen), half)
                vectors = vectors_in_chunks(trained.user_vectors, history[unseen], values[unseen])  # (K, U', d)
                for combination, own in zip(combinations, vectors, strict=True):
                    one = found.setdefault(combination, Represented.empty(len(users), own.shape[1]))
                    metrics = held_out_metrics(users.only(unseen), own, trained.backbone.title_vectors())
                    one.vectors[unseen], one.ndcg[unseen] = own, metrics.ndcg
        return found

    def _train_pack(
        self,
        record: EliminatorsRecord,
        pack: str,
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
            attributes=record.attributes,
            value_counts=plan.value_counts,
            schedule=schedule,
            users=users,
            prefixes=read_prefixes(lake, sequences, length, self.buckets, fraction, PREFIXES_PER_USER, half),
        )
        trainer = EliminatorTrainer(self.config, record.packs[pack], data)
        trainer.run(sequence_batches(lake, plan, schedule, 0, 1, stream=self.cache.crops))
        return trainer.averaged

    def _record(self) -> EliminatorsRecord:
        return EliminatorsRecord(
            status="training",
            config=self.config,
            lake_hash=self.source.lake_hash,
            backbone_hash="",
            attributes=self.source.attributes,
            packs=make_packs(self.config, self.source.attributes),
        )

    def _attack(self, vectors: Tensor, users: HeldOutUsers, attribute: str) -> list[AuditResult]:
        """What each half shows by itself; UserError where it has too few users."""
        place, size = list(self.source.attributes).index(attribute), len(self.source.attributes[attribute])
        settings = AuditSettings(num_permutations=self.plan["num_permutations"], num_bootstrap=NUM_BOOTSTRAP)
        found = []
        for half in HALVES:
            unseen = ~in_split(users.keys, self.source.config.sequences, half)
            labels = AttributeLabels(attribute, users.attribute_index[unseen, place], size)
            try:
                found.append(audit_vectors(vectors[unseen].numpy(), labels, users.keys[unseen], settings))
            except ValueError as error:
                raise UserError(f"half of the users open to training: {error}; {self._more_users()}") from error
        return found

    def _more_users(self) -> str:
        """What would give attackers more users."""
        if self.fraction < 1:
            return f"raise base.optim.validation_users = {self.config.optim.validation_users}"
        if len(self.buckets) < self.lake.manifest.num_buckets:
            return f"read more than buckets = {len(self.buckets)}"
        return "the lake has too few users for a search"


def _as_is(backbone: SequentialBackbone, users: HeldOutUsers) -> Represented:
    vectors = vectors_in_chunks(backbone.user_vectors, torch.from_numpy(users.history))
    return Represented(vectors, held_out_metrics(users, vectors, backbone.title_vectors()).ndcg)


def _accuracy(ndcgs: np.ndarray, base: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """NDCG@10 of (K, U) users under each combination and its share of the backbone's (U,), paired by user."""
    total = weights.sum(axis=1)
    now, before = weights @ ndcgs.mean(axis=0) / total, weights @ base / total  # (R,)
    found = {f"ndcg@10/{NONE}": float(before[0])}
    for key, replicates in (("ndcg@10/mean", now), ("ndcg_share/mean", now / before)):
        value, low, high = interval(replicates)
        found |= {key: value, f"{key}_low": low, f"{key}_high": high}
    return found


def _leakage(read: list[list[AuditResult]]) -> dict[str, float]:
    """Mean and worst leakage above chance, over attributes; none where attackers do worse than chance.

    Bounds of a mean are the mean bounds, which errs on the wide side.
    """
    halves = np.array([[np.array(half.balanced_accuracy) - half.chance for half in of] for of in read])  # (n, 2, 3)
    bounds = np.maximum(halves.mean(axis=1), 0.0)
    worst = bounds[bounds[:, 0].argmax()]
    found = {}
    for key, (value, low, high) in (("leakage/mean", bounds.mean(axis=0)), ("leakage/worst", worst)):
        found |= {key: float(value), f"{key}_low": float(low), f"{key}_high": float(high)}
    return found

"""One configuration of eliminators, or of a baseline, cross-fitted on the train split.

Each half of the train split is attacked through eliminators trained on the other half, and figures are means over both:
for attackers of both, what two eliminators leave with opposite signs cancels out (AUC 0.46, each half gave 0.59).
Legend: K combinations, U users, d width, R bootstrap replicates.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings, audit_vectors
from mtrec_ray.evaluation.audit_metrics import AuditResult
from mtrec_ray.evaluation.intervals import Interval, interval, poisson_weights
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.process import prepare_process
from mtrec_ray.streams.crops import make_sequence_plan, read_prefixes, sequence_batches
from mtrec_ray.streams.sequences import (
    VALIDATION_EVENT,
    HeldOutUsers,
    UserSplit,
    in_split,
    read_held_out,
)
from mtrec_ray.trainers.adversarial import PREFIXES_PER_USER, EliminatorData
from mtrec_ray.trainers.backbone import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import make_packs
from mtrec_ray.tuning.data import Figures, TrialCache, first_buckets
from mtrec_ray.workers import Workers

NUM_BOOTSTRAP = 200
HALVES: tuple[UserSplit, ...] = ("train_lower", "train_upper")


class EliminatorsTrial:
    """Trains all combinations under one configuration and validates once, at its end."""

    num_validations = 1

    def __init__(
        self, config: EliminatorsConfig, cache: TrialCache, _: Workers, *, buckets: int | None, num_permutations: int
    ) -> None:
        self.config, self.cache, self.num_permutations, self.validations_done = config, cache, num_permutations, 0
        self.source = BackboneRecord.load(self.config.backbone)
        self.sequences, self.length = self.source.config.sequences, self.source.config.model.history
        self.packs = list(make_packs(self.config, self.source.attributes).values())
        self.combinations = [combination for pack in self.packs for combination in pack]
        self.lake = self.source.open_lake()
        self.buckets = first_buckets(self.lake, buckets)
        expected = self.lake.manifest.counts["users"] * len(self.buckets) / self.lake.manifest.num_buckets
        self.fraction = min(1.0, self.config.optim.validation_users / max(1.0, expected))
        prepare_process(self.config.runner.cpus_per_worker)

    def advance(self) -> Figures:
        """Train to the end, then attack; returns leakage, accuracy, and figures by combination."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        figures = self._measure(backbone, users, *self._train(backbone, users))
        self.validations_done = 1
        return figures

    def backbone_figures(self) -> Figures:
        """The same figures of the backbone, which hides nothing, under every combination."""
        backbone, users = load_backbone(self.source), self._train_split_users()
        vectors, ndcg = _of_backbone(backbone, users)
        count = len(self.combinations)
        return self._measure(backbone, users, vectors.expand(count, -1, -1), np.tile(ndcg, (count, 1)))

    def save(self, folder: Path) -> None:
        (folder / "ended").touch()

    def load(self, folder: Path) -> None:
        self.validations_done = int((folder / "ended").exists())

    def _train_split_users(self) -> HeldOutUsers:
        users = read_held_out(self.lake, self.sequences, VALIDATION_EVENT, self.length, self.buckets, self.fraction)
        return users.only(~users.audit_split)

    def _train(self, backbone: SequentialBackbone, users: HeldOutUsers) -> tuple[Tensor, np.ndarray]:
        """(K, U, d) vectors and (K, U) NDCG@10, by eliminators trained on the other half."""
        history, values = torch.from_numpy(users.history), torch.from_numpy(users.attribute_index)
        shape = len(self.combinations), len(users)
        vectors, ndcg = torch.empty(*shape, self.source.config.model.width), np.empty(shape)
        for half in HALVES:
            first, unseen = 0, ~in_split(users.keys, self.sequences, half)
            for pack in self.packs:
                trained = self._train_pack(pack, backbone, users.only(~unseen), half)
                found = vectors_in_chunks(trained.user_vectors, history[unseen], values[unseen])  # (k, U', d)
                titles = trained.backbone.title_vectors()
                for row, own in enumerate(found, first):
                    vectors[row][unseen] = own
                    ndcg[row, unseen] = held_out_metrics(users.only(unseen), own, titles).ndcg
                first += len(pack)
        return vectors, ndcg

    def _train_pack(
        self, pack: list[Combination], backbone: SequentialBackbone, users: HeldOutUsers, half: UserSplit
    ) -> FairnessMethod:
        """What `mtrec train eliminators` makes of a pack, its weights averaged to the last step."""
        lake, optim, buckets = self.lake, self.config.optim, self.buckets
        plan = make_sequence_plan(lake, self.sequences, self.length, half, buckets=buckets, reader=self.cache)
        schedule = plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, self.config.seed)
        fraction = plan.validation_fraction_of(optim.validation_users)
        data = EliminatorData(
            backbone=backbone,
            num_values={name: len(values) for name, values in self.source.attributes.items()},
            value_counts=plan.value_counts,
            schedule=schedule,
            users=users,
            prefixes=read_prefixes(lake, plan, buckets, fraction, PREFIXES_PER_USER),
        )
        trainer = EliminatorTrainer(self.config, pack, data)
        trainer.run(sequence_batches(lake, plan, schedule, 0, 1, reader=self.cache))
        return trainer.averaged

    def _measure(self, backbone: SequentialBackbone, users: HeldOutUsers, vectors: Tensor, ndcg: np.ndarray) -> Figures:
        """Figures of (K, U, d) vectors with (K, U) NDCG@10."""
        attacks = {
            (combination_name(combination), attribute): self._attack(own, users, attribute)
            for combination, own in zip(self.combinations, vectors, strict=True)
            for attribute in combination
        }
        base, weights = _of_backbone(backbone, users)[1], poisson_weights(users.keys, NUM_BOOTSTRAP)
        total = weights.sum(axis=1)
        now, before = weights @ ndcg.mean(axis=0) / total, weights @ base / total  # (R,), paired by user
        figures = {f"ndcg@10/{NONE}": {"value": float(before[0])}, "ndcg@10/mean": interval(now)._asdict()}
        figures |= {"ndcg_ratio/mean": interval(now / before)._asdict()} | _leakage(list(attacks.values()))
        for (name, attribute), halves in attacks.items():
            of = f"{name}/{attribute}"
            plain = {
                f"balanced_accuracy/{of}": [half.balanced_accuracy.value for half in halves],
                f"null_high/{of}": [half.balanced_accuracy.null_high for half in halves],
                f"auc/{of}": [half.auc.value for half in halves],
            }
            figures |= {key: {"value": float(np.mean(values))} for key, values in plain.items()}
        return figures

    def _attack(self, vectors: Tensor, users: HeldOutUsers, attribute: str) -> list[AuditResult]:
        """Leakage of each half; UserError where it has too few users."""
        column, size = list(self.source.attributes).index(attribute), len(self.source.attributes[attribute])
        settings = AuditSettings(num_permutations=self.num_permutations, num_bootstrap=NUM_BOOTSTRAP)
        found = []
        for half in HALVES:
            unseen = ~in_split(users.keys, self.sequences, half)
            labels = AttributeLabels(attribute, users.attribute_index[unseen, column], size)
            try:
                found.append(audit_vectors(vectors[unseen].numpy(), labels, users.keys[unseen], settings))
            except UserError as error:
                fix = "raise base.optim.validation_users or buckets, unless the lake has no more users"
                raise UserError(f"half of the train split: {error}; {fix}") from error
        return found


def _of_backbone(backbone: SequentialBackbone, users: HeldOutUsers) -> tuple[Tensor, np.ndarray]:
    """(U, d) vectors and (U,) NDCG@10."""
    vectors = vectors_in_chunks(backbone.user_vectors, torch.from_numpy(users.history))
    return vectors, held_out_metrics(users, vectors, backbone.title_vectors()).ndcg


def _leakage(attacks: list[list[AuditResult]]) -> Figures:
    """Mean and worst balanced accuracy above chance over attributes; 0 where it is below.

    Bounds of a mean are the mean bounds, which errs on the wide side.
    """
    halves = np.array(
        [[np.subtract(found[:3], found.chance) for found in (half.balanced_accuracy for half in of)] for of in attacks]
    )  # (n, 2, 3)
    each = np.maximum(halves.mean(axis=1), 0.0)
    rows = {"leakage/mean": each.mean(axis=0), "leakage/worst": each[each[:, 0].argmax()]}
    return {name: Interval(*row.tolist())._asdict() for name, row in rows.items()}

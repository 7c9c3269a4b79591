"""The folder of a run of eliminators.

runs/NAME/run.json                                settings, backbone, combinations, packs, figures
runs/NAME/plan.json                               the plan of its sequence streams
runs/NAME/packs/PACK/eliminators.safetensors      the kept weights of the pack's combinations, with their figures
runs/NAME/packs/PACK/done.json                    the pack is finished
runs/NAME/packs/PACK/metrics.jsonl, tensorboard/  figures over its steps
runs/NAME/packs/PACK/checkpoint_*/                Ray Train's checkpoints
"""

import logging
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any, ClassVar, Literal

import torch
from rich.console import RenderableType
from rich.table import Column, Table

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join
from mtrec_ray.identity import Identity
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan, read_prefixes, sequence_batches
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import PROBED_FRACTION, VALIDATION_EVENT, UserSplit, read_held_out
from mtrec_ray.trainers.adversarial import PREFIXES_PER_USER, WEIGHTS, EliminatorData, is_written, make_method
from mtrec_ray.trainers.eliminators import EliminatorTrainer
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.pfrec import PFRecTrainer
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.record import RUN, Record, Training, load_plan
from mtrec_ray.training.weights import load_weights, read_weights
from mtrec_ray.workers import Workers

logger = logging.getLogger(__name__)

MIN_AUDIT_USERS = 25  # users with a known value that five folds of attackers need
FIGURES = {
    "ndcg": ("NDCG@10, validation event", ".4f"),
    "full_ndcg": ("NDCG@10, whole catalogue", ".4f"),
    "ndcg_floor": ("NDCG floor", ".4f"),
    "strength": ("transport strength", "g"),
    "strength_confirmed": ("strength confirmed by cross-validation", "g"),
    "probe_auc": ("lowest probe AUC, users held out", ".3f"),
    "step": ("of step", ".0f"),
    "written": ("values written", ".0f"),
}
"""Figures of each combination, where its method has them: column heading, format."""


class EliminatorsRecord(Record):
    """The content of an eliminators' run's `run.json`."""

    kind: Literal["eliminators"] = "eliminators"
    config: EliminatorsConfig
    backbone_hash: str  # SHA-256 of the backbone's weights
    attributes: dict[str, list[str]]
    packs: dict[str, list[Combination]]  # name of each job -> the combinations it trains

    figures_of: ClassVar[str] = "combination"

    @property
    def combinations(self) -> list[Combination]:
        """The combinations of all packs."""
        return [combination for pack in self.packs.values() for combination in pack]

    def source(self) -> BackboneRecord:
        """The backbone's record."""
        uri = self.config.backbone
        if not exists(join(uri, RUN)):
            fix = "if it was moved, start `mtrec train eliminators` of this run again with its new path as --backbone"
            raise UserError(f"backbone {uri!r} of run {self.uri!r} is missing: {fix}")
        return BackboneRecord.load(uri)

    def identity(self) -> Identity:
        """What decides this run's figures."""
        base = super().identity()
        return Identity(base.settings, base.inputs | {"backbone": self.backbone_hash})

    def folder(self, pack: str = "") -> str:
        return join(self.uri, "packs", pack)

    def weights_uris(self) -> dict[str, str]:
        return {pack: join(self.folder(pack), WEIGHTS) for pack in self.packs}

    def done_uri(self, pack: str) -> str:
        """File that marks a finished pack."""
        return join(self.folder(pack), "done.json")

    def make_plan(self, progress: ProgressCallback | None) -> SequencePlan:
        backbone = self.source()
        config, lake = backbone.config, self.open_lake(backbone.config.lake)
        split: UserSplit = "unprobed" if self.config.method == "pfrec" else "train"
        plan = make_sequence_plan(lake, config.sequences, config.model.history, split, progress, reader=self.reader)
        self.check_values(plan)
        plan.validation_fraction_of(self.config.optim.validation_users)
        return plan

    def check_values(self, plan: SequencePlan) -> None:
        """Attributes to hide must vary within the train split, and should be auditable."""
        held_out, counts = plan.sequences.audit_fraction, dict(zip(self.attributes, plan.value_counts, strict=True))
        for name in {name for combination in self.combinations for name in combination}:
            seen = [value for value, count in zip(self.attributes[name], counts[name], strict=True) if count]
            if len(seen) < 2:
                found = f"only the value {seen[0]!r}" if seen else "no known value"
                among = f"among the {plan.users} users to train on"
                raise UserError(f"attribute {name!r} has {found} {among}: leave it out of combinations")
            trained = (1 - held_out) * (1 - PROBED_FRACTION if plan.split == "unprobed" else 1)
            per_trained = held_out / trained  # users of the audit split, expected for each that is trained on
            audited, rarer = per_trained * sum(counts[name]), per_trained * (sum(counts[name]) - max(counts[name]))
            if audited < MIN_AUDIT_USERS:
                logger.warning(
                    f"attribute {name}: about {audited:.0f} users of the audit split have a known value; an audit may "
                    "refuse so few: leave it out of combinations, or raise the backbone's sequences.audit_fraction"
                )
            elif rarer < 1:
                logger.warning(
                    f"attribute {name}: about {rarer:.1f} users of the audit split have another value than most; an "
                    "audit may refuse it: leave it out of combinations"
                )

    def schedule(self, plan: SequencePlan) -> Schedule:
        optim = self.config.optim
        return plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, self.config.seed)

    def training(self, workers: Workers, pack: str = "") -> Training:
        plan, data = load_plan(self.uri, SequencePlan), self.data(workers)
        lake, trainer_of = self.open_lake(self.source().config.lake), EliminatorTrainer
        if self.config.method == "pfrec":
            trainer_of = PFRecTrainer
        trainer = trainer_of(self.config, self.packs[pack], data, workers)
        arguments = lake, plan, data.schedule, workers.rank, workers.size
        return trainer, partial(sequence_batches, *arguments, reader=self.reader)

    def data(self, workers: Workers, recent: int | None = None) -> EliminatorData:
        """A worker's inputs; prefixes as of `read_prefixes`."""
        source, plan = self.source(), load_plan(self.uri, SequencePlan)
        lake = self.open_lake(source.config.lake)
        of_prefixes = plan.model_copy(update={"split": "probed"}) if self.config.method == "pfrec" else plan
        buckets = range(workers.rank, lake.manifest.num_buckets, workers.size)
        fraction = plan.validation_fraction_of(self.config.optim.validation_users)
        users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
        return EliminatorData(
            backbone=load_backbone(source, self.backbone_hash),
            num_values={name: len(values) for name, values in self.attributes.items()},
            value_counts=plan.value_counts,
            schedule=self.schedule(plan),
            users=users.only(~users.audit_split),
            prefixes=read_prefixes(lake, of_prefixes, buckets, fraction, PREFIXES_PER_USER, recent),
        )

    def trained_figures(self) -> dict[str, dict[str, Any]]:
        return {name: found for of_pack in super().trained_figures().values() for name, found in of_pack.items()}

    def tables(self) -> list[RenderableType]:
        """A row for each combination."""
        figures = {name: self.figures.get(name, {}) for name in (NONE, *map(combination_name, self.combinations))}
        table = figures_table(f"Run {self.uri}: {self.config.method}, jobs: {len(self.packs)}", figures)
        return [table]

    def written_values(self) -> list[tuple[str, str, float, float]]:
        """Where a probe reads a hidden attribute better than from the backbone's vectors.

        Combination, attribute, the probe's AUC and its AUC on the backbone's vectors.
        """
        named = [(combination_name(of), name) for of in self.combinations for name in of]
        found = [(name, of, f"auc/{of}") for name, of in named if is_written(self.figures.get(name, {}), of)]
        return [(name, of, self.figures[name][auc], self.figures[NONE][auc]) for name, of, auc in found]


def figures_table(title: str, figures: Mapping[str, Mapping[str, float]]) -> Table:
    """Figures by combination; `!` marks where a probe reads more than from the backbone."""
    known = list(dict.fromkeys(chain.from_iterable(figures.values())))
    columns = {name: of for name, of in FIGURES.items() if name in known}
    columns |= {n: (f"probe AUC of {n.removeprefix('auc/')}", ".3f") for n in sorted(known) if n.startswith("auc/")}
    table = Table(Column("ignoring", overflow="fold"), *(heading for heading, _ in columns.values()), title=title)
    for combination, of in figures.items():
        above = [is_written(of, name.removeprefix("auc/")) for name in columns]
        cells = [format(of[name], form) if name in of else "" for name, (_, form) in columns.items()]
        table.add_row(combination, *(f"{cell} !" if mark else cell for cell, mark in zip(cells, above, strict=True)))
    return table


def load_methods(record: EliminatorsRecord, backbone: SequentialBackbone) -> list[FairnessMethod]:
    """All trained combinations, ready for inference, in one stacked pack where possible."""
    parts = [load_weights(uri, read_weights(uri)) for uri in record.weights_uris().values()]
    if record.config.method == "fine_tuning":
        packs = [(record.packs[name], tensors) for name, tensors in zip(record.packs, parts, strict=True)]
    else:
        merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        packs = [(record.combinations, merged)]
    methods, num_values = [], {name: len(values) for name, values in record.attributes.items()}
    for chosen, tensors in packs:
        method = make_method(record.config, num_values, backbone, chosen)
        if tensors.keys() != method.own_parameters().keys():
            odd = ", ".join(sorted(tensors.keys() ^ method.own_parameters().keys()))
            raise UserError(f"run {record.uri!r} was written by another version (weights {odd}): train again")
        method.load_state_dict(tensors, strict=False)  # the backbone is there
        methods.append(method.eval().requires_grad_(False))
    return methods

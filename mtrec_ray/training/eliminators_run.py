"""The folder of a run of eliminators.

runs/NAME/run.json                                settings, backbone, combinations, packs, figures
runs/NAME/plan.json                               the plan of its sequence streams
runs/NAME/packs/PACK/eliminators.safetensors      the kept weights of the pack's combinations, with their figures
runs/NAME/packs/PACK/done.json                    the pack is finished
runs/NAME/packs/PACK/metrics.jsonl, tensorboard/  figures over its steps
runs/NAME/packs/PACK/checkpoint_*/                Ray Train's checkpoints
"""

import hashlib
from typing import ClassVar, Literal

import torch
from rich.console import RenderableType
from rich.table import Column, Table
from torch import Tensor

from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_file
from mtrec_ray.identity import Identity
from mtrec_ray.models.fairness_methods import FairnessMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.trainers.eliminators import WEIGHTS, make_method
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.record import RUN, Record
from mtrec_ray.training.weights import parse_weights, read_weights

FIGURES = {
    "ndcg": ("NDCG@10, validation event", ".4f"),
    "ndcg_floor": ("NDCG floor", ".4f"),
    "strength": ("transport strength", "g"),
    "strength_confirmed": ("strength confirmed by cross-validation", "g"),
    "step": ("of step", ".0f"),
}
"""Figures of each combination, of strengths where there is a transport: column heading, format."""


class EliminatorsRecord(Record):
    """The content of `run.json`."""

    kind: Literal["eliminators"] = "eliminators"
    config: EliminatorsConfig
    backbone_hash: str
    """SHA-256 of the backbone's weights."""
    attributes: dict[str, list[str]]
    packs: dict[str, list[Combination]]
    """Name of each job -> the combinations it trains."""
    steps_per_pack: int = 0

    figures_of: ClassVar[str] = "combination"

    @property
    def combinations(self) -> list[Combination]:
        """All that the run trains."""
        return [combination for pack in self.packs.values() for combination in pack]

    def source(self) -> BackboneRecord:
        """The backbone's record."""
        uri = self.config.backbone
        if not exists(join(uri, RUN)):
            raise UserError(
                f"backbone {uri!r} of run {self.uri!r} is missing: if it was moved, start `mtrec train eliminators` of "
                "this run again with its new place as --backbone"
            )
        return BackboneRecord.load(uri)

    def identity(self) -> Identity:
        """What decides this run's figures."""
        base = super().identity()
        return Identity(base.settings, base.inputs | {"backbone": self.backbone_hash})

    def tables(self) -> list[RenderableType]:
        """A row for each combination."""
        title = f"Run {self.uri}: {self.config.method}, jobs: {len(self.packs)}"
        table = Table(Column("ignoring", overflow="fold"), *(heading for heading, _ in FIGURES.values()), title=title)
        for name in (NONE, *map(combination_name, self.combinations)):
            found = [(self.figures.get(name, {}).get(figure), form) for figure, (_, form) in FIGURES.items()]
            table.add_row(name, *("" if value is None else format(value, form) for value, form in found))
        return [table]


def pack_uri(record: EliminatorsRecord, pack: str) -> str:
    return join(record.uri, "packs", pack)


def weights_uri(record: EliminatorsRecord, pack: str) -> str:
    return join(pack_uri(record, pack), WEIGHTS)


def load_pack(record: EliminatorsRecord, pack: str) -> dict[str, Tensor]:
    """The kept weights of a pack."""
    missing = f"run {record.uri!r}: pack {pack} is not trained yet: start the same command again"
    content = read_weights(weights_uri(record, pack), missing)
    return parse_weights(content, f"run {record.uri!r}: the weights of pack {pack} are damaged")


def eliminators_hash(record: EliminatorsRecord) -> str:
    """SHA-256 over the backbone's and all packs' weights: what an audit is of."""
    digest = hashlib.sha256(record.backbone_hash.encode())
    for pack in record.packs:
        digest.update(read_file(weights_uri(record, pack)))
    return digest.hexdigest()


def is_done(record: EliminatorsRecord, pack: str) -> bool:
    return exists(join(pack_uri(record, pack), "done.json"))


def load_methods(record: EliminatorsRecord, backbone: SequentialBackbone) -> list[FairnessMethod]:
    """All trained combinations, ready for inference, in one stacked pack where possible."""
    parts = [load_pack(record, pack) for pack in record.packs]
    if record.config.method == "fine_tuning":
        packs = [(record.packs[name], tensors) for name, tensors in zip(record.packs, parts, strict=True)]
    else:
        merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        packs = [(record.combinations, merged)]
    methods = []
    for chosen, tensors in packs:
        method = make_method(record.config, record.attributes, backbone, chosen)
        if tensors.keys() != method.own_parameters().keys():
            odd = ", ".join(sorted(tensors.keys() ^ method.own_parameters().keys()))
            raise UserError(f"run {record.uri!r} was written by another version (weights {odd}): train again")
        method.load_state_dict(tensors, strict=False)  # the backbone is there
        methods.append(method.eval().requires_grad_(False))
    return methods

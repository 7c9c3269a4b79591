"""The folder of a run of eliminators.

runs/NAME/run.json                             config, backbone, combinations, packs, figures
runs/NAME/plan.json                            what its window streams count on
runs/NAME/packs/PACK/eliminators.safetensors   the kept weights of the pack's combinations, with their figures
runs/NAME/packs/PACK/done.json                 the pack is finished
runs/NAME/packs/PACK/checkpoint_*/             Ray Train's checkpoints
"""

import hashlib
from typing import Literal, Self

import safetensors.torch
import torch
from torch import Tensor

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_file
from mtrec_ray.models.eliminators import EliminatorConfig, StackedEliminators
from mtrec_ray.models.fairness_methods import EliminatorMethod, FairnessMethod, FilterMethod, FineTuningMethod
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.record import RUN, Record

WEIGHTS = "eliminators.safetensors"
COMBINATION_FIGURES = {
    "val/ndcg": ("NDCG@10, validation event", ".4f"),
    "val/ndcg_floor": ("its bar", ".4f"),
    "strength": ("map used", "g"),
    "strength_confirmed": ("confirmed by other users", "g"),
    "step": ("of step", ".0f"),
}
"""Figures of each combination, those of shares where there is a map: heading in tables, format."""


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

    @property
    def combinations(self) -> list[Combination]:
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

    def check_same(self, new: Self) -> None:
        super().check_same(new)
        self._check_state(new, "backbone", self.backbone_hash, new.backbone_hash)


def make_method(record: EliminatorsRecord, backbone: SequentialBackbone, chosen: list[Combination]) -> FairnessMethod:
    """What trains some combinations, as it starts: drawn by the run's seed and each combination's name alone."""
    config, sizes = record.config, {name: len(values) for name, values in record.attributes.items()}
    if config.method == "fine_tuning":
        return FineTuningMethod(backbone, chosen[0])
    if config.method == "filter":
        filtered = FilterMethod(backbone, {name: sizes[name] for (name,) in chosen})
        filtered.init_weights(config.seed)
        return filtered
    shape = EliminatorConfig(**config.shape.model_dump())
    pack = StackedEliminators(shape, sizes, chosen, width=backbone.config.width, num_layers=backbone.config.num_layers)
    pack.init_weights(config.seed)
    return EliminatorMethod(backbone, pack)


def pack_uri(record: EliminatorsRecord, pack: str) -> str:
    return join(record.uri, "packs", pack)


def weights_uri(record: EliminatorsRecord, pack: str) -> str:
    return join(pack_uri(record, pack), WEIGHTS)


def load_pack(record: EliminatorsRecord, pack: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(read_file(weights_uri(record, pack)))
    except FileNotFoundError as error:
        raise UserError(f"run {record.uri!r}: pack {pack} is not trained yet: start the same command again") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"run {record.uri!r}: the weights of pack {pack} are damaged: {error}") from error


def weights_hash(record: EliminatorsRecord) -> str:
    """SHA-256 over the backbone's and all packs' weights: what an audit is of."""
    digest = hashlib.sha256(record.backbone_hash.encode())
    for pack in record.packs:
        digest.update(read_file(weights_uri(record, pack)))
    return digest.hexdigest()


def is_done(record: EliminatorsRecord, pack: str) -> bool:
    return exists(join(pack_uri(record, pack), "done.json"))


def load_methods(record: EliminatorsRecord, backbone: SequentialBackbone) -> list[FairnessMethod]:
    """All trained combinations, ready for inference: packs of one kind merged into one where they can be stacked."""
    parts = [load_pack(record, pack) for pack in record.packs]
    if record.config.method == "fine_tuning":
        packs = [(record.packs[name], tensors) for name, tensors in zip(record.packs, parts, strict=True)]
    else:
        merged = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        packs = [(record.combinations, merged)]
    methods = []
    for chosen, tensors in packs:
        method = make_method(record, backbone, chosen)
        if tensors.keys() != method.own_parameters().keys():
            odd = ", ".join(sorted(tensors.keys() ^ method.own_parameters().keys()))
            raise UserError(f"run {record.uri!r} was written by another version (weights {odd}): train again")
        method.load_state_dict(tensors, strict=False)  # the backbone is there
        methods.append(method.eval().requires_grad_(False))
    return methods


def figure_name(name: str, combination: Combination) -> str:
    return f"{name}/{combination_name(combination)}"

"""The folder of a backbone's run.

runs/NAME/run.json              config, lake hash, status, figures
runs/NAME/plan.json             what its window streams count on
runs/NAME/backbone.safetensors  the weights with the best validation figure so far
runs/NAME/checkpoint_*/         Ray Train's checkpoints
"""

import hashlib
from typing import Literal

import safetensors.torch

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file
from mtrec_ray.models.sequential import SequentialBackbone, SequentialConfig
from mtrec_ray.streams.crops import SequencePlan
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.training.record import Record

WEIGHTS = "backbone.safetensors"


class BackboneRecord(Record):
    """The content of `run.json`."""

    kind: Literal["backbone"] = "backbone"
    config: BackboneConfig
    attributes: dict[str, list[str]]
    """The lake's sensitive attributes with their values."""
    num_titles: int
    num_steps: int = 0
    """Most steps of the run, which early stopping may cut."""

    def sequential_config(self) -> SequentialConfig:
        return SequentialConfig(num_titles=self.num_titles, **self.config.model.model_dump())


def schedule_of(record: BackboneRecord, plan: SequencePlan) -> Schedule:
    """Every step of the run, if nothing stops it early."""
    optim = record.config.optim
    return plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, record.config.seed)


def backbone_hash(record: BackboneRecord) -> str:
    """SHA-256 of the weights as they are now."""
    return hashlib.sha256(_weights(record)).hexdigest()


def load_backbone(record: BackboneRecord, expected_hash: str = "") -> SequentialBackbone:
    """The best weights of a run, on the CPU, frozen and ready for inference.

    Args:
        record: of the run.
        expected_hash: `backbone_hash` of the weights that others were trained on; empty takes any.
    """
    content, model = _weights(record), SequentialBackbone(record.sequential_config())
    if expected_hash and hashlib.sha256(content).hexdigest() != expected_hash:
        raise UserError(f"backbone {record.uri!r} was trained again since: train its eliminators again")
    try:
        model.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"run {record.uri!r}: {WEIGHTS} is damaged: {error}") from error
    return model.eval().requires_grad_(False)


def _weights(record: BackboneRecord) -> bytes:
    try:
        return read_file(join(record.uri, WEIGHTS))
    except FileNotFoundError as error:
        raise UserError(f"run {record.uri!r} has no weights yet: finish its training first") from error

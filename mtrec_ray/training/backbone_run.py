"""The folder of a backbone's run.

runs/NAME/run.json              config, lake hash, status, figures
runs/NAME/plan.json             what its window streams count on
runs/NAME/backbone.safetensors  the weights with the best validation figure so far
runs/NAME/checkpoint_*/         Ray Train's checkpoints
"""

import hashlib
from typing import Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file, write_file, write_json
from mtrec_ray.models.sequential import SequentialBackbone, SequentialConfig
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.windows import WindowPlan
from mtrec_ray.training.backbone_config import BackboneConfig
from mtrec_ray.training.record import load_record

WEIGHTS = "backbone.safetensors"


class BackboneRecord(BaseModel):
    """The content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    kind: Literal["backbone"] = "backbone"
    status: Literal["training", "done"]
    config: BackboneConfig
    lake_hash: str
    attributes: dict[str, list[str]]
    """The lake's sensitive attributes with their values."""
    num_titles: int
    num_steps: int = 0
    """Most steps of the run, which early stopping may cut."""
    metrics: dict[str, float] = {}

    @property
    def uri(self) -> str:
        return join(self.config.runs, self.config.name)

    def sequential_config(self) -> SequentialConfig:
        return SequentialConfig(num_titles=self.num_titles, **self.config.model.model_dump())

    def save(self) -> None:
        write_json(join(self.uri, "run.json"), self.model_dump(mode="json"))

    @staticmethod
    def load(uri: str) -> "BackboneRecord":
        """Raises UserError where there is none, see `load_record`."""
        return load_record(uri, "backbone", BackboneRecord)


def save_window_plan(uri: str, plan: WindowPlan) -> None:
    write_file(join(uri, "plan.json"), plan.model_dump_json(indent=1).encode())


def load_window_plan(uri: str) -> WindowPlan:
    try:
        return WindowPlan.model_validate_json(read_file(join(uri, "plan.json")))
    except (FileNotFoundError, ValidationError) as error:
        raise UserError(f"run {uri!r}: plan.json is missing or damaged: remove the run and train it again") from error


def schedule_of(record: BackboneRecord, plan: WindowPlan) -> Schedule:
    """Every step of the run, if nothing stops it early."""
    optim = record.config.optim
    return plan.schedule(optim.epochs, optim.batch_windows, optim.lanes, record.config.seed)


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

"""The folder of a backbone's run.

runs/NAME/run.json                     settings, lake hash, status, figures
runs/NAME/plan.json                    the plan of its sequence streams
runs/NAME/backbone.safetensors         the weights with the best validation figures so far
runs/NAME/metrics.jsonl, tensorboard/  figures over its steps
runs/NAME/checkpoint_*/                Ray Train's checkpoints
"""

import hashlib
from typing import ClassVar, Literal

from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.errors import UserError
from mtrec_ray.files import join
from mtrec_ray.models.sequential import SequentialBackbone, SequentialConfig
from mtrec_ray.streams.crops import SequencePlan
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.trainers.backbone import WEIGHTS
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.training.record import Record
from mtrec_ray.training.weights import fill_module, read_weights


class BackboneRecord(Record):
    """The content of `run.json`."""

    kind: Literal["backbone"] = "backbone"
    config: BackboneConfig
    attributes: dict[str, list[str]]
    """The lake's sensitive attributes with their values."""
    num_titles: int
    num_steps: int = 0
    """Steps of the run, unless early stopping ends it before."""

    figures_of: ClassVar[str] = "event"

    def sequential_config(self) -> SequentialConfig:
        """Shape of the model."""
        return SequentialConfig(num_titles=self.num_titles, **self.config.model.model_dump())

    def tables(self) -> list[RenderableType]:
        """The run and its validation figures."""
        table = Table(title=f"Run {self.uri}", show_header=False)
        table.add_row("kind", self.config.model.kind)
        for figures in self.figures.values():
            for name, value in figures.items():
                table.add_row(name, f"{value:.5g}")
        return [table]


def make_schedule(record: BackboneRecord, plan: SequencePlan) -> Schedule:
    """Every step of the run, unless early stopping ends it before."""
    optim = record.config.optim
    return plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, record.config.seed)


def weights_uri(record: BackboneRecord) -> str:
    """File of the best weights."""
    return join(record.uri, WEIGHTS)


def backbone_hash(record: BackboneRecord) -> str:
    """SHA-256 of the weights as they are now."""
    return hashlib.sha256(_content(record)).hexdigest()


def load_backbone(record: BackboneRecord, expected_hash: str = "") -> SequentialBackbone:
    """The best weights of a run, on the CPU, frozen and ready for inference.

    Args:
        record: of the run.
        expected_hash: `backbone_hash` of the weights that others were trained on; empty accepts any.
    """
    content, model = _content(record), SequentialBackbone(record.sequential_config())
    if expected_hash and hashlib.sha256(content).hexdigest() != expected_hash:
        raise UserError(f"backbone {record.uri!r} was trained again since: train its eliminators again")
    fill_module(model, content, f"run {record.uri!r}: {WEIGHTS} is damaged")
    return model.eval().requires_grad_(False)


def _content(record: BackboneRecord) -> bytes:
    return read_weights(weights_uri(record), f"run {record.uri!r} has no weights yet: finish its training first")

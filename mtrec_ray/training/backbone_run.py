"""The folder of a backbone's run.

runs/NAME/run.json                     settings, lake hash, status, figures
runs/NAME/plan.json                    the plan of its sequence streams
runs/NAME/backbone.safetensors         the weights with the best validation figures so far
runs/NAME/metrics.jsonl, tensorboard/  figures over its steps
runs/NAME/checkpoint_*/                Ray Train's checkpoints
"""

import hashlib
import logging
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import field_validator
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import join
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan, sequence_batches
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import VALIDATION_EVENT, read_held_out
from mtrec_ray.trainers.backbone import WEIGHTS, BackboneData, BackboneTrainer
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.training.record import Record, Training, load_plan
from mtrec_ray.training.weights import load_weights, read_weights
from mtrec_ray.workers import Workers

logger = logging.getLogger(__name__)


class BackboneRecord(Record):
    """The content of a backbone's `run.json`."""

    kind: Literal["backbone"] = "backbone"
    config: BackboneConfig
    attributes: dict[str, list[str]]  # the lake's sensitive attributes with their values
    num_titles: int

    figures_of: ClassVar[str] = "event"

    @field_validator("config", mode="before")
    @classmethod
    def _loss_of_older_runs(cls, config: Any) -> Any:
        """BPR was the only loss before there was `optim.loss`."""
        if isinstance(config, dict) and isinstance(config.get("optim"), dict):
            return config | {"optim": {"loss": "bpr"} | config["optim"]}
        return config

    def sequential_config(self) -> SequentialConfig:
        """Shape of the model."""
        return SequentialConfig(num_titles=self.num_titles, **self.config.model.model_dump())

    def make_plan(self, progress: ProgressCallback | None) -> SequencePlan:
        config = self.config
        plan = make_sequence_plan(
            self.open_lake(), config.sequences, config.model.history, "all", progress, reader=self.reader
        )
        plan.validation_fraction_of(config.optim.validation_users)
        for note in plan.notes():
            logger.warning(note)
        return plan

    def schedule(self, plan: SequencePlan) -> Schedule:
        optim = self.config.optim
        return plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, self.config.seed)

    def training(self, workers: Workers, pack: str = "") -> Training:
        lake, plan = self.open_lake(), load_plan(self.uri, SequencePlan)
        schedule, buckets = self.schedule(plan), range(workers.rank, lake.manifest.num_buckets, workers.size)
        fraction = plan.validation_fraction_of(self.config.optim.validation_users)
        users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
        data = BackboneData(self.num_titles, schedule, users)
        trainer = BackboneTrainer(self.config, data, workers)
        arguments = lake, plan, schedule, workers.rank, workers.size
        return trainer, partial(sequence_batches, *arguments, reader=self.reader)

    def weights_uris(self) -> dict[str, str]:
        return {"validation": join(self.uri, WEIGHTS)}

    def histories(self) -> dict[str, int]:
        """Users and positions that are trained on, and what is left out."""
        plan = load_plan(self.uri, SequencePlan)
        return {
            name: getattr(plan, name) for name in ("users", "positions", "users_left_out", "users_cut", "events_cut")
        }

    def document(self) -> dict[str, Any]:
        return super().document() | {"histories": self.histories()}

    def tables(self) -> list[RenderableType]:
        """The run and its validation figures."""
        figures = {name: value for values in self.figures.values() for name, value in values.items()}
        histories = {name.replace("_", " "): value for name, value in self.histories().items() if value}
        return [facts_table(f"Run {self.uri}", {"kind": self.config.model.kind} | histories | figures)]


def new_backbone_run(config: BackboneConfig, lake: Lake) -> BackboneRecord:
    """The record of a run that has not started; UserError for a single title."""
    if lake.titles.num_rows < 2:
        raise UserError(f"lake {config.lake!r} has one title: there is nothing to rank; take a lake with more")
    return BackboneRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        attributes=lake.manifest.attributes,
        num_titles=lake.titles.num_rows,
    )


def load_backbone(record: BackboneRecord, expected_hash: str = "") -> SequentialBackbone:
    """The best weights of a run, on the CPU, frozen and ready for inference.

    `expected_hash`: `weights_hash` of the weights that eliminators were trained on; empty accepts any.
    """
    uri, model = record.weights_uris()["validation"], SequentialBackbone(record.sequential_config())
    content = read_weights(uri)
    if expected_hash and hashlib.sha256(content).hexdigest() != expected_hash:
        raise UserError(f"backbone {record.uri!r} was trained again since: train its eliminators again")
    load_weights(uri, content, model)
    return model.eval().requires_grad_(False)

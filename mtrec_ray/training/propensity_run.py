"""The folder of a propensity run; all of it is read without unpickling anything.

runs/NAME/run.json                           settings, lake hash, groups, model shape, status, figures
runs/NAME/plan.json                          the plan of its pair streams
runs/NAME/snapshots/day_D/model.safetensors  weights after the training window (D = 0) or after training on day D
runs/NAME/metrics.jsonl, tensorboard/        figures over its steps
runs/NAME/checkpoint_*/                      Ray Train's checkpoints
"""

import hashlib
from typing import Any, ClassVar, Literal

from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.files import join
from mtrec_ray.identity import Identity
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.trainers.propensity import snapshot_file
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.record import Record, load_plan
from mtrec_ray.training.weights import fill_module, read_weights


class PropensityRecord(Record):
    """The content of `run.json`."""

    kind: Literal["propensity"] = "propensity"
    config: PropensityConfig
    groups: Groups
    model: dict[str, Any]
    """Fields of `TwoTowerConfig`."""
    learning_rates: tuple[float, float, float]
    """First ones in a period, of the towers, the group block's matrices and its vectors."""
    num_steps: int

    figures_of: ClassVar[str] = "snapshot"

    def two_tower_config(self) -> TwoTowerConfig:
        """Shape of the model."""
        return TwoTowerConfig(**self.model)

    def identity(self) -> Identity:
        """Territory groups come from a file, so they count with their content."""
        base = super().identity()
        groups = hashlib.sha256(self.groups.model_dump_json().encode()).hexdigest()
        return Identity(base.settings, base.inputs | {"territory groups": groups})

    def tables(self) -> list[RenderableType]:
        """The run and the figures of its snapshots."""
        table, config = Table(title=f"Run {self.uri}", show_header=False), self.config
        groups = f"{len(self.groups.names)} ({config.model.group_block})" if config.kind == "mtl" else "none"
        facts = {"model": config.kind, "groups": groups, "steps": f"{self.num_steps:,}"}
        for snapshot, figures in self.figures.items():
            shown = {name: value for name, value in figures.items() if not name.endswith(("_low", "_high"))}
            facts |= {f"{snapshot} {name}": f"{value:.5g}" for name, value in shown.items()}
        for name, value in facts.items():
            table.add_row(name, value)
        return [table]


def make_schedule(record: PropensityRecord, plan: PairPlan) -> Schedule:
    """Every step of the run."""
    optim = record.config.optim
    epochs = (optim.epochs, *[optim.day_epochs] * (len(plan.periods) - 1))
    return plan.schedule(epochs, optim.batch_pairs, optim.lanes, record.config.seed)


def snapshot_uri(uri: str, day: int) -> str:
    """File of the weights after the period of `day`."""
    return join(uri, snapshot_file(day))


def load_snapshot(record: PropensityRecord, day: int) -> TwoTower:
    """The model after the period of `day`, on the CPU, ready for inference."""
    model = TwoTower(record.two_tower_config())
    fill_module(model, _content(record, day), f"run {record.uri!r}: the weights of day {day} are damaged")
    return model.eval()


def snapshots_hash(record: PropensityRecord) -> str:
    """SHA-256 over the weights after each period: what an evaluation is of."""
    digest = hashlib.sha256()
    for period in load_plan(record.uri, PairPlan).periods:
        digest.update(_content(record, period.day))
    return digest.hexdigest()


def _content(record: PropensityRecord, day: int) -> bytes:
    missing = f"run {record.uri!r} has no weights for day {day}: finish its training first"
    return read_weights(snapshot_uri(record.uri, day), missing)

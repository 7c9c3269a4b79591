"""The folder of a propensity run; all of it is read without unpickling anything.

runs/NAME/run.json                         config, lake hash, groups, model shape, status
runs/NAME/plan.json                        the pair streams' plan
runs/NAME/snapshots/day_D/model.safetensors  weights after the window (D = 0) or after training on day D
runs/NAME/checkpoint_*/                    Ray Train's checkpoints: weights, Adam's state, position
"""

import hashlib
from typing import Any, Literal, Self

import safetensors.torch

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file, write_file
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.record import Record, load_plan


class PropensityRecord(Record):
    """The content of `run.json`."""

    kind: Literal["propensity"] = "propensity"
    config: PropensityConfig
    groups: Groups
    model: dict[str, Any]
    """Fields of `TwoTowerConfig`."""
    learning_rates: tuple[float, float, float]
    """Of the towers, of the group block's matrices and of its vectors, at a period's first step."""
    num_steps: int

    def two_tower_config(self) -> TwoTowerConfig:
        return TwoTowerConfig(**self.model)

    def check_same(self, new: Self) -> None:
        super().check_same(new)
        if self.groups != new.groups:
            raise UserError(f"run {new.config.name!r} was begun with other territory groups: choose another name")


def schedule_of(record: PropensityRecord, plan: PairPlan) -> Schedule:
    """Every step of the run."""
    optim = record.config.optim
    epochs = (optim.epochs, *[optim.day_epochs] * (len(plan.periods) - 1))
    return plan.schedule(epochs, optim.batch_pairs, optim.lanes, record.config.seed)


def snapshot_uri(uri: str, day: int) -> str:
    return join(uri, "snapshots", f"day_{day}", "model.safetensors")


def save_snapshot(uri: str, day: int, model: TwoTower) -> None:
    """Weights and running statistics after the period of `day`."""
    write_file(
        snapshot_uri(uri, day),
        safetensors.torch.save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}),
    )


def load_snapshot(record: PropensityRecord, day: int) -> TwoTower:
    """The model after the period of `day`, on the CPU, ready for inference."""
    content, model = _weights(record, day), TwoTower(record.two_tower_config())
    try:
        model.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"run {record.uri!r}: the weights of day {day} are damaged: {error}") from error
    return model.eval()


def weights_hash(record: PropensityRecord) -> str:
    """SHA-256 over the weights after each period: what an evaluation is of."""
    digest = hashlib.sha256()
    for period in load_plan(record.uri, PairPlan).periods:
        digest.update(_weights(record, period.day))
    return digest.hexdigest()


def _weights(record: PropensityRecord, day: int) -> bytes:
    try:
        return read_file(snapshot_uri(record.uri, day))
    except FileNotFoundError as error:
        raise UserError(f"run {record.uri!r} has no weights for day {day}: finish its training first") from error

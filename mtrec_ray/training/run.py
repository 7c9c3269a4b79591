"""The folder of a training run: what it is, its plan, its snapshots; all of it readable without unpickling anything.

runs/NAME/run.json                         config, lake hash, groups, model shape, status
runs/NAME/plan.json                        the pair streams' plan
runs/NAME/snapshots/day_D/model.safetensors  weights after the window (D = 0) or after training on day D
runs/NAME/checkpoint_*/                    Ray Train's checkpoints: weights, Adam's state, position
"""

import hashlib
from typing import Any, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, ValidationError

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, read_file, write_file, write_json
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.training.config import PropensityConfig
from mtrec_ray.training.record import load_record

FORMAT_VERSION: Literal[1] = 1


class RunRecord(BaseModel):
    """The content of `run.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = FORMAT_VERSION
    status: Literal["training", "done"]
    config: PropensityConfig
    lake_hash: str
    groups: Groups
    model: dict[str, Any]
    """Fields of `TwoTowerConfig`."""
    learning_rates: tuple[float, float, float]
    """Of the towers, of the group block's matrices and of its vectors, at a phase's first step."""
    num_steps: int
    metrics: dict[str, float] = {}

    @property
    def uri(self) -> str:
        return join(self.config.runs, self.config.name)

    def two_tower_config(self) -> TwoTowerConfig:
        return TwoTowerConfig(**self.model)

    def save(self) -> None:
        write_json(join(self.uri, "run.json"), self.model_dump(mode="json"))

    @staticmethod
    def load(uri: str) -> "RunRecord":
        """Raises UserError where there is none, see `load_record`."""
        return load_record(uri, "propensity", RunRecord)


def save_plan(uri: str, plan: PairPlan) -> None:
    write_file(join(uri, "plan.json"), plan.model_dump_json(indent=1).encode())


def load_plan(uri: str) -> PairPlan:
    try:
        return PairPlan.model_validate_json(read_file(join(uri, "plan.json")))
    except (FileNotFoundError, ValidationError) as error:
        raise UserError(f"run {uri!r}: plan.json is missing or damaged: remove the run and train it again") from error


def schedule_of(record: RunRecord, plan: PairPlan) -> Schedule:
    """Every step of the run."""
    optim = record.config.optim
    epochs = (optim.epochs, *[optim.day_epochs] * (len(plan.phases) - 1))
    return plan.schedule(epochs, optim.batch_pairs, optim.lanes, record.config.seed)


def check_same_settings(old: Config, new: Config, stands_on: str, old_hash: str, new_hash: str) -> None:
    """UserError where a run's name is taken by a run on another lake or with other settings (runner's and jobs' apart).

    Args:
        old, new: configs with `name`.
        stands_on: what the run is made from, such as its lake.
        old_hash, new_hash: of that.
    """
    exclude = {"runner", "jobs_at_once", "retries", "lake", "backbone", "runs"}  # hashes tell which; places may move
    before, now = (_flat(config.model_dump(mode="json", exclude=exclude)) for config in (old, new))
    if old_hash != new_hash:
        raise UserError(
            f"run {now['name']!r} was begun on another state of {stands_on} "
            f"(hash {old_hash[:12]}, now {new_hash[:12]}): choose another name"
        )
    changed = [
        f"{key} = {before.get(key)!r} (now {now.get(key)!r})"
        for key in sorted(before | now)
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UserError(f"run {now['name']!r} was begun with other settings: {'; '.join(changed)}: choose another name")


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in document.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def snapshot_uri(uri: str, day: int) -> str:
    return join(uri, "snapshots", f"day_{day}", "model.safetensors")


def save_snapshot(uri: str, day: int, model: TwoTower) -> None:
    """Weights and running statistics after the phase of `day`."""
    write_file(
        snapshot_uri(uri, day),
        safetensors.torch.save({k: v.contiguous().cpu() for k, v in model.state_dict().items()}),
    )


def load_snapshot(record: RunRecord, day: int) -> TwoTower:
    """The model after the phase of `day`, on the CPU, ready for inference."""
    content, model = _weights(record, day), TwoTower(record.two_tower_config())
    try:
        model.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"run {record.uri!r}: the weights of day {day} are damaged: {error}") from error
    return model.eval()


def weights_hash(record: RunRecord) -> str:
    """SHA-256 over the weights after each phase: what an evaluation is of."""
    digest = hashlib.sha256()
    for phase in load_plan(record.uri).phases:
        digest.update(_weights(record, phase.day))
    return digest.hexdigest()


def _weights(record: RunRecord, day: int) -> bytes:
    try:
        return read_file(snapshot_uri(record.uri, day))
    except FileNotFoundError as error:
        raise UserError(f"run {record.uri!r} has no weights for day {day}: finish its training first") from error

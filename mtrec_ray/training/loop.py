"""What each Ray Train worker does for any of the three models."""

import tempfile
from typing import Any

import ray
import ray.train
import ray.train.torch

from mtrec_ray.errors import UserError
from mtrec_ray.trainers.trainer import Diverged, TrainerState
from mtrec_ray.training.record import Record
from mtrec_ray.training.session import train_from
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint
from mtrec_ray.workers import Workers


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """The entire run of one worker, resumed from the last checkpoint if there is one.

    `settings`: `run` (Record class), `record` (its JSON), `pack` (of eliminators), `actor` (a ProgressActor, which
    keeps a user's mistake: Ray Train would start the workers again).
    """
    actor, size = settings["actor"], ray.train.get_context().get_world_size()
    if ray.get(actor.get_mistake.remote()):
        return
    try:
        train_or_resume(settings)
    except UserError as error:
        ray.get(actor.put_mistake.remote(str(error)))
        if size > 1 and not isinstance(error, Diverged):
            raise  # ends the other workers, which wait for this one


def train_or_resume(settings: dict[str, Any]) -> None:
    """Train to the end from the newest state; raises what `train_from` does."""
    record: Record = settings["run"].model_validate_json(settings["record"])
    context, pack, actor = ray.train.get_context(), settings["pack"], settings["actor"]
    workers = Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    state = _newest_state(record.folder(pack))
    train_from(state, record, pack, workers, lambda *step_and_note: actor.put.remote(*step_and_note), report_state)


def _newest_state(folder: str) -> TrainerState | None:
    """The last state reported, or a later one of training without Ray Train."""
    states, checkpoint = [load_checkpoint(folder)], ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as local:
            states.append(load_checkpoint(local))
    return max((state for state in states if state), key=lambda state: state.plain["next_step"], default=None)


def report_state(state: TrainerState | None, step: int) -> None:
    """Report rank 0's state to Ray Train; every worker takes part, it is a barrier."""
    if state is None:
        ray.train.report({"step": step})
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, state)
        ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

"""Training in the driver's own process, with `runner.workers = 0`: it starts at once.

Killed, it resumes from the file `checkpoint.safetensors` of the run's folder, or from a later checkpoint of Ray Train.
"""

import torch

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_json
from mtrec_ray.trainers.trainer import TrainerState
from mtrec_ray.training.record import Record
from mtrec_ray.training.session import train_from
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint
from mtrec_ray.workers import Workers

RAY_TRAIN = "checkpoint_manager_snapshot.json"  # Ray Train's own list of the checkpoints that are complete


def fit_in_process(record: Record, progress: ProgressCallback | None, pack: str = "") -> None:
    """Train a run, or a pack of eliminators, to its end, or resume it."""
    folder, device = record.folder(pack), "cuda" if record.config.runner.use_gpu else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("runner.use_gpu: torch finds no GPU in this machine: leave --gpu out, or set runner.workers=1")

    def show(step: int, note: str) -> None:
        if progress:
            progress("training steps", step, record.num_steps, note)

    def save(state: TrainerState | None, step: int) -> None:
        if state is not None:
            save_checkpoint(folder, state)

    train_from(newest_state(folder), record, pack, Workers(device=device), show, save)
    if progress:
        progress("training steps", record.num_steps, record.num_steps)


def newest_state(folder: str) -> TrainerState | None:
    """The state of the checkpoint with the latest step."""
    states = [load_checkpoint(folder)]
    if exists(join(folder, RAY_TRAIN)):
        latest = read_json(join(folder, RAY_TRAIN)).get("latest_checkpoint_result")
        states.append(load_checkpoint(join(folder, latest["checkpoint_dir_name"])) if latest else None)
    return max((state for state in states if state), key=lambda state: state.plain["next_step"], default=None)

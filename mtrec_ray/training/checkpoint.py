"""The format of checkpoints: tensors as safetensors, the rest as JSON, settings as YAML."""

import json
from pathlib import Path

import safetensors.torch
from pydantic import BaseModel

from mtrec_ray.config import dump_yaml
from mtrec_ray.trainers.trainer import TrainerState

TENSORS, PROGRESS, SETTINGS = "state.safetensors", "progress.json", "config.yaml"


def save_checkpoint(folder: Path, state: TrainerState, config: BaseModel) -> None:
    """Write a trainer's state and the run's settings into a folder."""
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.tensors.items()}, folder / TENSORS)
    (folder / PROGRESS).write_text(json.dumps(state.plain))
    (folder / SETTINGS).write_text(dump_yaml(config))


def load_checkpoint(folder: Path) -> TrainerState:
    """Read what `save_checkpoint` wrote, onto the CPU."""
    tensors = safetensors.torch.load_file(folder / TENSORS)
    return TrainerState(tensors, json.loads((folder / PROGRESS).read_text()))

"""Files of a run: weights with the figures they reached, and checkpoints.

A checkpoint holds tensors as safetensors, the rest of a trainer's state as JSON, and the settings as YAML.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from pydantic import BaseModel
from torch import Tensor, nn

from mtrec_ray.config import dump_yaml
from mtrec_ray.errors import UserError
from mtrec_ray.files import read_file, write_file
from mtrec_ray.trainers.trainer import TrainerState

TENSORS, PROGRESS, SETTINGS = "state.safetensors", "progress.json", "config.yaml"


def save_weights(uri: str, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
    """Write tensors and, in the file's header, their figures."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(uri, safetensors.torch.save(plain, {"figures": json.dumps(figures)}))


def load_figures(uri: str) -> dict[str, Any]:
    """Figures in a file's header; safetensors itself reads headers from local paths only."""
    content = read_file(uri)
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["figures"])


def read_weights(uri: str) -> bytes:
    """Content of a weights file; UserError if there is none."""
    try:
        return read_file(uri)
    except FileNotFoundError as error:
        raise UserError(f"no weights at {uri!r} yet: start the training of that run again to finish it") from error


def load_weights(uri: str, content: bytes, module: nn.Module | None = None) -> dict[str, Tensor]:
    """Tensors of a weights file, also loaded into `module`; UserError if they do not fit."""
    try:
        tensors = safetensors.torch.load(content)
        if module is not None:
            module.load_state_dict(tensors)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"the weights {uri!r} are damaged: {error}") from error
    return tensors


def save_checkpoint(folder: Path, state: TrainerState, config: BaseModel) -> None:
    """Write a trainer's state and the run's settings into a folder."""
    safetensors.torch.save_file({name: tensor.clone() for name, tensor in state.tensors.items()}, folder / TENSORS)
    (folder / PROGRESS).write_text(json.dumps(state.plain))
    (folder / SETTINGS).write_text(dump_yaml(config))


def load_checkpoint(folder: Path) -> TrainerState:
    """Read what `save_checkpoint` wrote, onto the CPU."""
    tensors = safetensors.torch.load_file(folder / TENSORS)
    return TrainerState(tensors, json.loads((folder / PROGRESS).read_text()))

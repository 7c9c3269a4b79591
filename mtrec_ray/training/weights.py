"""Files of a run: weights with the figures they reached, and checkpoints.

A checkpoint is one safetensors file, with the rest of a trainer's state as JSON in its header.
"""

import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_file, write_file
from mtrec_ray.trainers.trainer import TrainerState

CHECKPOINT = "checkpoint.safetensors"


def save_weights(uri: str, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
    """Write tensors and, in the file's header, their figures."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(uri, safetensors.torch.save(plain, {"figures": json.dumps(figures)}))


def load_figures(uri: str) -> dict[str, Any]:
    """Figures in a file's header."""
    return json.loads(_header(read_file(uri))["figures"])


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


def save_checkpoint(uri: str, state: TrainerState) -> None:
    """Write a trainer's state into a folder, in one piece."""
    tensors = {name: tensor.clone().cpu() for name, tensor in state.tensors.items()}
    write_file(join(uri, CHECKPOINT), safetensors.torch.save(tensors, {"plain": json.dumps(state.plain)}))


def load_checkpoint(uri: str) -> TrainerState | None:
    """What `save_checkpoint` wrote into a folder, on the CPU; None if it wrote nothing."""
    if not exists(join(uri, CHECKPOINT)):
        return None
    content = read_file(join(uri, CHECKPOINT))
    return TrainerState(safetensors.torch.load(content), json.loads(_header(content)["plain"]))


def _header(content: bytes) -> dict[str, str]:
    """Texts in a file's header; safetensors itself reads headers from local paths only."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]

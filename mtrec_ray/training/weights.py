"""Weights and the figures they reached, in one safetensors file."""

import json
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from mtrec_ray.errors import UserError
from mtrec_ray.files import read_file, write_file


def save_weights(uri: str, tensors: dict[str, Tensor], figures: dict[str, Any]) -> None:
    """Write tensors and, in the file's header, their figures."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(uri, safetensors.torch.save(plain, {"figures": json.dumps(figures)}))


def load_figures(uri: str) -> dict[str, Any]:
    """Figures in a file's header; safetensors itself reads headers from local paths only."""
    content = read_file(uri)
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["figures"])


def read_weights(uri: str, what: str) -> bytes:
    """Content of the weights file of `what`, such as "run 'a'"; UserError if there is none."""
    try:
        return read_file(uri)
    except FileNotFoundError as error:
        raise UserError(f"{what} has no weights yet: start its training again to finish it") from error


def load_weights(content: bytes, what: str, module: nn.Module | None = None) -> dict[str, Tensor]:
    """Tensors of a weights file, also loaded into `module`; UserError if they do not fit."""
    try:
        tensors = safetensors.torch.load(content)
        if module is not None:
            module.load_state_dict(tensors)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise UserError(f"the weights of {what} are damaged: {error}") from error
    return tensors

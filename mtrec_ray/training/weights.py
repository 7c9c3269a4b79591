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


def read_weights(uri: str, missing: str) -> bytes:
    """A weights file as it is; UserError with the text `missing` where there is none."""
    try:
        return read_file(uri)
    except FileNotFoundError as error:
        raise UserError(missing) from error


def parse_weights(content: bytes, damaged: str) -> dict[str, Tensor]:
    """Tensors of a file's content; UserError that begins with `damaged` if unreadable."""
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise UserError(f"{damaged}: {error}") from error


def fill_module(module: nn.Module, content: bytes, damaged: str) -> None:
    """Load a file's content into a module; UserError that begins with `damaged` if unfit."""
    try:
        module.load_state_dict(parse_weights(content, damaged))
    except RuntimeError as error:
        raise UserError(f"{damaged}: {error}") from error

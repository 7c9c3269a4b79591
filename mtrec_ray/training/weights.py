"""Weights with the figures they reached, in one safetensors file and so always together."""

import json

import safetensors.torch
from torch import Tensor

from mtrec_ray.files import read_file, write_file


def save_weights(uri: str, tensors: dict[str, Tensor], figures: dict[str, float]) -> None:
    """Write tensors and, in the file's header, their figures."""
    plain = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    write_file(uri, safetensors.torch.save(plain, {"figures": json.dumps(figures)}))


def load_figures(uri: str) -> dict[str, float]:
    """The figures in a file's header (safetensors reads metadata from local paths alone, this may be a URI)."""
    content = read_file(uri)
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["figures"])

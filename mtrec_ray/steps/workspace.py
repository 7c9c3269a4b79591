"""Buffers that one model's steps reuse: on a CPU, touching fresh memory costs more than the arithmetic on it."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


class Workspace:
    """Named matrices that grow with the largest batch seen; their content is only valid within one step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, num_rows: int, width: int, like: Tensor) -> Tensor:
        """Uninitialised (num_rows, width) matrix of `like`'s dtype and device; the same memory for the same name."""
        size = num_rows * width
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = torch.empty(size, dtype=like.dtype, device=like.device)
            self._buffers[name] = buffer
        return buffer[:size].view(num_rows, width)


_WORKSPACES: WeakKeyDictionary[nn.Module, Workspace] = WeakKeyDictionary()


def workspace_of(model: nn.Module) -> Workspace:
    """The model's own workspace, made at its first step and freed with the model."""
    return _WORKSPACES.setdefault(model, Workspace())

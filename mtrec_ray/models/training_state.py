"""Trained tensors and their optimizers' state, as one flat dictionary and back."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Part = tuple[str, Mapping[str, Tensor], torch.optim.Optimizer | None]
"""Name, live tensors by name, and the optimizer that moves them."""


def collect_state(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Views of tensors as `part/name`, of their optimizer's state as `part.slot/name`."""
    state = {}
    for part, tensors, optimizer in parts:
        for name, tensor in tensors.items():
            state[f"{part}/{name}"] = tensor.detach().contiguous()
            for slot, value in (optimizer.state.get(tensor, {}) if optimizer else {}).items():
                state[f"{part}.{slot}/{name}"] = torch.as_tensor(value).contiguous()
    return state


@torch.no_grad()
def restore_state(parts: Sequence[Part], state: Mapping[str, Tensor]) -> None:
    """Fill live tensors and optimizers, on any device, from what `collect_state` returned."""
    for part, tensors, optimizer in parts:
        for name, tensor in tensors.items():
            tensor.copy_(state[f"{part}/{name}"])
            start, end = f"{part}.", f"/{name}"
            slots = {k[len(start) : -len(end)]: v for k, v in state.items() if k.startswith(start) and k.endswith(end)}
            if optimizer is not None and slots:
                step_device = tensor.device if optimizer.defaults.get("fused") else "cpu"  # of Adam's step counter
                optimizer.state[tensor] = {
                    slot: value.to(step_device if slot == "step" else tensor.device, copy=True)
                    for slot, value in slots.items()
                }

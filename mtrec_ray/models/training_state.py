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
    """Fill live tensors and optimizers, on any device, from what `collect_state` gave."""
    for part, tensors, optimizer in parts:
        for name, tensor in tensors.items():
            tensor.copy_(state[f"{part}/{name}"])
            slots = {
                key.removeprefix(f"{part}.").removesuffix(f"/{name}"): value
                for key, value in state.items()
                if key.startswith(f"{part}.") and key.endswith(f"/{name}")
            }
            if optimizer is not None and slots:
                optimizer.state[tensor] = {
                    slot: value.to(_device_of(slot, optimizer, tensor), copy=True) for slot, value in slots.items()
                }


def _device_of(slot: str, optimizer: torch.optim.Optimizer, parameter: Tensor) -> torch.device:
    """Fused Adam keeps its step counter beside the parameters, other optimizers on the CPU."""
    on_cpu = slot == "step" and not optimizer.defaults.get("fused")
    return torch.device("cpu") if on_cpu else parameter.device

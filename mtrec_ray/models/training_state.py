"""Averaged weights; trained tensors and their optimizers' state in one dictionary."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

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


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential average of a model's trained weights; frozen ones are shared.

    Update n has the decay min(decay, n / (n + 10)) (Polyak and Juditsky 1992), so 0 gives the newest weights.
    """

    def move(kept: list[Tensor], newest: list[Tensor], _: Tensor) -> None:
        count = int(average.n_averaged)  # on the CPU: reading the argument would wait for the GPU
        weight = 1 - min(decay, count / (count + 10))
        for old, new in zip(kept, newest, strict=True):
            if old.data_ptr() != new.data_ptr():  # else shared
                old.lerp_(new, weight)

    average = AveragedModel(model, multi_avg_fn=move)  # pyright: ignore[reportArgumentType]
    average.n_averaged.fill_(1)  # at 0 the first update would copy the model
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            owner, _, leaf = name.rpartition(".")
            setattr(average.module.get_submodule(owner), leaf, parameter)
    return average.eval().requires_grad_(False)

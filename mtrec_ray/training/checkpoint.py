"""What a run needs to go on to the same result: weights, Adam's state, position, random state; safetensors and JSON."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from mtrec_ray.models.two_tower import TwoTower

WEIGHTS, OPTIMIZER, POSITION = "model.safetensors", "optimizer.safetensors", "position.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands in its stream."""

    next_step: int
    """Global step to go on with."""
    loss_sum: float
    """Sum of the period's losses so far, over `loss_count` steps."""
    loss_count: int


def save_checkpoint(
    folder: Path, model: TwoTower, optimizer: torch.optim.Optimizer, position: Position, config: str
) -> None:
    """Write the state at a position; `config` is the run's resolved YAML."""
    save_state(folder, model, optimizer)
    (folder / "config.yaml").write_text(config)
    (folder / POSITION).write_text(json.dumps(asdict(position)))


def load_checkpoint(folder: Path, model: TwoTower, optimizer: torch.optim.Optimizer) -> Position:
    """Fill model and optimizer; returns where to go on."""
    load_state(folder, model, optimizer)
    return Position(**json.loads((folder / POSITION).read_text()))


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write weights, the optimizer's state and torch's random state."""
    safetensors.torch.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / WEIGHTS)
    safetensors.torch.save_file(_optimizer_tensors(model, optimizer), folder / OPTIMIZER)


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer from what `save_state` wrote."""
    device = next(model.parameters()).device
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS, device=str(device)))
    tensors = safetensors.torch.load_file(folder / OPTIMIZER, device=str(device))
    torch.set_rng_state(tensors.pop("rng_state").cpu())
    for name, parameter in model.named_parameters():
        state = {key.split("/")[0]: value for key, value in tensors.items() if key.endswith(f"/{name}")}
        if state:
            state["step"] = state["step"].to(_step_device(optimizer, device))
            optimizer.state[parameter] = state


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {"rng_state": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = value.contiguous()
    return tensors


def _step_device(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.device:
    """Fused Adam keeps its step counter beside the parameters, the others on the CPU."""
    return device if optimizer.defaults.get("fused") else torch.device("cpu")

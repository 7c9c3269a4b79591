"""A running average of a module's weights: what is evaluated and kept, while the live weights go on searching."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


class RunningAverage(Generic[Module]):
    """Exponential average of weights (Polyak and Juditsky 1992), its memory growing to `decay` over the first steps.

    A minimax game circles round its equilibrium and the average of the iterates lies nearer to it; a backbone gains
    what a decaying learning rate would give without a schedule that must know the end.
    """

    def __init__(self, module: Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay {decay} must lie in [0, 1); 0 keeps the newest weights")
        frozen = {id(parameter): parameter for parameter in module.parameters() if not parameter.requires_grad}
        self.module: Module = copy.deepcopy(module, frozen).eval().requires_grad_(False)  # what is frozen is shared
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, live: Module) -> None:
        """Move towards `live`'s parameters; its buffers are not averaged."""
        self.steps += 1
        decay = min(self.decay, self.steps / (self.steps + 10))
        for kept, newest in zip(self.module.parameters(), live.parameters(), strict=True):
            if newest.requires_grad:
                kept.lerp_(newest, 1 - decay)

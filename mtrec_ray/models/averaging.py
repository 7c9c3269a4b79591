"""Averaged weights, which are validated and kept while the live weights move on."""

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


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

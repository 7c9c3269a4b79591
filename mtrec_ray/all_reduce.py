"""Sums over data-parallel workers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor in place over the workers and returns it; every worker makes the same calls in the same order."""


def single_worker(tensor: Tensor) -> Tensor:
    """The `AllReduce` of a single worker."""
    return tensor


def sum_gradients(parameters: Iterable[nn.Parameter], all_reduce: AllReduce, loss: Tensor) -> Tensor:
    """Sum gradients and the loss over the workers in one message; returns the summed loss.

    A missing gradient counts as zero.
    """
    if all_reduce is single_worker:
        return loss
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = all_reduce(torch.cat([tensor.flatten() for tensor in (*gradients, loss)]))
    *sums, loss = flat.split([tensor.numel() for tensor in (*gradients, loss)])
    for parameter, gradient in zip(parameters, sums, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return loss.squeeze(0).clone()

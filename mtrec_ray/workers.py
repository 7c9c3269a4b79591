"""Data-parallel workers, and sums over all of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec_ray.errors import UserError

AllReduce = Callable[[Tensor], Tensor]
"""Sums a tensor in place over the workers and returns it; every worker makes the same calls in the same order."""


def single_worker(tensor: Tensor) -> Tensor:
    """The `AllReduce` of a single worker."""
    return tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The `AllReduce` of the processes of `torch.distributed`."""
    torch.distributed.all_reduce(tensor)
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


@dataclass(frozen=True)
class Workers:
    """A data-parallel worker: its rank, its device, and the sum over all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"
    all_reduce: AllReduce = sum_over_processes

    def __post_init__(self) -> None:
        if self.size == 1:
            object.__setattr__(self, "all_reduce", single_worker)

    def gather_rows(self, rows: Tensor) -> Tensor:
        """(N_w, ...) rows of each worker -> (sum of N_w, ...) on all, ordered by rank."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        ends = self.all_reduce(counts).cumsum(0).tolist()
        joined = rows.new_zeros(ends[-1], *rows.shape[1:])
        joined[ends[self.rank] - len(rows) : ends[self.rank]] = rows
        return self.all_reduce(joined)

    def mean(self, means: dict[str, float], count: int) -> dict[str, float]:
        """Means over the users of all workers, from each one's own; UserError if none has a user."""
        total = float(count)
        if self.size > 1:
            sums = [value * count if count else 0.0 for value in means.values()]
            *sums, total = self.all_reduce(torch.tensor([*sums, total], device=self.device)).tolist()
            means = {name: value / max(total, 1) for name, value in zip(means, sums, strict=True)}
        if not total:
            raise UserError("no user was drawn for validation: raise optim.validation_users")
        return means

    def agree(self, flag: bool) -> bool:
        """Rank 0's flag, on every worker."""
        if self.size == 1:
            return flag
        return bool(self.all_reduce(torch.tensor(int(flag and self.rank == 0), device=self.device)).item())

"""What the workers of every kind of run have in common."""

import time

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix

CHECK_CLOCK_EVERY = 10
"""Steps between looks at the clock, which all workers take together."""


def seed_step(seed: int, *place: int) -> None:
    """Make torch's draws a function of the run's seed and a place (step, rank): a resumed run repeats them."""
    torch.manual_seed(int(mix(np.array([seed], dtype=np.uint64), "step", *place)[0]) >> 1)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum over all workers, in place."""
    torch.distributed.all_reduce(tensor)
    return tensor


def gather_rows(rows: Tensor, rank: int, world_size: int) -> Tensor:
    """(N_w, ...) rows of each worker -> (sum of N_w, ...) on all, worker by worker."""
    if world_size == 1:
        return rows
    counts = torch.zeros(world_size, dtype=torch.int64, device=rows.device)
    counts[rank] = len(rows)
    ends = all_reduce(counts).cumsum(0).tolist()
    joined = rows.new_zeros(ends[-1], *rows.shape[1:])
    joined[ends[rank] - len(rows) : ends[rank]] = rows
    return all_reduce(joined)


def mean_over_workers(
    means: dict[str, float], count: int, all_reduce: AllReduce | None, device: torch.device
) -> dict[str, float]:
    """Means over the users of all workers, from each worker's own means over `count` users, which may be none.

    Raises:
        UserError: no worker has a user.
    """
    total = float(count)
    if all_reduce is not None:
        shares = [value * count if count else 0.0 for value in means.values()]
        *sums, total = all_reduce(torch.tensor([*shares, total], device=device)).tolist()
        means = {name: value / max(total, 1) for name, value in zip(means, sums, strict=True)}
    if not total:
        raise UserError("no user was drawn for validation: raise optim.validation_users")
    return means


class Clock:
    """True on every worker at the same step, once rank 0's clock says that a checkpoint is due."""

    def __init__(self, every_s: float, world_size: int, device: torch.device) -> None:
        self.every_s, self.world_size, self.device = every_s, world_size, device
        self.last = time.monotonic()

    def __call__(self, step: int) -> bool:
        if step % CHECK_CLOCK_EVERY:
            return False
        due = torch.tensor([time.monotonic() - self.last >= self.every_s], dtype=torch.int32, device=self.device)
        if self.world_size > 1:
            torch.distributed.broadcast(due, src=0)
        if due.item():
            self.last = time.monotonic()
        return bool(due.item())


class RunningMean:
    """Mean of a period's losses, in float64 and without a device sync per step."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total: Tensor | float = total
        self.count = count

    def add(self, value: Tensor) -> None:
        self.total, self.count = self.total + value.double(), self.count + 1

    def mean(self) -> float:
        return float(self.total) / max(1, self.count)

"""Territory-group blocks on top of the user tower, and their matrix products.

Legend: `U` user rows sorted by group, `d` width, `G` territory groups, `r` rank of a low-rank update.
A block maps (U, d) user vectors to (U, d); rows `offsets[g]:offsets[g + 1]` belong to group g and meet its
parameters alone. Each grouped operation writes all groups into one tensor; autograd alone would copy all rows to split
and to join the groups.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtrec_ray.models.shapes import GroupBlockName

DType = torch.dtype | None  # type that the inputs of matrix products are rounded to; None rounds nothing
Offsets = Sequence[int]  # (G + 1,) on the host


class GroupBlock(nn.Module, ABC):
    """What every block has; autograd derives the backward.

    It is made for (num_groups, width). Every parameter is (G, ...) and starts so that the block is the identity. Those
    of more than two dimensions learn at `optim.block_lr`, the others at `optim.block_vector_lr`.
    """

    def matrices(self) -> list[nn.Parameter]:
        """Parameters of shape (G, d, d) or alike."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 2]

    def vectors(self) -> list[nn.Parameter]:
        """All other parameters, which take a larger learning rate."""
        return [parameter for parameter in self.parameters() if parameter.dim() <= 2]

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw what does not start at a constant."""

    @abstractmethod
    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        """(U, d) user vectors sorted by group, (G + 1) row offsets -> (U, d).

        `compute_dtype` is that of matrix products; blocks without any ignore it.
        """


class DenseBlock(GroupBlock):
    """Paper A's block: one dense layer per group, y = W_g x + b_g.

    It starts at the identity, as the baseline model, or at random with `TwoTowerConfig.paper`. A random start lost half
    of the PR-AUC on validation users where the towers start from interaction vectors.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(num_groups, 1, 1))  # (G, d out, d in)
        self.bias = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return GroupedLinear.apply(users, self.weight, self.bias, offsets, compute_dtype)


class ShiftBlock(GroupBlock):
    """One vector per group added to the user's: y = x + t_g.

    It adds t_g . title / sqrt(d) to the logit: a bias of the group for each title, alike for similar titles.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return RepeatByGroup.apply(self.shift, offsets).add_(users)


class FilmBlock(GroupBlock):
    """Scale and shift per group (FiLM, Perez et al. 2018): y = s_g * x + t_g."""

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_groups, width))  # (G, d)
        self.shift = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return RepeatByGroup.apply(self.shift, offsets).addcmul_(users, RepeatByGroup.apply(self.scale, offsets))


class LowRankBlock(GroupBlock):
    """Low-rank update per group: y = x + B_g A_g x (as LoRA, Hu et al. 2022)."""

    rank = 16

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        rank = min(self.rank, width)
        self.down = nn.Parameter(torch.empty(num_groups, width, rank))  # (G, d, r)
        self.up = nn.Parameter(torch.zeros(num_groups, rank, width))  # (G, r, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        bound = self.down.shape[1] ** -0.5
        self.down.uniform_(-bound, bound, generator=generator)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        hidden = GroupedLinear.apply(users, self.down.transpose(1, 2), None, offsets, compute_dtype)  # (U, r)
        return users + GroupedLinear.apply(hidden, self.up.transpose(1, 2), None, offsets, compute_dtype)


GROUP_BLOCKS: dict[GroupBlockName, Callable[[int, int], GroupBlock]] = {
    "dense": DenseBlock,
    "shift": ShiftBlock,
    "film": FilmBlock,
    "low_rank": LowRankBlock,
}


def matmul(a: Tensor, b: Tensor, compute_dtype: DType = None, *, out: Tensor | None = None) -> Tensor:
    """Product of (n, k) and (k, m) in a's dtype -> (n, m), written to `out` where given.

    `compute_dtype` (for example bfloat16) rounds both inputs and the result.
    """
    if compute_dtype is None or compute_dtype == a.dtype:
        return torch.mm(a, b, out=out)
    product = torch.mm(a.to(compute_dtype), b.to(compute_dtype))
    return product.to(a.dtype) if out is None else out.copy_(product)


class GroupedLinear(torch.autograd.Function):
    """A dense layer per group: (U, k) rows, (G, m, k) weight, (G, m) bias -> (U, m)."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, offsets: Offsets, compute_dtype: DType
    ) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.offsets, ctx.compute_dtype, ctx.has_bias = offsets, compute_dtype, bias is not None
        outputs = rows.new_empty(len(rows), weight.shape[1])
        for g, group in _group_rows(offsets):
            matmul(rows[group], weight[g].t(), compute_dtype, out=outputs[group])
            if bias is not None:
                outputs[group] += bias[g]
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        row_gradient, weight_gradient = torch.empty_like(rows), torch.empty_like(weight)
        bias_gradient = weight.new_empty(weight.shape[:2]) if ctx.has_bias else None
        for g, group in _group_rows(ctx.offsets):
            gradient = output_gradient[group]
            matmul(gradient, weight[g], ctx.compute_dtype, out=row_gradient[group])
            matmul(gradient.t(), rows[group], ctx.compute_dtype, out=weight_gradient[g])
            if bias_gradient is not None:
                torch.sum(gradient, 0, out=bias_gradient[g])
        return row_gradient, weight_gradient, bias_gradient, None, None


class RepeatByGroup(torch.autograd.Function):
    """Each group's vector for its rows, (G, d) -> (U, d).

    The result may be added to in place, but not multiplied: autograd needs the factors.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, offsets: Offsets) -> Tensor:
        ctx.offsets = offsets
        outputs = vectors.new_empty(offsets[-1], vectors.shape[1])
        for g, group in _group_rows(offsets):
            outputs[group] = vectors[g]
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor) -> tuple[Tensor | None, ...]:
        return torch.stack([output_gradient[group].sum(0) for _, group in _group_rows(ctx.offsets)]), None


def _group_rows(offsets: Offsets) -> Iterator[tuple[int, slice]]:
    return enumerate(slice(start, stop) for start, stop in pairwise(offsets))

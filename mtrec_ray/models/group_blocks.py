"""Territory-group blocks on top of the user tower, and their matrix products.

Legend: `U` user rows sorted by group, `d` width, `G` territory groups, `Z` territories.
A block maps (U, d) user vectors to (U, d); rows `offsets[g]:offsets[g + 1]` belong to group g and meet its
parameters alone. Each grouped operation writes all groups into one tensor; autograd alone would copy all rows to split
and to join the groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtrec_ray.models.shapes import GroupBlockName

DType = torch.dtype | None  # type that the inputs of matrix products are rounded to; None rounds nothing
Offsets = Sequence[int]  # (G + 1,) on the host
EVIDENCE = 300.0  # discoveries with which a territory is half as free as one with endless many


@dataclass(frozen=True)
class BlockShape:
    """What a block is made for."""

    width: int
    num_groups: int
    discoveries: Sequence[int] = (0,)
    """Of each territory in the training window: how many there are, and how far one differs from its group."""


class DenseBlock(nn.Module):
    """Paper A's block: one dense layer per group, y = W_g x + b_g.

    It starts at the identity, as the baseline model, or at random with `TwoTowerConfig.paper`. A random start lost half
    of the PR-AUC on validation users where the towers start from interaction vectors.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(shape.width).repeat(shape.num_groups, 1, 1))  # (G, d out, d in)
        self.bias = nn.Parameter(torch.zeros(shape.num_groups, shape.width))  # (G, d)

    def matrices(self) -> list[nn.Parameter]:
        """Parameters of shape (G, d, d), which learn at `optim.block_lr`."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 2]

    def vectors(self) -> list[nn.Parameter]:
        """All other parameters, which learn at `optim.block_vector_lr`."""
        return [parameter for parameter in self.parameters() if parameter.dim() <= 2]

    def forward(self, users: Tensor, offsets: Offsets, territory: Tensor | None, compute_dtype: DType = None) -> Tensor:
        """(U, d) user vectors sorted by group, (G + 1) row offsets -> (U, d).

        `territory` is (U,) int64, or None where a block does not read it; `compute_dtype` that of matrix products.
        """
        return GroupedLinear.apply(users, self.weight, self.bias, offsets, compute_dtype)


class HierarchicalBlock(DenseBlock):
    """Territory within group within all: y = W_g x + b_g + c_z t_z.

    A territory's vector t_z adds t_z . title / sqrt(d) to the logit, alike for similar titles. With the factor
    c_z = n_z / (n_z + `EVIDENCE`) it learns the slower, and stays the nearer to its group, the fewer discoveries n_z a
    territory has.
    """

    shrinkage: Tensor

    def __init__(self, shape: BlockShape) -> None:
        super().__init__(shape)
        count = torch.tensor(shape.discoveries, dtype=torch.float32)
        self.register_buffer("shrinkage", (count / (count + EVIDENCE))[:, None], persistent=False)  # (Z, 1)
        self.shift = nn.Parameter(torch.zeros(len(count), shape.width))  # (Z, d)

    def forward(self, users: Tensor, offsets: Offsets, territory: Tensor | None, compute_dtype: DType = None) -> Tensor:
        assert territory is not None, "this block needs each user's territory"
        of_group = super().forward(users, offsets, territory, compute_dtype)
        return of_group + F.embedding(territory, self.shrinkage * self.shift)


GROUP_BLOCKS: dict[GroupBlockName, type[DenseBlock]] = {
    "dense": DenseBlock,
    "hierarchical": HierarchicalBlock,
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


def _group_rows(offsets: Offsets) -> Iterator[tuple[int, slice]]:
    return enumerate(slice(start, stop) for start, stop in pairwise(offsets))

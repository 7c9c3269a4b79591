"""Matrix products, also of rows sorted by group, each group with parameters of its own.

Legend: `U` rows, `G` groups; rows `offsets[g]:offsets[g + 1]` belong to group g.
Each operation writes all groups into one tensor; autograd alone would copy all rows to split and to join the groups.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

DType = torch.dtype | None  # type that the inputs of matrix products are rounded to; None rounds nothing
Offsets = Sequence[int]  # (G + 1,) on the host


def matmul(a: Tensor, b: Tensor, compute_dtype: DType = None, *, out: Tensor | None = None) -> Tensor:
    """Product of (n, k) and (k, m) in a's dtype -> (n, m), written to `out` where given.

    `compute_dtype` (for example bfloat16) rounds both inputs and the result.
    """
    if compute_dtype is None or compute_dtype == a.dtype:
        return torch.mm(a, b, out=out)
    product = torch.mm(a.to(compute_dtype), b.to(compute_dtype))
    return product.to(a.dtype) if out is None else out.copy_(product)


def grouped_linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, offsets: Offsets, compute_dtype: DType = None
) -> Tensor:
    """A dense layer per group: (U, k) rows, (G, m, k) weight, (G, m) bias -> (U, m)."""
    return _GroupedLinear.apply(rows, weight, bias, offsets, compute_dtype)


class _GroupedLinear(torch.autograd.Function):
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


def repeat_by_group(vectors: Tensor, offsets: Offsets) -> Tensor:
    """Repeat each group's vector for its rows: (G, d) -> (U, d).

    The result may be added to in place, but not multiplied: autograd needs the factors.
    """
    return _RepeatByGroup.apply(vectors, offsets)


class _RepeatByGroup(torch.autograd.Function):
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

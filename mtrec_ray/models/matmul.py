"""Matrix product whose inputs may be rounded to a narrower type."""

import torch
from torch import Tensor

DType = torch.dtype | None  # type that the inputs of matrix products are rounded to; None rounds nothing


def matmul(a: Tensor, b: Tensor, compute_dtype: DType = None, *, out: Tensor | None = None) -> Tensor:
    """Product of (n, k) and (k, m) in a's dtype -> (n, m), written to `out` where given.

    `compute_dtype` (for example bfloat16) rounds both inputs and the result.
    """
    if compute_dtype is None or compute_dtype == a.dtype:
        return torch.mm(a, b, out=out)
    product = torch.mm(a.to(compute_dtype), b.to(compute_dtype))
    return product.to(a.dtype) if out is None else out.copy_(product)

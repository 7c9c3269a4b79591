"""Faster float32 matrix products on processors where they lose no accuracy."""

import logging

import torch

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-5  # of a float32 product against float64; bfloat16 inputs give about 2e-3


def use_fast_matmul() -> bool:
    """Use oneDNN for float32 products on the CPU if they stay float32; returns whether it is used.

    `set_float32_matmul_precision("medium")` selects oneDNN: twice as fast as the default on some processors, but
    rounded to bfloat16 on others. A product is compared with float64, and where the error exceeds 1e-5 the setting is
    restored. It is global to the process and would also let CUDA round to bfloat16, so it never changes with CUDA.
    """
    if torch.cuda.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    error = matmul_error()
    if error <= MAX_RELATIVE_ERROR:
        return True
    torch.set_float32_matmul_precision(before)
    logger.info("fast float32 products are off: relative error %.1e on this processor", error)
    return False


def matmul_error() -> float:
    """Relative error (Frobenius norm) of a float32 product against float64, with the process's present setting."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator)
    b = torch.randn(512, 512, generator=generator)
    exact = a.double() @ b.double()
    return float((torch.mm(a, b) - exact).norm() / exact.norm())

"""Faster float32 matrix products on processors where they cost no accuracy."""

import logging

import torch

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-5  # of a float32 product against float64; bfloat16 inputs give about 2e-3


def use_fast_matmul() -> bool:
    """Let float32 products on the CPU take oneDNN's path if they stay float32 there; returns whether they do.

    torch reaches that path by `set_float32_matmul_precision("medium")`: twice as fast as the default on some
    processors, and bfloat16 on others. A probe against float64 tells them apart; where the error is above 1e-5
    the setting goes back to what it was. The setting is global to the process and also lets CUDA use bfloat16
    products, so it is left alone where CUDA is present.
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
    """Relative error (Frobenius norm) of a float32 product against float64, as the process is set now."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator)
    b = torch.randn(512, 512, generator=generator)
    exact = a.double() @ b.double()
    return float((torch.mm(a, b) - exact).norm() / exact.norm())

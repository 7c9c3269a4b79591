"""Threads, memory and matrix products of a process that computes."""

import ctypes
import logging

import torch

logger = logging.getLogger(__name__)

MAX_RELATIVE_ERROR = 1e-5  # of a float32 product against float64; bfloat16 inputs give about 2e-3
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's `mallopt` (malloc.h)


def prepare_process(cpus: float) -> None:
    """Use a thread per CPU and keep freed memory.

    By default glibc returns each large tensor to the system: a step of seven eliminators took 136 ms instead of 86.
    """
    torch.set_num_threads(max(1, int(cpus)))
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc only
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # glibc's maximum
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def use_fast_matmul() -> bool:
    """Use oneDNN for float32 products on the CPU if they stay float32; returns whether.

    `set_float32_matmul_precision("medium")` selects oneDNN: twice as fast as the default on some processors, but
    rounded to bfloat16 on others. It is global to the process and would round on CUDA too, so CUDA excludes it.
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
    """Relative error (Frobenius norm) of a float32 product against float64."""
    a, b = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    return float((torch.mm(a, b) - exact).norm() / exact.norm())

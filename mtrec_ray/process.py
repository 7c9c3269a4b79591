"""Threads and memory of a process that computes."""

import ctypes

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # parameters of glibc's `mallopt` (malloc.h)


def prepare_process(cpus: float) -> None:
    """Use a thread per CPU and keep freed memory.

    By default glibc returns each large tensor to the system: a step of seven eliminators took 136 ms instead of 86.
    """
    torch.set_num_threads(max(1, int(cpus)))
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc only
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # glibc's maximum
        mallopt(M_TRIM_THRESHOLD, 1 << 30)

"""Leakage that a linear probe finds: high where planted, near zero in noise, zero without users."""

import numpy as np
import pytest
import torch

from mtrec_ray.trainers.probe_leakage import probe_leakage

U = 400
NUM_VALUES = {"gender": 2, "age": 3}


def leakage(shift: float, known: int = U) -> dict[str, float]:
    """For users whose gender shifts their vectors; only the first `known` users have values."""
    generator = torch.Generator().manual_seed(0)
    values = torch.stack([torch.randint(size, (U,), generator=generator) for size in NUM_VALUES.values()], 1)
    vectors = torch.randn(U, 8, generator=generator)
    vectors[:, 3] += shift * values[:, 0]
    values[known:] = -1
    keys = np.random.default_rng(0).integers(0, 2**63, U).astype(np.uint64)
    return probe_leakage(vectors, values, keys, NUM_VALUES)


def test_planted_attribute_leaks_and_noise_does_not():
    found = leakage(shift=2.0)
    assert found["gender"] == pytest.approx(0.84, abs=0.05)  # two normals, 2 apart: AUC 0.921
    assert 0 <= found["age"] < 0.15
    assert leakage(shift=20.0)["gender"] > 0.99


def test_leakage_of_few_users_lies_in_its_range_and_equal_vectors_do_not_leak():
    assert all(0 <= found <= 1 for known in (0, 1, 3) for found in leakage(2.0, known).values())
    keys = np.arange(40, dtype=np.uint64)
    values = torch.arange(40)[:, None] % 2
    assert probe_leakage(torch.ones(40, 8), values, keys, {"gender": 2}) == {"gender": 0.0}

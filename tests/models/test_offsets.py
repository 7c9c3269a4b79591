"""Offsets: values' means become equal, noise is left alone, attributes that go together are not subtracted twice."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.models.offsets import FOLDS, Offsets, match_means

V, D = 4000, 8


def taken(offsets: list[Offsets], values: Tensor) -> Tensor:
    """(V, d) what is subtracted from each vector."""
    total = torch.zeros(len(values), D, dtype=torch.float64)
    for a, (amounts, directions) in enumerate(offsets):
        known = values[:, a] >= 0
        total[known] += amounts[values[known, a]] @ directions
    return total


def apart(vectors: Tensor, values: Tensor) -> float:
    """Greatest distance between two values' means."""
    means = torch.stack([vectors[values == value].mean(0) for value in values.unique() if value >= 0])
    return torch.cdist(means, means).max().item()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def fold() -> Tensor:
    return torch.arange(V) % FOLDS


def test_planted_means_become_equal_and_nothing_else_moves(generator, fold):
    values = torch.randint(-1, 3, (V, 1), generator=generator)
    planted = torch.tensor([[0.0] * D, [2.0] + [0.0] * (D - 1), [0.0, 1.0] + [0.0] * (D - 2), [0.0] * D])
    vectors = torch.randn(V, D, generator=generator) + planted[values[:, 0]]
    offsets = match_means(vectors, values, fold, [3], rank=2)
    left = vectors - taken(offsets, values)
    assert apart(vectors, values[:, 0]) > 1.5
    assert apart(left, values[:, 0]) < 0.12  # sampling noise of a mean of 1,000 in 8 dimensions
    unknown = values[:, 0] < 0
    assert torch.equal(left[unknown], vectors[unknown].double())
    inside = [(left - vectors)[values[:, 0] == value].std(0).max().item() for value in range(3)]
    assert max(inside) < 1e-6  # everybody of a value moves alike


def test_noise_is_left_alone(generator, fold):
    values = torch.randint(0, 3, (V, 1), generator=generator)
    vectors = torch.randn(V, D, generator=generator)
    moved = taken(match_means(vectors, values, fold, [3], rank=2), values)
    assert moved.norm(dim=1).mean() < 0.5 * apart(vectors, values[:, 0])


def test_attributes_that_go_together_are_taken_once(generator, fold):
    """The second value follows the first for nine in ten: subtracting both alone would overshoot by as much."""
    first = torch.randint(0, 2, (V,), generator=generator)
    second = torch.where(torch.rand(V, generator=generator) < 0.9, first, 1 - first)
    values = torch.stack([first, second], 1)
    vectors = torch.randn(V, D, generator=generator)
    vectors[:, 0] += 2 * first
    left = vectors - taken(match_means(vectors, values, fold, [2, 2], rank=1), values)
    alone = vectors - taken(match_means(vectors, values[:, :1], fold, [2], rank=1), values[:, :1])
    alone = alone - taken(match_means(vectors, values[:, 1:], fold, [2], rank=1), values[:, 1:])
    assert apart(left, first) < 0.3 < 1.0 < apart(alone, first)
    assert apart(left, second) < 0.3


def test_values_and_folds_that_nobody_has_are_no_obstacle(generator):
    values = torch.tensor([[0], [0], [2], [2], [-1], [0]])
    vectors = torch.randn(6, D, generator=generator)
    ((amounts, directions),) = match_means(vectors, values, torch.zeros(6, dtype=torch.int64), [4], rank=3)
    assert amounts.shape == (4, 3)
    assert directions.shape == (3, D)
    assert torch.isfinite(amounts @ directions).all()
    assert (amounts[1] == 0).all()


def test_no_more_directions_than_there_are_differences(generator, fold):
    values = torch.randint(0, 2, (V, 1), generator=generator)
    ((amounts, directions),) = match_means(torch.randn(V, D, generator=generator), values, fold, [2], rank=5)
    assert amounts.shape == (2, 1)
    assert directions.shape == (1, D)

"""Leakage that a linear probe finds: high where planted, near zero in noise, zero without users; differences."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from mtrec_ray.trainers.probe_leakage import BEYOND_CHANCE, RIDGES, ProbeScores, probe_attribute, probe_leakage

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


def probed(shift: float, seed: int, per_user: int = 1) -> ProbeScores:
    """Of vectors that differ by the seed, of the same users, each several times."""
    values = torch.arange(U) % 2
    vectors = torch.randn(U, 8, generator=torch.Generator().manual_seed(seed))
    vectors[:, 0] += shift * values
    keys = np.random.default_rng(0).integers(0, 2**63, U).astype(np.uint64)
    found = probe_attribute(vectors.repeat(per_user, 1), values.repeat(per_user), np.tile(keys, per_user), 2)
    assert found is not None
    return found


def test_difference_to_other_vectors_is_counted_in_standard_errors():
    """With 200 users of each value, the error of a difference of two AUCs around 0.6 is about 0.04."""
    base = probed(shift=0.3, seed=0)
    assert base.errors_above(base) == 0
    above = probed(shift=1.5, seed=1)
    found = above.errors_above(base)
    assert found == pytest.approx((above.auc - base.auc) / 0.036, rel=0.25)
    assert found > BEYOND_CHANCE > -BEYOND_CHANCE > base.errors_above(above)


def test_vectors_that_leak_alike_are_rarely_beyond_chance():
    base = probed(shift=0.3, seed=0)
    errors = [probed(shift=0.3, seed=seed).errors_above(base) for seed in range(1, 30)]
    assert sum(abs(error) > BEYOND_CHANCE for error in errors) <= 2
    assert 0.5 < np.std(errors) < 1.5


def test_more_vectors_of_the_same_users_are_no_more_evidence():
    one, several = (probed(1.0, 1, number).errors_above(probed(0.3, 0, number)) for number in (1, 8))
    assert several == pytest.approx(one, rel=0.05)


def test_probe_equals_a_ridge_regression_of_the_other_folds():
    """Its scores, from sums over folds, are those of scikit-learn with one of the penalties."""
    found = probed(shift=1.0, seed=3)
    vectors = torch.randn(U, 8, generator=torch.Generator().manual_seed(3)).double()
    vectors[:, 0] += torch.arange(U) % 2
    vectors = (vectors - vectors.mean(0)).numpy()
    targets = np.eye(2)[found.values]
    own = found.fold == 0
    penalties = RIDGES * float(vectors.var(0, ddof=1).mean()) * (~own).sum()
    scores = [Ridge(penalty).fit(vectors[~own], targets[~own]).predict(vectors[own]) for penalty in penalties]
    assert min(np.abs(one - found.scores[own]).max() for one in scores) < 1e-5

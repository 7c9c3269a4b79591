"""Means by group, the largest gap between groups, and its null."""

import numpy as np
import pytest

from mtrec_ray.evaluation.group_accuracy import GroupMeans, largest_ndcg_gap
from mtrec_ray.evaluation.intervals import poisson_weights


def gap_of(ndcg, values, keys, num_values=4, num_bootstrap=200):
    return largest_ndcg_gap(ndcg, values, num_values, keys, poisson_weights(keys, num_bootstrap).astype(np.float64))


def test_means_equal_hand_worked_values():
    """Unknown groups and users without a metric take no part; a weight is a repetition of the user."""
    metric, groups = np.array([1.0, 0.0, 0.5, np.nan, 0.3]), np.array([0, 0, 2, 2, -1])
    found = GroupMeans.measure(metric, groups, 3, np.array([[1.0, 1, 1, 1, 1], [3, 1, 2, 5, 1], [0, 0, 1, 1, 1]]))
    np.testing.assert_array_equal(found.num_users, [2, 0, 1])
    np.testing.assert_allclose(found.replicates, [[0.5, np.nan, 0.5], [0.75, np.nan, 0.5], [np.nan, np.nan, 0.5]])
    assert len(found.measured) == 0


def users_of(seed=0, shift=0.0, num_users=300):
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 3, num_users)
    keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
    return np.clip(rng.normal(0.4, 0.2, num_users) + shift * (values == 2), 0, 1), values, keys


def test_the_largest_gap_equals_the_hand_worked_one():
    ndcg, values, keys = users_of(shift=0.3)
    found = gap_of(ndcg, values, keys)
    assert found is not None
    means = [ndcg[values == value].mean() for value in range(3)]
    assert (found.best, found.worst) == (2, int(np.argmin(means)))
    assert found.gap.value == pytest.approx(max(means) - min(means))
    assert found.ratio.value == pytest.approx(min(means) / max(means))
    assert found.gap.low > 0
    assert found.ratio.low < found.ratio.value < found.ratio.high < 1
    assert found.gap.value > found.null_high


def test_gaps_by_chance_are_inside_the_null():
    gaps = [gap_of(*users_of(seed), num_values=3, num_bootstrap=20) for seed in range(30)]
    assert sum(gap is not None and gap.gap.value < gap.null_high for gap in gaps) >= 25


def test_rare_values_and_users_without_a_test_event_take_no_part_in_the_gap(monkeypatch):
    ndcg, values, keys = users_of()
    ndcg[:3], values[:3] = (1.0, 1.0, np.nan), (3, 3, 0)
    found = gap_of(ndcg, values, keys)
    assert found is not None
    assert found.best != 3
    assert np.isfinite(found.gap).all()
    monkeypatch.setattr("mtrec_ray.evaluation.group_accuracy.MIN_GROUP_USERS", 200)
    assert gap_of(ndcg, values, keys) is None

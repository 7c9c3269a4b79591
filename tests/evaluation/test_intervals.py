"""Intervals: quantiles by hand, coverage on simulated users, pairing, and means over days, territories and seeds."""

import numpy as np
import pytest

from mtrec_ray.evaluation.intervals import Interval, interval, mean_over_seeds, nan_mean, poisson_weights, relative_gain
from mtrec_ray.evaluation.pr_auc import count_scores
from mtrec_ray.evaluation.score_counts import ScoreCounts, ScoreGrid, average_precision

NAN = float("nan")


def test_bounds_are_percentiles_of_the_replicates():
    assert interval(np.array([7.0, *range(41)])) == pytest.approx((7.0, 1.0, 39.0))


def test_no_estimate_no_replicates_or_few_valid_ones_give_no_bounds():
    for replicates in ([NAN, 1, 2], [3.0], [3.0, NAN, NAN, 1.0]):
        found = interval(np.array(replicates))
        assert np.isnan(found.low)
        assert np.isnan(found.high)
        assert not found.significant
    assert interval(np.array([3.0])).value == 3.0


def test_significant_excludes_zero():
    assert [Interval(1, *b).significant for b in ((0.1, 2), (-2, -0.1), (-0.1, 2))] == [True, True, False]


def test_relative_gain_is_in_percent_and_nan_over_zero():
    np.testing.assert_allclose(relative_gain(np.array([3.0, 1.0]), np.array([2.0, 0.0])), [50.0, NAN])


def test_means_leave_out_rows_without_an_estimate_or_weight():
    rows = np.array([[1.0, 2.0, NAN], [3.0, 4.0, 5.0], [NAN, 9.0, 9.0]])
    np.testing.assert_allclose(nan_mean(rows), [2.0, 3.0, 5.0])
    assert np.isnan(nan_mean(np.full((2, 3), NAN))).all()
    rows = np.array([[0.2, 0.4], [np.nan, np.nan], [0.6, np.nan]])
    np.testing.assert_allclose(nan_mean(rows, np.ones(3)[:, None]), [0.4, 0.4])
    np.testing.assert_allclose(nan_mean(rows, np.array([3.0, 5.0, 1.0])[:, None]), [0.3, 0.4])
    np.testing.assert_allclose(nan_mean(rows, np.array([0.0, 5.0, 1.0])[:, None]), [0.6, np.nan])


def test_different_seeds_widen_the_interval_and_equal_ones_do_not():
    rng = np.random.default_rng(0)
    users = rng.normal(0, 0.1, 400)
    rows = [np.array([1.0, *(1 + users)]) for _ in range(3)]
    np.testing.assert_array_equal(mean_over_seeds(rows[:1]), rows[0])
    same = interval(mean_over_seeds(rows))
    spread = interval(mean_over_seeds([row + shift for row, shift in zip(rows, (-0.5, 0.0, 0.5), strict=True)]))
    assert same == pytest.approx(interval(rows[0]))
    assert spread.value == pytest.approx(1.0)
    half = 4.303 * 0.5 / np.sqrt(3)  # Student's t, 2 degrees of freedom, 97.5%
    assert half < (spread.high - spread.low) / 2 < 1.3 * half


def simulated(rng: np.random.Generator, num_users: int, noise: float = 1.0):
    """Users with tastes of their own: a user's scores have a common offset, so pairs are not independent."""
    logits = rng.normal(0, 1, (num_users, 10)) + rng.normal(0, 1, (num_users, 1))
    labels = rng.random(logits.shape) < 1 / (1 + np.exp(-(logits - 2)))
    return (logits + rng.normal(0, noise, logits.shape)).astype(np.float32), labels


def replicates(keys, logits, labels, num_bootstrap=200):
    counts = ScoreCounts(ScoreGrid(num_bins=1024), num_bootstrap)
    count_scores(counts, logits, labels, np.ones_like(labels), poisson_weights(keys, num_bootstrap))
    histogram = counts.histogram()
    return average_precision(histogram[:, 0], histogram[:, 1])


def test_the_bootstrap_interval_covers_the_true_value():
    rng = np.random.default_rng(1)
    logits, labels = simulated(rng, 50_000)
    truth = replicates(np.arange(50_000).astype(np.uint64), logits, labels, 0)[0]
    covered = 0
    for trial in range(60):
        keys = (trial * 1000 + np.arange(300)).astype(np.uint64)
        found = interval(replicates(keys, *simulated(rng, 300), 120))
        covered += found.low <= truth <= found.high
    assert 50 <= covered <= 60  # 57 expected, standard deviation 1.7; percentile intervals run a little short


def test_a_paired_gain_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(2)
    logits, labels = simulated(rng, 500)
    better = logits + 0.2 * labels
    keys, others = np.arange(500).astype(np.uint64), np.arange(500, 1000).astype(np.uint64)
    base = replicates(keys, logits, labels)
    paired = interval(relative_gain(replicates(keys, better, labels), base))
    unpaired = interval(relative_gain(replicates(others, better, labels), base))
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.high - paired.low < 0.5 * (unpaired.high - unpaired.low)
    assert paired.significant


def test_equal_runs_gain_exactly_nothing():
    logits, labels = simulated(np.random.default_rng(3), 100)
    row = replicates(np.arange(100).astype(np.uint64), logits, labels)
    assert interval(relative_gain(row, row)) == (0.0, 0.0, 0.0)

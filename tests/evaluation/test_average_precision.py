"""PR-AUC from histograms: by hand, its bounds, and against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation.score_counts import ScoreGrid, average_precision, average_precision_bounds


def binned(grid: ScoreGrid, scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    bins, size = grid.fine_bins(scores), grid.num_fine_bins
    return np.bincount(bins[~labels], minlength=size), np.bincount(bins[labels], minlength=size)


@pytest.mark.parametrize(
    ("negatives", "positives", "expected"),
    [
        ([0, 1, 0], [1, 0, 1], (1 / 1 + 2 / 3) / 2),  # from the top: + - +
        ([5, 0], [0, 3], 1.0),
        ([0, 2], [1, 0], 1 / 3),  # two negatives above
        ([0, 9, 0], [0, 3, 0], 0.25),  # ties
        ([4, 2], [0, 0], np.nan),
        ([0, 0], [0, 0], np.nan),
    ],
    ids=["by hand", "perfect", "worst", "all tied", "no positives", "empty"],
)
def test_average_precision_equals_hand_worked_values(negatives, positives, expected):
    found = average_precision(np.array(negatives), np.array(positives))
    assert found == pytest.approx(expected, nan_ok=True)
    if np.isnan(expected):
        assert np.isnan(average_precision_bounds(np.array(negatives), np.array(positives))).all()


def test_replicates_are_independent_of_each_other():
    negatives, positives = np.array([[0, 1, 0], [5, 0, 0]]), np.array([[1, 0, 1], [0, 0, 0]])
    np.testing.assert_allclose(average_precision(negatives, positives), [5 / 6, np.nan])


def test_bounds_equal_hand_worked_values():
    # one bin, 1 positive and 3 negatives: it may rank last (1/4) or first (1)
    assert average_precision_bounds(np.array([3]), np.array([1])) == (0.25, 1.0)


def test_bounds_are_attained():
    grid = ScoreGrid(limit=2, num_bins=2, refine=1)
    labels = np.array([True, True, False, False, True])
    worst = np.array([0.1, 0.2, 0.8, 0.9, -0.5])  # negatives first, then the positives one by one
    best = np.array([0.9, 0.9, 0.2, 0.1, -0.5])  # positives tied and first
    low, high = average_precision_bounds(*binned(grid, worst, labels))
    assert average_precision_score(labels, worst) == pytest.approx(low)
    assert average_precision_score(labels, best) == pytest.approx(high)


@st.composite
def scored_labels(draw):
    size = draw(st.integers(1, 60))
    scores = draw(st.lists(st.floats(-3, 3, width=32), min_size=size, max_size=size))
    labels = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return np.array(scores, np.float32), np.array(labels)


@settings(max_examples=200, deadline=None)
@given(scored_labels(), st.sampled_from([2, 5, 16, 64, 4096]))
def test_sklearn_on_binned_scores_agrees_and_exact_value_is_within_the_bounds(case, num_bins):
    scores, labels = case
    grid = ScoreGrid(limit=2.0, num_bins=num_bins, refine=1)
    negatives, positives = binned(grid, scores, labels)
    if not labels.any():
        assert np.isnan(average_precision(negatives, positives))
        return
    value = average_precision(negatives, positives)
    low, high = average_precision_bounds(negatives, positives)
    assert value == pytest.approx(average_precision_score(labels, grid.fine_bins(scores)))
    assert low - 1e-12 <= average_precision_score(labels, scores) <= high + 1e-12
    assert low - 1e-12 <= value <= high + 1e-12


def test_default_grid_is_close_to_exact_on_many_scores():
    rng = np.random.default_rng(0)
    scores = rng.normal(-5, 1.6, 400_000).astype(np.float32)
    labels = rng.random(400_000) < 0.3 / (1 + np.exp(-scores.astype(float)))
    negatives, positives = binned(ScoreGrid(), scores, labels)
    exact = average_precision_score(labels, scores)
    low, high = average_precision_bounds(negatives, positives)
    assert average_precision(negatives, positives) == pytest.approx(exact, rel=3e-4)
    assert low <= exact <= high
    assert high - low < 0.01 * exact

"""Popularity bias: every metric by hand on a small catalogue, extremes, and mergeable counts."""

import numpy as np
import pytest

from mtrec_ray.evaluation import popularity_bias as bias
from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.evaluation.popularity_bias import (
    BIAS_METRICS,
    DayTitles,
    TitleHistory,
    bias_metrics,
    bias_sums,
    exposure_counts,
    gini,
    jensen_shannon,
    top_titles,
)

# four titles: 0 is the head (80 of 100 interactions), 3 is local; two users, lists of two
POPULARITY = np.array([80, 10, 6, 4])
IS_LOCAL = np.array([False, False, False, True])
LOGITS = np.array([[4, 3, 2, 1], [4, 1, 2, 3]], np.float32)  # lists (0, 1) and (0, 3)
LABELS = np.array([[1, 0, 0, 0], [0, 0, 1, 1]], bool)
EVERYTHING = np.ones((2, 4), bool)


TITLES = DayTitles.of(TitleHistory(POPULARITY[None], IS_LOCAL), np.ones((1, 4), bool))


def replicates(logits, labels, mask, weights, titles=TITLES) -> dict[str, np.ndarray]:
    """Metrics of the pooled row, by replicate."""
    shown, columns = top_titles(logits, mask, 2), np.arange(4)
    sums = bias_sums(shown, labels, mask, columns, titles, [0, 1], weights)
    exposure = exposure_counts(shown, mask, columns, num_titles=4)
    return {name: rows[-1] for name, rows in bias_metrics(sums, np.array([exposure, exposure]), titles).items()}


def metrics(logits=LOGITS, labels=LABELS, mask=EVERYTHING) -> dict[str, float]:
    found = replicates(logits, labels, mask, np.ones((1, len(logits)), np.float32))
    return {name: float(values[0]) for name, values in found.items()}


def test_bias_metrics_equal_hand_worked_values():
    found = metrics()
    assert found["arp"] == pytest.approx((80 + 10 + 80 + 4) / 4)
    assert found["popularity_lift"] == pytest.approx((174 / 4) / ((80**2 + 10**2 + 6**2 + 4**2) / 100) - 1)
    rarity = -np.log2(np.array([81, 11, 81, 5]) / 104)
    assert found["novelty"] == pytest.approx(rarity.mean(), abs=1 / 1024)
    assert found["aplt"] == pytest.approx(2 / 4)
    assert found["aclt"] == pytest.approx(2 / 2)
    assert found["pop_rsp"] == pytest.approx(np.std([2 / 2, 2 / 6]) / np.mean([2 / 2, 2 / 6]))
    assert found["pop_reo"] == pytest.approx(np.std([1 / 1, 1 / 2]) / np.mean([1 / 1, 1 / 2]))
    assert found["local_fraction"] == pytest.approx(1 / 4)
    assert found["local_fraction_history"] == pytest.approx(0.04)
    assert found["local_js"] == pytest.approx(jensen_shannon(0.25, 0.04))
    assert found["gini"] == pytest.approx(gini(np.array([2, 1, 0, 1])))


def test_equal_rates_are_no_bias():
    logits = np.array([[4, 3, 2, 1], [1, 2, 3, 4]], np.float32)  # lists (0, 1) and (3, 2): every title once
    found = metrics(logits, labels=np.eye(4, dtype=bool)[[0, 3]] | np.eye(4, dtype=bool)[[1, 2]])
    assert found["pop_rsp"] == found["pop_reo"] == found["gini"] == 0


def test_each_replicate_is_the_metric_of_its_users_repeated_by_weight():
    rng = np.random.default_rng(0)
    logits, labels, mask = (
        rng.normal(size=(20, 4)).astype(np.float32),
        rng.random((20, 4)) < 0.4,
        rng.random((20, 4)) < 0.8,
    )
    weights = poisson_weights(np.arange(20).astype(np.uint64), 3)
    found = replicates(logits, labels, mask, weights)
    for draw, row in enumerate(weights):
        rows = np.repeat(np.arange(20), row.astype(int))
        alone = metrics(logits[rows], labels[rows], mask[rows])
        for name in set(BIAS_METRICS) - {*bias.WITHOUT_REPLICATES}:
            assert found[name][draw] == pytest.approx(alone[name]), name


def test_history_is_of_the_titles_offered_that_day_in_the_territory_and_in_all():
    popularity, offers = np.array([[50, 20, 9, 1], [0, 60, 0, 5]]), np.array([[0, 1, 1, 1], [0, 1, 0, 0]], bool)
    found = DayTitles.of(TitleHistory(popularity, IS_LOCAL), offers)
    assert found.popularity.tolist() == [[0, 20, 9, 1], [0, 60, 0, 0], [0, 80, 9, 6]]
    assert found.is_tail.tolist() == [[True, False, False, True], [True, False, True, True], [True, False, True, True]]


def test_nothing_shown_or_no_positive_of_a_group_is_nan():
    found = metrics(mask=~EVERYTHING)
    assert all(np.isnan(found[name]) for name in ("arp", "aplt", "pop_rsp", "pop_reo", "local_fraction", "gini"))
    assert np.isnan(metrics(labels=LABELS & (np.arange(4) > 0))["pop_reo"])


def test_short_head_is_the_fewest_titles_with_the_fraction():
    assert bias.short_head(np.array([5, 50, 30, 15])).tolist() == [False, True, True, False]
    assert bias.short_head(np.array([5, 50, 29, 16])).tolist() == [False, True, True, True]
    assert not bias.short_head(np.zeros(3, int)).any()


def test_jensen_shannon_and_gini_equal_hand_worked_values():
    assert jensen_shannon(0.3, 0.3) == 0
    assert jensen_shannon(0, 1) == pytest.approx(1)
    assert jensen_shannon(0, 0.5) == pytest.approx(1.5 - 0.75 * np.log2(3))
    assert np.isnan(jensen_shannon(float("nan"), 0.1))
    assert gini(np.array([3, 3, 3])) == 0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert np.isnan(gini(np.array([])))


def test_lists_hold_candidates_only_best_first_and_may_be_short():
    mask = np.array([[0, 1, 1, 1], [0, 0, 1, 0]], bool)
    user, column = top_titles(LOGITS, mask, 2)
    assert list(zip(user.tolist(), column.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]


def test_columns_are_mapped_to_titles():
    shown = top_titles(LOGITS, EVERYTHING, 1)
    counts = exposure_counts(shown, EVERYTHING, np.array([8, 2, 5, 0]), num_titles=9)
    assert counts[1].tolist() == [0] * 8 + [2]

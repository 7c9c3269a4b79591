"""Ranking metrics: by hand, ties against every order of the tied titles, and mergeable sums."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.evaluation.ranking import ranking_means, ranking_metrics, ranking_sums


def one_user(scores, labels, mask=None, k=2) -> dict[str, float]:
    logits, truth = np.array([scores], np.float32), np.array([labels], bool)
    candidates = np.ones_like(truth) if mask is None else np.array([mask], bool)
    return dict(zip(("ndcg", "hit", "recall", "mrr"), ranking_metrics(logits, truth, candidates, k)[0], strict=True))


def test_metrics_equal_hand_worked_values():
    found = one_user([0.9, 0.8, 0.7, 0.6], [0, 1, 0, 1])  # positives at ranks 2 and 4
    ideal = 1 + 1 / np.log2(3)
    assert found == pytest.approx({"ndcg": 1 / np.log2(3) / ideal, "hit": 1, "recall": 0.5, "mrr": 0.5})


@pytest.mark.parametrize(
    ("scores", "labels", "mask", "expected"),
    [
        ([3, 2, 1], [1, 1, 0], None, (1, 1, 1, 1)),
        ([4, 3, 2, 1], [0, 0, 0, 1], None, (0, 0, 0, 0.25)),
        ([1, 2], [0, 0], None, (np.nan,) * 4),
        ([1, 2], [0, 1], [1, 0], (np.nan,) * 4),
        ([9, 8, 1], [0, 0, 1], [0, 1, 1], (1 / np.log2(3), 1, 1, 0.5)),
    ],
    ids=["perfect", "below the top k", "no positive", "positive no candidate", "others no candidates"],
)
def test_masked_missing_and_perfect_positives_have_exact_values(scores, labels, mask, expected):
    np.testing.assert_allclose(list(one_user(scores, labels, mask).values()), expected)


def test_constant_scores_get_chance_level():
    found = one_user([0] * 10, [1] + [0] * 9)
    assert found["hit"] == pytest.approx(0.2)
    assert found["recall"] == pytest.approx(0.2)
    assert found["mrr"] == pytest.approx(np.mean(1 / np.arange(1, 11)))


def test_no_users_give_no_rows():
    assert ranking_metrics(np.zeros((0, 3), np.float32), np.zeros((0, 3), bool), np.ones((0, 3), bool)).shape == (0, 4)


def slow_metrics(scores, labels, k):
    """Mean over every order of the titles that sorts the scores downwards."""
    orders = [o for o in itertools.permutations(range(len(scores))) if all(np.diff(np.array(scores)[list(o)]) <= 0)]
    rows = []
    for order in orders:
        ranks = [r for r, title in enumerate(order, 1) if labels[title]]
        ideal = sum(1 / np.log2(i + 1) for i in range(1, min(k, len(ranks)) + 1))
        dcg = sum(1 / np.log2(r + 1) for r in ranks if r <= k)
        rows.append([dcg / ideal, min(ranks) <= k, sum(r <= k for r in ranks) / len(ranks), 1 / min(ranks)])
    return np.mean(rows, axis=0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6), st.integers(1, 4))
def test_ties_are_the_mean_over_all_orders(titles, k):
    scores, labels = zip(*titles, strict=True)
    if any(labels):
        found = list(one_user(scores, labels, k=k).values())
        np.testing.assert_allclose(found, slow_metrics(scores, labels, k), atol=1e-12)


def chunk(seed, num_users=40):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
    logits = rng.normal(size=(num_users, 15)).round(1).astype(np.float32)
    return keys, logits, rng.random(logits.shape) < 0.05, rng.random(logits.shape) < 0.8


def test_replicates_are_weighted_means_over_users_with_positives():
    keys, logits, labels, mask = chunk(0)
    values = ranking_metrics(logits, labels, mask)
    known = ~np.isnan(values[:, 0])
    weights = poisson_weights(keys, 8)
    means = ranking_means(ranking_sums(logits, labels, mask, weights))
    expected = weights[:, known] @ values[known] / weights[:, known].sum(1)[:, None]
    np.testing.assert_allclose(means, expected, atol=1e-6)
    assert np.isnan(ranking_means(ranking_sums(logits, labels & False, mask, weights))).all()


def test_sums_of_shards_are_bitwise_those_of_all_users():
    keys, logits, labels, mask = chunk(1)
    weights = poisson_weights(keys, 9)
    parts = [slice(25, 40), slice(0, 7), slice(7, 25)]
    sums = [ranking_sums(logits[part], labels[part], mask[part], weights[:, part]) for part in parts]
    np.testing.assert_array_equal(sum(sums), ranking_sums(logits, labels, mask, weights))

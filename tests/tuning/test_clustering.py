"""Balanced clusters of evidence: planted groups are found in any order of territories."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from mtrec_ray.tuning.clustering import SLACK, Evidence, balanced_clusters, gain, improve, renumbered


def planted(seed: int, num_territories: int = 24, num_groups: int = 4, width: int = 12) -> tuple[Evidence, np.ndarray]:
    """Evidence of groups with a direction each, heavy-tailed sizes, and noise."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.arange(num_territories) % num_groups)
    directions = np.linalg.qr(rng.standard_normal((width, num_groups)))[0].T  # (G, E)
    pairs = np.stack([rng.permutation(np.ceil(20_000 / np.arange(1, num_territories + 1)))] * 2)
    noise = rng.standard_normal((2, num_territories, width)) * np.sqrt(pairs)[:, :, None]
    return Evidence(pairs[:, :, None] * 0.2 * directions[group] + noise, pairs), group


def symmetric(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) products without diagonal, (N,) pairs."""
    rng = np.random.default_rng(seed)
    products = rng.standard_normal((size, size)) * rng.lognormal(0, 2)
    np.fill_diagonal(products, 0.0)
    return products + products.T, np.ceil(rng.lognormal(2, 1.5, size))


@pytest.mark.parametrize("seed", range(3))
def test_planted_groups_are_found(seed):
    evidence, group = planted(seed)
    assert adjusted_rand_score(group, evidence.clusters(4)) == 1


@pytest.mark.parametrize("num_groups", [2, 3, 4])
def test_the_planted_number_of_groups_is_confirmed_by_the_other_half(num_groups):
    evidence, _ = planted(0, num_territories=12, num_groups=num_groups)
    assert evidence.best_count(range(2, 7)) == num_groups


def test_a_number_of_groups_that_one_half_alone_shows_is_not_chosen():
    """Each half shows three pairs of its own beside the two groups that both show."""
    both = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    pairs_of = (((0, 3), (1, 4), (2, 5)), ((0, 4), (1, 5), (2, 3)))
    halves = np.zeros((2, 6, 4))
    halves[:, :, 0] = both
    for half, pairs in enumerate(pairs_of):
        for number, pair in enumerate(pairs, 1):
            halves[half, pair, number] = 3.0
    evidence = Evidence(halves, np.ones((2, 6)))
    assert [balanced_clusters(evidence.products(half), np.ones(6), 3).tolist() for half in (0, 1)] == [
        [0, 1, 2, 0, 1, 2],
        [0, 1, 2, 2, 0, 1],
    ]
    assert evidence.best_count(range(2, 4)) == 2


def test_gain_equals_one_worked_by_hand():
    vectors = np.array([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]], np.zeros((4, 2)).tolist()])
    evidence = Evidence(vectors, np.array([[1.0, 2.0, 1.0, 3.0], np.zeros(4)]))

    def j(*group: int) -> float:
        return gain(evidence.products(), evidence.pairs.sum(axis=0), np.array(group))

    assert j(0, 0, 1, 1) == pytest.approx(2 * 2 / 3 + 2 * 3 / 4)
    assert j(0, 0, 0, 0) == pytest.approx((2 * 2 + 2 * 3) / 7)
    assert j(0, 1, 0, 1) == 0
    assert evidence.clusters(2).tolist() == [0, 0, 1, 1]


def test_products_of_a_territory_with_itself_are_zero():
    evidence, _ = planted(0)
    alone = np.arange(24)
    assert gain(evidence.products(), evidence.pairs.sum(axis=0), alone) == 0
    assert (np.diagonal(evidence.products()) == 0).all()
    assert (np.diagonal(evidence.products(1)) == 0).all()


def test_no_group_holds_more_than_its_capacity():
    vectors = np.array([[1.0, 0.0]] * 10 + [[0.0, 1.0]] * 2)
    found = balanced_clusters(Evidence(np.stack([vectors, vectors]), np.ones((2, 12))).products(), np.full(12, 2.0), 2)
    assert sorted(np.bincount(found)) == [3, 9]  # ten are alike, ceil(1.5 * 12 / 2) may be together


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(3, 12), num_groups=st.integers(2, 4))
def test_groups_are_within_capacity_none_empty_and_numbered_by_their_first_territory(seed, size, num_groups):
    num_groups = min(num_groups, size)
    found = balanced_clusters(*symmetric(seed, size), num_groups, seed=seed, num_starts=2)
    counts = np.bincount(found, minlength=num_groups)
    assert len(counts) == num_groups
    assert counts.min() >= 1
    assert counts.max() <= math.ceil(SLACK * size / num_groups)
    assert list(dict.fromkeys(found.tolist())) == list(range(num_groups))


@pytest.mark.parametrize("seed", range(6))
def test_the_gain_is_that_of_the_best_partition_of_eight_territories(seed):
    products, pairs = symmetric(seed, 8)
    every = [np.array(group) for group in itertools.product([0, 1], repeat=8) if 2 <= sum(group) <= 6]
    best = max(gain(products, pairs, group) for group in every)
    assert gain(products, pairs, balanced_clusters(products, pairs, 2)) == pytest.approx(best)


def test_the_order_of_territories_does_not_matter():
    evidence, _ = planted(3)
    order = np.random.default_rng(0).permutation(24)
    permuted = Evidence(evidence.vectors[:, order], evidence.pairs[:, order])
    np.testing.assert_array_equal(permuted.clusters(4), renumbered(evidence.clusters(4)[order]))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(4, 12), num_groups=st.integers(2, 4))
def test_every_improvement_is_the_best_move_or_swap(seed, size, num_groups):
    products, pairs = symmetric(seed, size)
    group = np.random.default_rng(seed).permutation(np.arange(size) % num_groups)
    capacity, scale = math.ceil(SLACK * size / num_groups), np.abs(products).sum()
    for t in [*range(size), *range(size)]:
        before = gain(products, pairs, group)
        moved = [np.where(np.arange(size) == t, target, group) for target in range(num_groups)]
        swapped = [with_swap(group, t, other) for other in range(size)]
        allowed = [new for new in moved if np.bincount(new, minlength=num_groups).min() > 0]
        allowed = [new for new in allowed if np.bincount(new)[new[t]] <= capacity] + swapped
        best = max(gain(products, pairs, new) for new in allowed)
        changed = improve(group, t, products, pairs, capacity)
        after = gain(products, pairs, group)
        assert after > before if changed else after == before
        assert after == pytest.approx(max(best, before), abs=1e-8 * scale)


def with_swap(group: np.ndarray, t: int, other: int) -> np.ndarray:
    swapped = group.copy()
    swapped[[t, other]] = swapped[[other, t]]
    return swapped


def test_what_all_pairs_have_in_common_is_removed():
    pairs = np.array([[10, 40, 50], [20, 20, 60]])
    shared = np.array([3.0, -1.0])
    evidence = Evidence.centred(pairs[:, :, None] * shared, pairs)
    np.testing.assert_allclose(evidence.vectors, 0, atol=1e-12)
    own = Evidence.centred(np.random.default_rng(0).standard_normal((2, 3, 2)), pairs)
    np.testing.assert_allclose(own.vectors.sum(axis=1), 0, atol=1e-12)


def test_a_territory_without_evidence_has_zero_cosines():
    vectors = np.array([[[2.0, 0.0], [0.0, 0.0], [3.0, 4.0]]] * 2)
    cosines = Evidence(vectors, np.ones((2, 3))).cosines()
    np.testing.assert_allclose(cosines, [[1, 0, 0.6], [0, 0, 0], [0.6, 0, 1]])

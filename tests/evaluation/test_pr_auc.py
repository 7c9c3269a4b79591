"""The accumulator: counts equal a slow reference, and sharding, order and storage change nothing."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation.bootstrap import MAX_WEIGHT, poisson_weights
from mtrec_ray.evaluation.pr_auc import PrAucAccumulator
from mtrec_ray.evaluation.score_counts import PROMOTE_ABOVE, SpanCounts
from mtrec_ray.evaluation.score_grid import ScoreGrid

GRID = ScoreGrid(limit=4.0, num_bins=64, refine=4)


def users(seed: int, num_users: int = 30, num_titles: int = 12):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
    logits = rng.normal(0, 2, (num_users, num_titles))
    logits = (logits.round(2) + 0.003).astype(np.float32)  # beside the edges of bins, where rounding decides
    return keys, logits, rng.random(logits.shape) < 0.2, rng.random(logits.shape) < 0.7


def slow_histogram(keys, logits, labels, mask, num_bootstrap):
    weights = poisson_weights(keys, num_bootstrap)
    out = np.zeros((1 + num_bootstrap, 2, GRID.num_bins), dtype=np.int64)
    for user, title in np.argwhere(mask):
        bin_ = int(np.searchsorted(GRID.edges()[1:-1], logits[user, title], side="right"))
        out[:, int(labels[user, title]), bin_] += weights[:, user].astype(np.int64)
    return out


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["mixed", "all", "same columns", "none"]))
def test_counts_equal_a_loop_over_pairs(seed, kind):
    keys, logits, labels, mask = users(seed)
    mask = {
        "mixed": mask,
        "all": mask | True,
        "same columns": np.broadcast_to(mask[:1], mask.shape),
        "none": mask & False,
    }[kind]
    accumulator = PrAucAccumulator(2, num_bootstrap=5, grid=GRID)
    accumulator.add(1, keys, logits, labels, mask)
    np.testing.assert_array_equal(accumulator.counts[1].histogram(), slow_histogram(keys, logits, labels, mask, 5))
    assert list(accumulator.counts) == [1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), max_size=4))
def test_any_sharding_in_any_order_gives_the_same_state(seed, cuts):
    keys, logits, labels, mask = users(seed)
    straight = PrAucAccumulator(3, 7, grid=GRID)
    straight.add(2, keys, logits, labels, mask)
    merged = PrAucAccumulator(3, 7, grid=GRID)
    for begin, end in reversed(list(zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True))):
        shard = PrAucAccumulator(3, 7, grid=GRID)
        shard.add(2, keys[begin:end], logits[begin:end], labels[begin:end], mask[begin:end])
        merged.merge(shard)
    np.testing.assert_array_equal(straight.counts[2].histogram(), merged.counts[2].histogram())


def test_chunks_larger_than_one_product_count_alike(monkeypatch):
    keys, logits, labels, mask = users(1)
    whole, blocks = PrAucAccumulator(1, 3), PrAucAccumulator(1, 3)
    whole.add(0, keys, logits, labels, mask)
    monkeypatch.setattr("mtrec_ray.evaluation.pr_auc.MAX_EXACT_FLOAT32", 8 * 12 * 4)
    monkeypatch.setattr("mtrec_ray.evaluation.pr_auc.BLOCK_SCORES", 24)
    blocks.add(0, keys, logits, labels, mask)
    np.testing.assert_array_equal(whole.counts[0].histogram(), blocks.counts[0].histogram())


def test_a_pickle_goes_on_counting():
    chunk = users(3)
    accumulator = PrAucAccumulator(4, 6, seed=9, grid=GRID)
    accumulator.add(1, *chunk)
    copy = pickle.loads(pickle.dumps(accumulator))
    np.testing.assert_array_equal(copy.counts[1].histogram(), accumulator.counts[1].histogram())
    copy.merge(accumulator)
    np.testing.assert_array_equal(copy.counts[1].histogram(), 2 * accumulator.counts[1].histogram())


def test_other_settings_are_not_merged():
    with pytest.raises(ValueError, match="cannot merge"):
        PrAucAccumulator(1, 5).merge(PrAucAccumulator(1, 5, seed=1))


def test_unknown_territory_wrong_shapes_and_nan_are_named():
    keys, logits, labels, mask = users(0)
    accumulator = PrAucAccumulator(1, 2)
    with pytest.raises(ValueError, match="territory 3"):
        accumulator.add(3, keys, logits, labels, mask)
    with pytest.raises(ValueError, match="shapes differ"):
        accumulator.add(0, keys[:-1], logits, labels, mask)
    bad = np.where(mask, np.float32("nan"), logits)
    with pytest.raises(ValueError, match="NaN"):
        accumulator.add(0, keys, bad, labels, mask)


def test_scores_of_titles_that_are_no_candidates_may_be_anything():
    keys, logits, labels, mask = users(0)
    clean, dirty = PrAucAccumulator(1, 2), PrAucAccumulator(1, 2)
    clean.add(0, keys, logits, labels, mask)
    dirty.add(0, keys, np.where(mask, logits, np.float32("nan")), labels, mask)
    np.testing.assert_array_equal(clean.counts[0].histogram(), dirty.counts[0].histogram())


def test_no_users_and_no_titles_count_nothing():
    keys, logits, labels, mask = users(0)
    accumulator = PrAucAccumulator(1, 2)
    accumulator.add(0, keys[:0], logits[:0], labels[:0], mask[:0])
    accumulator.add(0, keys, logits[:, :0], labels[:, :0], mask[:, :0])
    assert not accumulator.counts[0].histogram().any()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_bins_keep_the_order_of_scores(scores):
    bins = ScoreGrid().fine_bins(np.sort(np.array(scores, np.float32)))
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2**16


def test_bins_by_hand():
    grid = ScoreGrid(limit=2.0, num_bins=4, refine=2)
    fine = grid.fine_bins(np.array([-np.inf, -9, -2, -0.1, 0, 0.99, 1, 9], np.float32))
    assert fine.tolist() == [0, 0, 2, 3, 4, 5, 5, 7]
    assert grid.coarsen(fine).tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert grid.edges().tolist() == [-np.inf, -2, 0, 2, np.inf]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"num_bins": 1}, {"refine": 3}, {"refine": 2**15}])
def test_a_grid_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=r"grid|fine bins"):
        ScoreGrid(**wrong)


def test_the_plain_estimate_is_that_of_the_fine_bins_and_replicates_stay_around_it():
    keys, logits, labels, mask = users(5, num_users=300)
    accumulator = PrAucAccumulator(1, 40, grid=ScoreGrid(limit=4.0, num_bins=32, refine=4096))
    accumulator.add(0, keys, logits, labels, mask)
    replicates = accumulator.counts[0].pr_auc()
    exact = average_precision_score(labels[mask], logits[mask])
    low, high = accumulator.counts[0].pr_auc_bounds()
    assert low <= exact <= high
    assert replicates[0] == pytest.approx(exact, abs=1e-3)
    slow = [
        average_precision_score(labels[mask], logits[mask], sample_weight=np.repeat(w, mask.sum(axis=1)))
        for w in poisson_weights(keys, 40)
    ]
    assert np.corrcoef(slow[1:], replicates[1:])[0, 1] > 0.97
    assert np.abs(replicates - slow).max() < 0.03


def test_large_counts_are_promoted_not_overflowed():
    counts = SpanCounts(1)
    for _ in range(6):
        counts.add(3, np.full((2, 1), PROMOTE_ABOVE - 1, dtype=np.int32))
    assert counts.dense(8)[0].tolist() == [0, 0, 0, 6 * (PROMOTE_ABOVE - 1), 6 * (PROMOTE_ABOVE - 1), 0, 0, 0]


def test_memory_depends_on_the_span_of_scores_and_not_on_the_users():
    accumulator = PrAucAccumulator(200, 10)
    sizes = []
    for seed in range(3):
        accumulator.add(5, *users(seed, num_users=400))
        sizes.append(accumulator.counts[5].spans["negatives"].counts.shape)
    assert sizes[0][0] <= sizes[-1][0] <= 1024
    assert list(accumulator.counts) == [5]


def test_poisson_weights_have_the_distribution_and_the_user_decides_them():
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    weights = poisson_weights(keys, 50)
    assert (weights[0] == 1).all()
    assert weights[1:].mean() == pytest.approx(1, abs=0.005)
    assert weights[1:].var() == pytest.approx(1, abs=0.01)
    assert (weights[1:] == 0).mean() == pytest.approx(np.exp(-1), abs=0.003)
    assert weights.max() <= MAX_WEIGHT
    assert abs(np.corrcoef(weights[1:9])[np.triu_indices(8, 1)]).max() < 0.04
    np.testing.assert_array_equal(poisson_weights(keys[[7, 3]], 50), weights[:, [7, 3]])
    np.testing.assert_array_equal(poisson_weights(keys, 20), weights[:21])
    assert (poisson_weights(keys, 50, seed=1)[1:] != weights[1:]).mean() > 0.5


def test_saturated_scores_keep_their_order():
    grid = ScoreGrid()
    large = np.array([15.9, 16.1, 20.0, 40.0, 41.0, 200.0, 220.0, 5000.0, 9000.0], np.float32)
    assert (np.diff(grid.fine_bins(large)) > 0).all()
    assert (np.diff(grid.fine_bins(-large)) < 0).all()

"""Score histograms: counts equal a slow reference; sharding, order and storage change nothing; titles apart."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation import score_counts
from mtrec_ray.evaluation.intervals import MAX_WEIGHT, poisson_weights
from mtrec_ray.evaluation.pr_auc import count_scores, count_title_scores
from mtrec_ray.evaluation.score_counts import PROMOTE_ABOVE, ScoreCounts, ScoreGrid, SpanCounts

GRID = ScoreGrid(limit=4.0, num_bins=64, refine=4)


def users(seed: int, num_users: int = 30, num_titles: int = 12):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
    logits = rng.normal(0, 2, (num_users, num_titles))
    logits = (logits.round(2) + 0.003).astype(np.float32)  # off the bin edges, where rounding decides
    return keys, logits, rng.random(logits.shape) < 0.2, rng.random(logits.shape) < 0.7


def counted(keys, logits, labels, mask, num_bootstrap=5, grid=GRID) -> ScoreCounts:
    counts = ScoreCounts(grid, num_bootstrap)
    count_scores(counts, logits, labels, mask, poisson_weights(keys, num_bootstrap))
    return counts


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
    counts = counted(keys, logits, labels, mask)
    np.testing.assert_array_equal(counts.histogram(), slow_histogram(keys, logits, labels, mask, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 30), max_size=4))
def test_any_sharding_in_any_order_gives_the_same_counts(seed, cuts):
    keys, logits, labels, mask = users(seed)
    merged = ScoreCounts(GRID, 5)
    for start, end in reversed(list(zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True))):
        shard = counted(keys[start:end], logits[start:end], labels[start:end], mask[start:end])
        merged += pickle.loads(pickle.dumps(shard))
    np.testing.assert_array_equal(counted(keys, logits, labels, mask).histogram(), merged.histogram())


def test_chunks_larger_than_one_product_count_alike(monkeypatch):
    chunk = users(1)
    whole = counted(*chunk)
    monkeypatch.setattr("mtrec_ray.evaluation.pr_auc.MAX_EXACT_FLOAT32", 8 * 12 * 4)
    monkeypatch.setattr("mtrec_ray.evaluation.pr_auc.BLOCK_SCORES", 24)
    np.testing.assert_array_equal(whole.histogram(), counted(*chunk).histogram())


def test_nan_counts_only_among_candidates():
    keys, logits, labels, mask = users(0)
    ignored = counted(keys, np.where(mask, logits, np.float32("nan")), labels, mask)
    np.testing.assert_array_equal(ignored.histogram(), counted(keys, logits, labels, mask).histogram())
    with pytest.raises(ValueError, match="NaN"):
        counted(keys, np.where(mask, np.float32("nan"), logits), labels, mask)


def test_no_users_and_no_titles_count_nothing():
    keys, logits, labels, mask = users(0)
    assert not counted(keys[:0], logits[:0], labels[:0], mask[:0]).histogram().any()
    assert not counted(keys, logits[:, :0], labels[:, :0], mask[:, :0]).histogram().any()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_bins_preserve_the_order_of_scores(scores):
    bins = ScoreGrid().fine_bins(np.sort(np.array(scores, np.float32)))
    assert (np.diff(bins) >= 0).all()
    assert bins.min() >= 0
    assert bins.max() < 2**16


def test_saturated_scores_have_distinct_bins():
    grid = ScoreGrid()
    large = np.array([15.9, 16.1, 20.0, 40.0, 41.0, 200.0, 220.0, 5000.0, 9000.0], np.float32)
    assert (np.diff(grid.fine_bins(large)) > 0).all()
    assert (np.diff(grid.fine_bins(-large)) < 0).all()


def test_bins_equal_hand_worked_ones():
    grid = ScoreGrid(limit=2.0, num_bins=4, refine=2)
    fine = grid.fine_bins(np.array([-np.inf, -9, -2, -0.1, 0, 0.99, 1, 9], np.float32))
    assert fine.tolist() == [0, 0, 2, 3, 4, 5, 5, 7]
    assert grid.coarsen(fine).tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert grid.edges().tolist() == [-np.inf, -2, 0, 2, np.inf]


def test_the_plain_estimate_uses_fine_bins_and_replicates_are_near_it():
    keys, logits, labels, mask = users(5, num_users=300)
    counts = counted(keys, logits, labels, mask, 40, ScoreGrid(limit=4.0, num_bins=32, refine=4096))
    replicates = counts.pr_auc()
    exact = average_precision_score(labels[mask], logits[mask])
    low, high = score_counts.average_precision_bounds(*counts.fine_histogram())
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
    counts = ScoreCounts(ScoreGrid(), 10)
    sizes = []
    for seed in range(3):
        counts += counted(*users(seed, num_users=400), 10, ScoreGrid())
        sizes.append(len(counts.spans["negatives"].counts))
    assert sizes[0] <= sizes[-1] <= 1024


def test_poisson_weights_have_the_distribution_and_depend_on_the_user_alone():
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


class TestTitles:
    COLUMNS = np.array([7, 3, 11, 5, 0])

    def counted(self, labels_too: bool = True) -> tuple[dict[int, ScoreCounts], tuple[np.ndarray, ...]]:
        keys, logits, labels, mask = users(0, num_users=200, num_titles=5)
        labels = labels & labels_too
        counts = {title: ScoreCounts(ScoreGrid(limit=4.0, num_bins=1024), 6) for title in (5, 7, 99)}
        count_title_scores(counts, logits, labels, mask, self.COLUMNS, poisson_weights(keys, 6))
        return counts, (keys, logits, labels, mask)

    def test_pr_auc_is_over_the_users_that_a_title_is_offered_to(self):
        counts, (keys, logits, labels, mask) = self.counted()
        weights = poisson_weights(keys, 6)
        for title, column in ((5, 3), (7, 0)):
            offered, found = mask[:, column], counts[title].pr_auc()
            for replicate in range(7):
                exact = average_precision_score(
                    labels[offered, column], logits[offered, column], sample_weight=weights[replicate, offered]
                )
                assert found[replicate] == pytest.approx(exact, abs=0.01)
            sizes = counts[title].histogram()[0].sum(axis=1).tolist()
            assert sizes == [(mask & ~labels)[:, column].sum(), (mask & labels)[:, column].sum()]
        assert np.isnan(counts[99].pr_auc()).all()

    def test_a_title_without_positives_is_nan(self):
        counts, (_, _, _, mask) = self.counted(labels_too=False)
        assert np.isnan(counts[5].pr_auc()).all()
        assert counts[5].histogram()[0].sum() == mask[:, 3].sum()

"""PR-AUC per title: sklearn's value over the users a title is offered to; merging; nothing for other titles."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.score_grid import ScoreGrid
from mtrec_ray.evaluation.titles import TitlePrAucAccumulator

NUM_USERS = 200
GRID = ScoreGrid(limit=4.0, num_bins=1024)


def chunk(seed=0):
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2**63, NUM_USERS).astype(np.uint64)
    logits = rng.normal(0, 1, (NUM_USERS, 5)).astype(np.float32)
    return keys, logits, rng.random(logits.shape) < 0.15, rng.random(logits.shape) < 0.8, np.array([7, 3, 11, 5, 0])


def test_each_title_is_judged_over_the_users_it_is_offered_to():
    keys, logits, labels, mask, columns = chunk()
    accumulator = TitlePrAucAccumulator(np.array([5, 7, 99]), num_bootstrap=6, grid=GRID)
    accumulator.add(keys, logits, labels, mask, columns)
    found, weights = accumulator.pr_auc(), poisson_weights(keys, 6)
    for slot, column in ((0, 3), (1, 0)):
        offered = mask[:, column]
        for replicate in range(7):
            exact = average_precision_score(
                labels[offered, column], logits[offered, column], sample_weight=weights[replicate, offered]
            )
            assert found[slot, replicate] == pytest.approx(exact, abs=0.01)
        assert accumulator.histograms()[slot].sum(axis=1).tolist() == [
            (mask & ~labels)[:, column].sum(),
            (mask & labels)[:, column].sum(),
        ]
    assert np.isnan(found[2]).all()


def test_a_title_without_positives_is_nan():
    keys, logits, labels, mask, columns = chunk()
    accumulator = TitlePrAucAccumulator(np.array([3]), 4)
    accumulator.add(keys, logits, labels & False, mask, columns)
    assert np.isnan(accumulator.pr_auc()).all()
    assert accumulator.histograms().sum() == mask[:, 1].sum()


def test_any_sharding_gives_the_same_counts():
    keys, logits, labels, mask, columns = chunk(1)
    straight, merged = (TitlePrAucAccumulator(np.array([0, 3, 11]), 5) for _ in range(2))
    straight.add(keys, logits, labels, mask, columns)
    for part in (slice(120, 200), slice(0, 1), slice(1, 120)):
        shard = TitlePrAucAccumulator(np.array([0, 3, 11]), 5)
        shard.add(keys[part], logits[part], labels[part], mask[part], columns)
        merged.merge(shard)
    np.testing.assert_array_equal(straight.pr_auc(), merged.pr_auc())


def test_no_chosen_title_is_no_work_and_no_rows():
    accumulator = TitlePrAucAccumulator(np.array([], np.int64), 5)
    accumulator.add(*chunk())
    assert accumulator.pr_auc().shape == (0, 6)
    assert accumulator.histograms().shape == (0, 2, 1024)


def test_repeated_and_too_many_titles_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        TitlePrAucAccumulator(np.array([1, 1]))
    with pytest.raises(ValueError, match="at most 512"):
        TitlePrAucAccumulator(np.arange(513))
    with pytest.raises(ValueError, match="cannot merge"):
        TitlePrAucAccumulator(np.array([1])).merge(TitlePrAucAccumulator(np.array([2])))

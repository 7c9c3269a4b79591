"""The state: merge equals straight for any shards; invalid chunks; rows of the summary."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.state import EvaluationState

from .simulated import HISTORY, SETTINGS, chunks, state


def assert_same(first, second) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key], err_msg=key)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other, err_msg=name)


def test_merged_shards_equal_the_straight_state_bit_for_bit():
    merged = EvaluationState(SETTINGS)
    for part in (slice(50, 60), slice(0, 17), slice(17, 50)):
        merged.merge(pickle.loads(pickle.dumps(state(part=part))))
    assert_same(state().summarise(HISTORY), merged.summarise(HISTORY))


def test_merging_leaves_the_other_state_unchanged():
    merged, other = EvaluationState(SETTINGS), state()
    for _ in range(2):
        merged.merge(other)
    assert_same(other.summarise(HISTORY), state().summarise(HISTORY))


def test_summary_rows_are_territories_and_all_pooled():
    result = state(noise=0.0).summarise(HISTORY)
    pr_auc, counts = result.metrics["pr_auc"], result.counts
    scores = [(taste.astype(np.float32)[mask], labels[mask]) for _, _, taste, labels, mask, _ in chunks()]
    for row in (0, 1):
        assert pr_auc[row, 0] == pytest.approx(average_precision_score(scores[row][1], scores[row][0]), abs=1e-4)
    pooled = average_precision_score(np.concatenate([s[1] for s in scores]), np.concatenate([s[0] for s in scores]))
    assert pr_auc[3, 0] == pytest.approx(pooled, abs=1e-4)
    assert result.metrics["pr_auc_lower_bound"][3, 0] <= pooled <= result.metrics["pr_auc_upper_bound"][3, 0]
    positives = [int(s[1].sum()) for s in scores]
    assert counts["num_users"].tolist() == [60, 60, 60, 180]
    assert counts["num_positives"].tolist() == [*positives, sum(positives)]
    assert counts["num_candidates"][3] == sum(len(s[0]) for s in scores)
    assert counts["num_outside"][0] == sum((labels & ~mask).sum() for t, _, _, labels, mask, _ in chunks() if t == 0)
    assert {"ndcg@10", "hit@10", "recall@10", "mrr", "gini"} < set(result.metrics)
    assert result.title_is_local is not None
    assert result.title_is_local.tolist() == [False, True]


def test_a_territory_without_positives_is_nan_but_for_popularity_bias_which_needs_a_history():
    metrics = state().summarise(HISTORY).metrics
    assert all(np.isnan(rows[2]).all() for name, rows in metrics.items() if name not in BIAS_METRICS)
    assert np.isfinite(metrics["gini"][2])
    assert not set(BIAS_METRICS) & set(state().summarise().metrics)


def test_an_empty_state_summarises_to_nan_and_zero_counts_and_no_titles_to_no_rows():
    result = EvaluationState(replace(SETTINGS, titles=())).summarise(HISTORY)
    assert np.isnan(result.metrics["pr_auc"]).all()
    assert not result.counts["num_users"].any()
    assert result.title_pr_auc.shape == (0, 61)
    assert result.title_histograms.shape == (0, 2, 1024)


def test_scores_that_are_nan_are_refused():
    territory, keys, taste, labels, mask, titles = next(chunks())
    with pytest.raises(ValueError, match="scores are NaN: the model diverged"):
        EvaluationState(SETTINGS).add(territory, keys, taste.astype(np.float32) * np.nan, labels, mask, titles)

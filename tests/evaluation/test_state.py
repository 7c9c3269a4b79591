"""The state: merge equals straight for any shards; invalid chunks; rows of the summary."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mtrec_ray.evaluation.distinct_users import MIN_USERS, DistinctUsers
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.state import EvaluationState

from .simulated import DAY_TITLES, SETTINGS, chunks, state


def assert_same(first, second) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            for key in value:
                np.testing.assert_array_equal(value[key], other[key], err_msg=key)
        elif isinstance(value, list):
            assert [users.keys.tolist() for users in value] == [users.keys.tolist() for users in other]
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, other, err_msg=name)


def test_merged_shards_equal_the_straight_state_bit_for_bit():
    merged = EvaluationState(SETTINGS, DAY_TITLES)
    for part in (slice(50, 60), slice(0, 17), slice(17, 50)):
        merged.merge(pickle.loads(pickle.dumps(state(part=part))))
    assert_same(state().summarise(), merged.summarise())


def test_merging_leaves_the_other_state_unchanged():
    merged, other = EvaluationState(SETTINGS, DAY_TITLES), state()
    for _ in range(2):
        merged.merge(other)
    assert_same(other.summarise(), state().summarise())


def test_summary_rows_are_territories_and_all_pooled():
    result = state(noise=0.0).summarise()
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
    metrics = state().summarise().metrics
    assert all(np.isnan(rows[2]).all() for name, rows in metrics.items() if name not in BIAS_METRICS)
    assert np.isfinite(metrics["gini"][2])
    assert not set(BIAS_METRICS) & set(EvaluationState(SETTINGS).summarise().metrics)


def test_an_empty_state_summarises_to_nan_and_zero_counts_and_no_titles_to_no_rows():
    result = EvaluationState(replace(SETTINGS, titles=()), DAY_TITLES).summarise()
    assert np.isnan(result.metrics["pr_auc"]).all()
    assert not result.counts["num_users"].any()
    assert result.title_pr_auc.shape == (0, 61)
    assert result.title_histograms.shape == (0, 2, 1024)


def test_titles_of_one_territory_count_its_users_alone():
    titles, one = np.arange(12), EvaluationState(replace(SETTINGS, titles=(2,), title_territory=1))
    for territory, users in ((0, 6), (1, 3)):
        labels = np.zeros((users, 12), bool)
        labels[:, 2] = True
        keys = np.arange(users).astype(np.uint64)
        one.add(territory, keys, np.zeros((users, 12), np.float32), labels, labels | True, titles)
    result = one.summarise()
    assert result.counts["title_positives"].tolist() == [3]
    assert len(result.title_users[0]) == 3


def test_distinct_users_are_counted_over_shards_days_and_territories_up_to_what_an_interval_needs():
    days = [state(day).summarise().positive_users for day in (1, 2)]
    assert [len(users) for users in days[0]] == [MIN_USERS, MIN_USERS, 0]
    few, again, others = DistinctUsers(), DistinctUsers(), DistinctUsers()
    few.add(np.array([7, 3, 3], np.uint64))
    again.add(np.array([3, 7], np.uint64))
    others.add(np.arange(100, 107).astype(np.uint64))
    sets = ([few, again], [few, others], [few, others, days[0][0]])
    assert [len(DistinctUsers.union(users)) for users in sets] == [2, 9, 10]


def test_scores_that_are_nan_are_refused():
    territory, keys, taste, labels, mask, titles = next(chunks())
    with pytest.raises(ValueError, match="scores are NaN: the model diverged"):
        EvaluationState(SETTINGS).add(territory, keys, taste.astype(np.float32) * np.nan, labels, mask, titles)

"""Next-title metrics: by hand, perfect, worst, ties, tiny catalogues, and the sampled negatives."""

import numpy as np
import pytest

from mtrec_ray.evaluation.next_title import NextTitleMetrics, next_title_metrics, sample_negatives

KEYS = np.arange(1, 4, dtype=np.uint64)


def measure(scores, target, seen, keys):
    return next_title_metrics(scores, target, sample_negatives(target, seen, keys))


def one_user(scores, target, seen=()):
    mask = np.zeros((1, len(scores)), dtype=bool)
    mask[0, list(seen)] = True
    return measure(np.array([scores], dtype=np.float32), np.array([target]), mask, KEYS[:1])


def test_metrics_equal_hand_worked_values():
    """Title 2 ranks third of five; one of those above was seen, so it is second."""
    found = one_user([0.9, 0.8, 0.7, 0.1, 0.0], target=2, seen=[0])
    assert found.full_ndcg == pytest.approx(1 / np.log2(3))
    assert found.ndcg == pytest.approx(1 / np.log2(3))
    assert found.auc == pytest.approx(2 / 3)
    assert found.full_hit == 1


def test_the_first_rank_gives_1_and_the_last_0():
    scores = np.arange(300.0)
    best, worst = one_user(scores, target=299), one_user(scores, target=0)
    assert best.means() == {"auc": 1, "hit": 1, "ndcg": 1, "full_hit": 1, "full_ndcg": 1}
    assert worst.means() == {"auc": 0, "hit": 0, "ndcg": 0, "full_hit": 0, "full_ndcg": 0}


def test_only_the_first_ten_ranks_count():
    scores = np.arange(300.0)
    tenth, eleventh = (one_user(scores, target=299 - above).means() for above in (9, 10))
    assert (tenth["full_hit"], tenth["full_ndcg"]) == (1, pytest.approx(1 / np.log2(11)))
    assert (eleventh["full_hit"], eleventh["full_ndcg"]) == (0, 0)


@pytest.mark.parametrize(("num_titles", "drawn"), [(300, 99), (101, 99), (100, 99), (60, 59)])
def test_all_eligible_negatives_are_sampled_up_to_99(num_titles, drawn):
    seen = np.zeros((3, num_titles), dtype=bool)
    negatives = sample_negatives(np.zeros(3, dtype=int), seen, KEYS)
    taken = np.take_along_axis(negatives.eligible, negatives.drawn, axis=1)
    assert taken.sum(axis=1).tolist() == [drawn] * 3
    assert all(len(np.unique(row)) == len(row) for row in negatives.drawn)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_user_with_a_score_that_is_no_number_has_no_metrics(odd):
    scores = np.array([[0.1, odd, 0.2, 0.3], [0.1, 0.9, 0.2, 0.3]])
    found = measure(scores, np.array([3, 1]), np.zeros((2, 4), dtype=bool), KEYS[:2])
    assert np.isnan([of[0] for of in found]).all()
    assert [of[1] for of in found] == [1] * 5


def test_ties_cost_half_a_rank_each():
    found = one_user([0.5] * 5, target=1)
    assert found.auc == 0.5
    assert found.full_ndcg == pytest.approx(1 / np.log2(2 + 2))


def test_a_held_out_title_seen_before_is_still_ranked():
    assert one_user([0.1, 0.9, 0.5], target=1, seen=[0, 1]).full_ndcg == 1


def test_sampled_negatives_are_99_unseen_titles_drawn_evenly():
    """With the k best titles unseen negatives, the expected number drawn of them is 99 k / eligible."""
    num_users, num_titles, above = 400, 400, 80
    keys = np.arange(num_users, dtype=np.uint64)
    scores = np.tile(np.arange(num_titles, 0, -1.0), (num_users, 1))
    seen = np.zeros_like(scores, dtype=bool)
    seen[:, :20] = True  # leaves 60 above the target
    target = np.full(num_users, above)
    found = measure(scores, target, seen, keys)
    drawn_above = (1 - found.auc) * 99
    assert drawn_above.mean() == pytest.approx(99 * 60 / 379, rel=0.05)
    assert np.unique(found.auc).size > 5
    again = measure(scores[::-1], target, seen, keys[::-1])
    assert (again.auc[::-1] == found.auc).all()


def test_no_users_give_nan():
    none = measure(np.zeros((0, 5)), np.zeros(0, int), np.zeros((0, 5), bool), KEYS[:0])
    assert all(np.isnan(value) for value in none.means().values())


def test_reported_names_have_the_cutoff_where_there_is_one():
    assert list(NextTitleMetrics.reported()) == ["auc", "hit@10", "ndcg@10", "full_hit@10", "full_ndcg@10"]

"""Audit metrics: by hand, against scikit-learn, separate folds, weights as repetition, the maximum over attackers."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from mtrec_ray.evaluation.audit_metrics import (
    Attack,
    balanced_accuracy,
    macro_auc,
    micro_f1,
    summarise_attacks,
)

ONE = np.ones((1, 4))
ONE_FOLD = np.zeros(4, np.int64)


def two_columns(scores):
    return np.stack([-np.array(scores, float), scores], axis=1)


def test_metrics_equal_hand_worked_values():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert balanced_accuracy(predictions, labels, ONE, 2)[0] == pytest.approx((2 / 3 + 1) / 2)
    assert micro_f1(predictions, labels, ONE)[0] == 0.75
    assert macro_auc(two_columns([1, 2, 4, 3]), labels, ONE, ONE_FOLD)[0] == pytest.approx(2 / 3)


def test_ties_count_one_half_and_a_reversed_order_is_not_flipped():
    labels = np.array([0, 0, 1, 1])
    assert macro_auc(two_columns([5, 5, 5, 5]), labels, ONE, ONE_FOLD)[0] == 0.5
    assert macro_auc(two_columns([4, 3, 2, 1]), labels, ONE, ONE_FOLD)[0] == 0.0


def test_a_value_that_does_not_occur_is_left_out():
    labels, predictions = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    assert balanced_accuracy(predictions, labels, ONE, 3)[0] == 0.75
    scores = np.array([[3, 9, 0], [2, 9, 0], [1, 9, 1], [0, 9, 2]], float)
    assert macro_auc(scores, labels, ONE, ONE_FOLD)[0] == 1.0
    assert np.isnan(macro_auc(scores, np.zeros(4, np.int64), ONE, ONE_FOLD)[0])


def test_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    scores = rng.dirichlet(np.ones(4), 200).round(2) + 0.2 * np.eye(4)[labels]
    scores /= scores.sum(axis=1, keepdims=True)
    plain, fold = np.ones((1, 200)), np.zeros(200, np.int64)
    predictions = scores.argmax(axis=1)
    assert macro_auc(scores, labels, plain, fold)[0] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))
    assert balanced_accuracy(predictions, labels, plain, 4)[0] == pytest.approx(
        balanced_accuracy_score(labels, predictions)
    )
    assert micro_f1(predictions, labels, plain)[0] == pytest.approx(f1_score(labels, predictions, average="micro"))


def test_a_weight_is_a_repetition_of_the_user():
    rng = np.random.default_rng(1)
    labels, scores, weights = rng.integers(0, 3, 30), rng.normal(size=(30, 3)), rng.integers(0, 4, (1, 30))
    folds, rows = rng.integers(0, 2, 30), np.repeat(np.arange(30), weights[0])
    plain = np.ones((1, len(rows)))
    assert macro_auc(scores, labels, weights, folds)[0] == pytest.approx(
        macro_auc(scores[rows], labels[rows], plain, folds[rows])[0]
    )
    predictions = scores.argmax(axis=1)
    assert balanced_accuracy(predictions, labels, weights, 3)[0] == pytest.approx(
        balanced_accuracy(predictions[rows], labels[rows], plain, 3)[0]
    )


def test_scores_of_different_folds_are_never_compared():
    labels, folds = np.array([0, 1, 0, 1, 1]), np.array([0, 0, 1, 1, 2])
    scores = two_columns([10, 11, 0, 1, -50])  # perfect inside each fold; the last fold has no pair
    assert macro_auc(scores, labels, np.ones((1, 5)), folds)[0] == 1.0


LABELINGS = np.array([[0, 0, 1, 1], [0, 1, 0, 1], [1, 0, 0, 1]])  # the true one and two permutations


def attack(*orders):
    """One attacker with the scores of value 1 on each labeling, and guesses of value 0 for everybody."""
    scores = np.stack([two_columns(order) for order in orders]) - 2.5
    return Attack.measure(scores, np.zeros((3, 4), np.int64), LABELINGS, ONE_FOLD)


def test_the_largest_figure_and_its_null_equal_hand_worked_values():
    """Wins of 4 pairs on each labeling: 3, 3, 4 and 2, 4, 1; the maxima of the permuted ones are 4 and 4."""
    attacks = {
        "a": attack([1, 3, 2, 4], [1, 2, 3, 4], [3, 1, 2, 4]),
        "b": attack([2, 3, 1, 4], [1, 3, 2, 4], [3, 4, 2, 1]),
    }
    assert [list(one.metrics[1]) for one in attacks.values()] == [[0.75, 0.75, 1.0], [0.5, 1.0, 0.25]]
    found = summarise_attacks(attacks, LABELINGS[0], ONE_FOLD, np.ones((3, 4)), num_users=4)
    assert (found.auc.value, found.auc.attacker, found.auc.chance) == (0.75, "a", 0.5)
    assert (found.auc.null_low, found.auc.null_high) == (1.0, 1.0)  # not those of one attacker, 0.75 to 1
    assert found.by_attacker["b"]["auc"] == 0.5
    assert (found.num_permutations, found.num_users) == (2, 4)


def test_micro_f1_is_of_the_papers_attacker_and_others_need_not_agree():
    always_zero = attack([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4])
    right = always_zero._replace(guesses=LABELINGS[0], metrics=np.ones((3, 3)))
    found = summarise_attacks({"mlp": right, "paper": always_zero}, LABELINGS[0], ONE_FOLD, ONE, num_users=4)
    assert (found.micro_f1.value, found.micro_f1.attacker) == (0.5, "paper")
    assert found.micro_f1.chance == 0.5  # the majority's rate
    assert (found.auc.value, found.auc.attacker) == (1.0, "mlp")
    alone = summarise_attacks({"mlp": right}, LABELINGS[0], ONE_FOLD, ONE, num_users=4)
    assert (alone.micro_f1.value, alone.micro_f1.attacker) == (1.0, "mlp")

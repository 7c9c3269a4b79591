"""Attackers: each learns what it should, logistic regression equals scikit-learn's, labelings are independent."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from mtrec_ray.evaluation import attackers
from mtrec_ray.evaluation.attackers import LIST_ATTACKERS, VECTOR_ATTACKERS, AttackData, bag_of_titles
from mtrec_ray.evaluation.batched_logistic import L2_STRENGTHS, class_weights, fit_logistic, with_intercept


def problem(labels_of, num_values=2, sizes=(300, 100, 200), seed=0, num_permuted=2):
    """Standard normal inputs with labels by a rule, and permuted labelings after the true one."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(sum(sizes), 6)).astype(np.float32)
    labels = labels_of(inputs)
    train, validation, test = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:2])
    given, held = (
        np.stack([labels[part], *(rng.permutation(labels[part]) for _ in range(num_permuted))])
        for part in (train, validation)
    )
    return AttackData(inputs[train], inputs[validation], inputs[test], given, held, num_values, 7), labels[test]


def linear(inputs):
    return (inputs[:, 0] + inputs[:, 1] > 1).astype(np.int64)  # a quarter of the users


def interaction(inputs):
    return (inputs[:, 0] * inputs[:, 1] > 0).astype(np.int64)


def accuracy(scores, labels):
    return (scores[0].argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("name", VECTOR_ATTACKERS)
def test_every_attacker_learns_a_linear_rule_and_nothing_from_permuted_labels(name):
    data, labels = problem(linear)
    scores = VECTOR_ATTACKERS[name](data)
    assert scores.shape == (3, 200, 2)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(np.exp(scores).sum(axis=-1), 1, atol=1e-5)
    assert accuracy(scores, labels) > 0.85
    assert abs((scores[1].argmax(axis=1) == labels).mean() - 0.5) < 0.25


@pytest.mark.parametrize("name", ["paper", "mlp", "boosting"])
def test_all_but_the_linear_attacker_learn_an_interaction(name):
    data, labels = problem(interaction, sizes=(600, 150, 300), num_permuted=1)
    assert accuracy(VECTOR_ATTACKERS[name](data), labels) > 0.7
    assert accuracy(VECTOR_ATTACKERS["logistic"](data), labels) < 0.65


@pytest.mark.parametrize("name", VECTOR_ATTACKERS)
def test_scores_of_a_labeling_do_not_depend_on_the_number_of_others(name):
    few, many = problem(linear, num_permuted=1)[0], problem(linear, num_permuted=4)[0]
    np.testing.assert_allclose(VECTOR_ATTACKERS[name](few)[0], VECTOR_ATTACKERS[name](many)[0], atol=2e-2)


@pytest.mark.parametrize("name", VECTOR_ATTACKERS)
def test_a_value_without_training_users_is_harmless(name):
    data, labels = problem(linear, num_values=3)
    scores = VECTOR_ATTACKERS[name](data)
    assert np.isfinite(scores).all()
    assert accuracy(scores, labels) > 0.8


@pytest.mark.parametrize("sparse", [False, True])
def test_logistic_regression_is_scikit_learns(sparse):
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(200, 5)).astype(np.float32) * [1, 2, 3, 1, 1]
    labels = rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    inputs = (inputs + np.eye(3, 5)[labels]).astype(np.float32)
    given = with_intercept(csr_matrix(inputs) if sparse else inputs)
    found = None
    for strength in L2_STRENGTHS:
        found = fit_logistic(given, labels[None], 3, strength, found, tolerance=1e-6, max_steps=3000)  # (6, 1, 3)
        energy = (inputs**2).sum(axis=1).mean()
        model = LogisticRegression(C=1 / (strength * energy), class_weight="balanced", max_iter=2000, tol=1e-8)
        model.fit(inputs, labels)
        logits = given @ found[:, 0]
        expected = model.decision_function(inputs)
        centred = [z - z.mean(axis=1, keepdims=True) for z in (logits, expected)]
        np.testing.assert_allclose(*centred, atol=5e-3)


def test_logistic_regression_takes_the_strength_that_suits_each_labeling():
    """Of a clear rule the weakest, of permuted labels the strongest: probabilities far from and near to even."""
    scores = attackers.logistic_scores(problem(lambda inputs: (inputs[:, 0] > 0).astype(np.int64), num_permuted=5)[0])
    sure = np.exp(scores).max(axis=-1).mean(axis=-1)  # (6,)
    assert sure[0] > 0.9
    assert (sure[1:] < 0.6).all()


def test_the_papers_attacker_is_trained_by_the_plain_cross_entropy():
    """Of independent labels it predicts their frequencies, which are taken out of its scores and added again."""
    data = problem(lambda inputs: (np.arange(len(inputs)) % 5 == 0).astype(np.int64), num_permuted=0)[0]
    np.testing.assert_allclose(np.exp(data.log_prior), [[[0.8, 0.2]]], rtol=1e-6)
    guesses = (VECTOR_ATTACKERS["paper"](data) + data.log_prior).argmax(axis=-1)
    assert (guesses == 0).mean() > 0.95
    balanced = (attackers.mlp_scores(data)).argmax(axis=-1)
    assert 0.1 < (balanced == 0).mean() < 0.9


def test_memory_chunks_change_nothing(monkeypatch):
    data = problem(linear, num_permuted=4)[0]
    whole = attackers.logistic_scores(data)
    monkeypatch.setattr(attackers, "MAX_CELLS", 1)
    np.testing.assert_allclose(attackers.logistic_scores(data), whole, atol=2e-2)


@pytest.mark.parametrize("name", LIST_ATTACKERS)
def test_titles_in_no_list_take_no_memory(name):
    rng, num_titles = np.random.default_rng(0), 200_000
    train, validation, test = (bag_of_titles(rng.integers(0, 50, (40, 3)), num_titles) for _ in range(3))
    labels = rng.integers(0, 4, (3, 40))
    tracemalloc.start()
    LIST_ATTACKERS[name](AttackData(train, validation, test, labels, labels, 4))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 8 * num_titles  # a few numbers per title, not one per labeling and value


def test_class_weights_and_balanced_loss_equal_hand_worked_values():
    labels = np.array([[0, 0, 0, 2]])
    np.testing.assert_allclose(class_weights(labels, 3), [[2 / 3, 2 / 3, 2 / 3, 2]], rtol=1e-6)
    log_probabilities = np.log(np.array([[[0.5, 0.25, 0.25]] * 4], np.float32))
    assert attackers.balanced_log_loss(log_probabilities, labels)[0] == pytest.approx((np.log(2) + np.log(4)) / 2)


def test_naive_bayes_equals_hand_worked_scores():
    bags = csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [1, 1]], np.float32))
    data = AttackData(bags, bags, bags, np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1]]), 2)
    scores = attackers.naive_bayes_scores(data)[0]
    prior = 2 * np.array([4, 3]) / 7  # titles over all users, plus one each, times T
    zero, one = (np.array([2, 0]) + 0.1 * prior), (np.array([1, 2]) + 0.1 * prior)
    odds = np.log(zero / zero.sum()) - np.log(one / one.sum())
    np.testing.assert_allclose(scores[:, 0] - scores[:, 1], bags @ odds, atol=1e-5)

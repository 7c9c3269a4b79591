"""Audit: a planted attribute is found, others are not, the null has its level, test users influence no choice."""

import dataclasses
import json

import numpy as np
import pytest

from mtrec_ray.evaluation import attackers, audit
from mtrec_ray.evaluation.attackers import AttackData, Scores, bag_of_titles, logistic_scores
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings, audit_inputs, fold_of
from mtrec_ray.evaluation.audit_metrics import prediction_interval

FAST = AuditSettings(num_folds=4, num_permutations=3, num_bootstrap=40)


def users(num_users=200, num_values=2, shift=0.0, seed=0, unknown=0.0, width=8):
    """Gaussian vectors that move by `shift` with the value; keys; values."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, num_values, num_users)
    vectors = rng.normal(size=(num_users, width)) + shift * np.eye(num_values, width)[values]
    values = np.where(rng.random(num_users) < unknown, -1, values)
    return (
        vectors.astype(np.float32),
        AttributeLabels("a", values, num_values),
        rng.integers(0, 2**63, num_users).astype(np.uint64),
    )


def one(vectors, labels, keys, settings=FAST):
    return audit.audit_vectors(vectors, labels, keys, settings)


def cheap(vectors, labels, keys, settings=FAST):
    """With fewer attackers, for properties of the protocol."""
    few = {name: attackers.VECTOR_ATTACKERS[name] for name in ("logistic", "boosting")}
    return audit_inputs(vectors, labels, keys, few, settings)


def test_a_planted_attribute_is_found_and_independent_vectors_stay_inside_the_null():
    planted = one(*users(num_values=3, shift=2.0))
    assert planted.balanced_accuracy.value > planted.null[1] + 0.15
    assert planted.auc.value > planted.auc_null[1] + 0.15
    assert planted.leaks
    assert planted.balanced_accuracy.low < planted.balanced_accuracy.value < planted.balanced_accuracy.high
    blind = one(*users(num_values=3))
    assert blind.null[0] < blind.balanced_accuracy.value < blind.null[1]
    assert blind.chance == pytest.approx(1 / 3)
    assert not blind.leaks


def test_the_document_is_json_and_names_the_nulls():
    result = one(*users())
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    for name in ("balanced_accuracy", "auc", "micro_f1"):
        assert document[name]["low"] <= document[name]["value"] <= document[name]["high"]
        assert document["attackers"]["paper"][name] == result.by_attacker["paper"][name]
    assert (document["auc"]["null_low"], document["auc"]["null_high"]) == result.auc_null
    assert [document[name]["chance"] for name in ("balanced_accuracy", "auc")] == [0.5, 0.5]
    assert document["micro_f1"]["chance"] == result.majority_rate
    assert document["attacker"] in attackers.VECTOR_ATTACKERS


def test_unknown_values_are_left_out():
    vectors, labels, keys = users(shift=1.0, unknown=0.3)
    known = labels.values >= 0
    strange = np.where(known[:, None], vectors, 1e6).astype(np.float32)
    found = cheap(strange, labels, keys)
    assert found == cheap(vectors[known], labels._replace(values=labels.values[known]), keys[known])
    assert found.num_users == known.sum()


def test_order_of_users_does_not_matter_and_the_same_seed_gives_the_same_metrics():
    vectors, labels, keys = users(shift=1.0)
    shuffled = np.random.default_rng(5).permutation(len(keys))
    found = cheap(vectors, labels, keys)
    assert found == cheap(vectors[shuffled], labels._replace(values=labels.values[shuffled]), keys[shuffled])
    assert cheap(vectors, labels, keys, dataclasses.replace(FAST, seed=1)) != found


def test_a_rare_value_may_be_absent_from_folds():
    vectors, labels, keys = users(num_values=3, shift=1.5)
    values = np.where(labels.values == 2, 0, labels.values)
    values[:2] = 2
    found = cheap(vectors, AttributeLabels("a", values, 4), keys)
    assert np.isfinite([found.balanced_accuracy.value, found.auc.value, *found.null, *found.auc_null]).all()
    assert found.chance == pytest.approx(1 / 3)


def test_every_user_is_test_once_and_parts_are_disjoint(monkeypatch):
    vectors, labels, keys = users()
    seen = []

    def spy(data: AttackData) -> Scores:
        parts = [set(map(float, part[:, 0])) for part in (data.train, data.validation, data.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert abs(data.train.mean()) < 1e-5
        seen.append(tuple(map(len, parts)))
        return logistic_scores(data)

    inputs = vectors + np.arange(len(vectors), dtype=np.float32)[:, None]
    audit_inputs(inputs, labels, keys, {"spy": spy}, FAST)
    folds = np.bincount(fold_of(keys, FAST))
    assert [test for _, _, test in seen] == list(folds)
    assert [validation for _, validation, _ in seen] == list(np.roll(folds, -1))
    seen.clear()
    monkeypatch.setattr(audit, "MAX_TRAIN_USERS", 30)
    audit_inputs(inputs, labels, keys, {"spy": spy}, FAST)
    assert [sizes[:2] for sizes in seen] == [(30, 30)] * 4
    assert [test for _, _, test in seen] == list(folds)


def test_test_users_never_influence_the_choice(monkeypatch):
    """With another label for every user of a fold its attacker is the same, with the same scores."""
    vectors, labels, keys = users(shift=1.0)
    turned = labels._replace(values=np.where(fold_of(keys, FAST) == 0, 1 - labels.values, labels.values))
    taken = []

    def keep(best, _, labelings, folds, weights, by_fold, **__):
        taken.append((best[0, folds == 0], by_fold[0]))

    monkeypatch.setattr(audit, "summarise_attacks", keep)
    for values in (labels, turned):
        cheap(vectors, values, keys)
    np.testing.assert_allclose(taken[0][0], taken[1][0], atol=2e-2)
    assert taken[0][1] == taken[1][1]


def test_the_choice_is_by_validation_auc_for_each_labeling():
    labelings = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    up = np.stack([np.stack([-np.arange(4.0), np.arange(4.0)], axis=1)] * 2)
    crossed = up[:, [0, 2, 1, 3]]
    scores = [Scores(up, up[:, :0]), Scores(crossed, crossed[:, :0])]
    np.testing.assert_array_equal(audit.best_attackers(scores, labelings), [0, 1])


def test_each_labeling_is_attacked_by_its_own_choice(monkeypatch):
    """One attacker is right on the true validation labels alone, the other one on the permuted ones."""
    vectors, labels, keys = users()

    def right_on(chosen: slice, test_score: float) -> audit.Attacker:
        def attacker(data: AttackData) -> Scores:
            held_out = data.validation_labels
            validation = np.zeros((*held_out.shape, 2))
            validation[chosen, :, 1] = held_out[chosen]
            return Scores(validation, np.full((len(held_out), len(data.test), 2), test_score, np.float32))

        return attacker

    taken = []
    monkeypatch.setattr(audit, "summarise_attacks", lambda best, *_, **__: taken.append(best))
    one_of_two = {"true": right_on(slice(0, 1), 1.0), "permuted": right_on(slice(1, None), 2.0)}
    audit_inputs(vectors, labels, keys, one_of_two, FAST)
    (best,) = taken
    assert np.unique(best[0]).tolist() == [1.0]
    assert np.unique(best[1:]).tolist() == [2.0]


class TestRepeats:
    SETTINGS = dataclasses.replace(FAST, num_repeats=3)

    def test_each_repeat_has_other_folds(self):
        vectors, labels, keys = users()
        inputs = np.arange(len(vectors), dtype=np.float32)[:, None]
        tested = []

        def spy(data: AttackData) -> Scores:
            tested.append((len(data.test), data.seed))
            return logistic_scores(data)

        found = audit_inputs(inputs, labels, keys, {"spy": spy}, self.SETTINGS)
        folds = [fold_of(keys, self.SETTINGS, repeat) for repeat in range(3)]
        assert [size for size, _ in tested] == [count for fold in folds for count in np.bincount(fold)]
        assert len({seed for _, seed in tested}) == 12
        assert (folds[0] != folds[1]).mean() > 0.5 < (folds[1] != folds[2]).mean()
        assert (found.num_users, len(found.attacker_by_fold)) == (200, 12)

    def test_an_attacker_without_randomness_has_the_metrics_of_one_repeat(self):
        vectors, labels, keys = users(shift=1.0)

        def first_column(data: AttackData) -> Scores:
            parts = [np.stack([-part[:, 0], part[:, 0]], axis=1) for part in (data.validation, data.test)]
            return Scores(*(np.repeat(part[None], len(data.train_labels), axis=0) for part in parts))

        sign = np.sign(vectors)  # standardising preserves the sign
        once, thrice = (
            audit_inputs(sign, labels, keys, {"a": first_column}, dataclasses.replace(FAST, num_repeats=n))
            for n in (1, 3)
        )
        assert thrice.balanced_accuracy == pytest.approx(once.balanced_accuracy)
        assert thrice.null == pytest.approx(once.null)
        assert thrice.micro_f1 == pytest.approx(once.micro_f1)

    def test_metrics_vary_less_between_seeds(self):
        vectors, labels, keys = users(120)

        def spread(repeats: int) -> float:
            settings = dataclasses.replace(FAST, num_repeats=repeats, num_permutations=2, num_bootstrap=4)
            few = {"logistic": logistic_scores}
            of_seeds = (dataclasses.replace(settings, seed=seed) for seed in range(8))
            found = (audit_inputs(vectors, labels, keys, few, one) for one in of_seeds)
            return float(np.std([result.auc.value for result in found]))

        assert spread(6) < 0.8 * spread(1)

    @pytest.mark.parametrize(("num_users", "repeats"), [(2000, 1), (1500, 1), (1499, 2), (600, 3), (470, 4), (30, 4)])
    def test_few_users_are_attacked_more_often(self, num_users, repeats):
        assert AuditSettings.repeats_for(num_users) == repeats


def test_hidden_is_none_where_no_leak_could_be_detected():
    blind = cheap(*users())
    assert (blind.leaks, blind.hidden) == (False, True)
    for null in ((0.2, 1.0), (float("nan"), float("nan"))):
        assert dataclasses.replace(blind, null=null).hidden is None
        assert dataclasses.replace(blind, auc_null=null).hidden is None
    found = dataclasses.replace(cheap(*users(shift=3.0)), null=(0.2, 1.0))
    assert (found.leaks, found.hidden) == (True, False)


def test_the_null_has_its_level_with_cross_fitting_and_a_choice():
    """60 independent data sets; a null of permuted test labels alone would reject about 8."""
    settings = AuditSettings(num_folds=3, num_permutations=10, num_bootstrap=4)
    two = {"all": logistic_scores, "half": half_of_the_inputs}
    outside = []
    for seed in range(60):
        found = audit_inputs(*users(80, seed=seed), two, settings)
        outside.append(not found.null[0] <= found.balanced_accuracy.value <= found.null[1])
    assert sum(outside) <= 7  # 3 expected, standard deviation 1.7


def half_of_the_inputs(data: AttackData) -> Scores:
    halves = {name: getattr(data, name)[:, ::2] for name in ("train", "validation", "test")}
    return logistic_scores(dataclasses.replace(data, **halves))


def test_prediction_interval_is_students_and_has_its_level():
    low, high = prediction_interval(np.array([0.4, 0.5, 0.6]))
    reach = 4.30265 * 0.1 * np.sqrt(4 / 3)  # Student's t, 2 degrees of freedom, 97.5%
    assert (low, high) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-5)
    rng = np.random.default_rng(0)
    draws = rng.normal(0.5, 0.02, (2000, 11))
    inside = [low <= row[0] <= high for row in draws for low, high in [prediction_interval(row[1:])]]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_lists_that_follow_the_attribute_leak_and_others_do_not():
    _, labels, keys = users(300, 2)
    rng = np.random.default_rng(2)
    blind = rng.integers(0, 40, (300, 10))
    revealing = np.where(rng.random((300, 10)) < 0.3, 40 + labels.values[:, None], blind)
    found = audit_inputs(bag_of_titles(revealing, 42), labels, keys, attackers.LIST_ATTACKERS, FAST)
    assert found.balanced_accuracy.value > 0.8
    assert found.leaks
    found = audit_inputs(bag_of_titles(blind, 42), labels, keys, attackers.LIST_ATTACKERS, FAST)
    assert found.null[0] < found.balanced_accuracy.value < found.null[1]


def test_a_bag_counts_each_title_once():
    bag = bag_of_titles(np.array([[0, 2, 2], [-1, 1, -1]]), 3).toarray()
    np.testing.assert_array_equal(bag, [[1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, a, k: (v * np.nan, a, k), "finite"),
        (lambda v, a, k: (v * np.float32(1e25), a, k), "too large to be attacked"),
        (lambda v, a, k: (v, a._replace(values=a.values * 0 - 1), k), "0 users with a known value are too few"),
        (lambda v, a, k: (v, a._replace(values=a.values * 0), k), "all 200 users with a known value have the same one"),
    ],
)
def test_invalid_input_is_refused_before_training(change, message, monkeypatch):
    monkeypatch.setattr(audit, "audit_inputs", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        one(*change(*users()))

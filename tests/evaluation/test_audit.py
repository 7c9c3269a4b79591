"""Audit: a planted attribute is found, others are not, the null has its level, test users influence no choice."""

import dataclasses
import json

import numpy as np
import pytest

from mtrec_ray.evaluation import attackers, audit
from mtrec_ray.evaluation.attackers import AttackData, bag_of_titles, logistic_scores
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


def always(value, num_values=2):
    """An attacker that guesses one value for everybody."""

    def attacker(data: AttackData) -> np.ndarray:
        scores = np.full((len(data.train_labels), data.test.shape[0], num_values), np.log(0.1 / num_values))
        scores[..., value] = np.log(0.9)
        return scores.astype(np.float32)

    return attacker


def test_a_planted_attribute_is_found_and_independent_vectors_stay_inside_the_null():
    planted = one(*users(num_values=3, shift=2.0))
    for found in (planted.balanced_accuracy, planted.auc):
        assert found.value > found.null_high + 0.15
        assert found.low < found.value < found.high
    assert planted.leaks
    blind = one(*users(num_values=3))
    assert blind.balanced_accuracy.null_low < blind.balanced_accuracy.value < blind.balanced_accuracy.null_high
    assert blind.balanced_accuracy.chance == pytest.approx(1 / 3)
    assert not blind.leaks


def test_the_document_is_json_and_names_the_nulls():
    result = one(*users())
    document = json.loads(json.dumps(result.document(), allow_nan=False))
    for name in ("balanced_accuracy", "auc", "micro_f1"):
        assert document[name]["low"] <= document[name]["value"] <= document[name]["high"]
        assert document[name]["null_low"] < document[name]["null_high"]
        assert document["attackers"]["paper"][name] == result.by_attacker["paper"][name]
        assert document[name]["attacker"] in attackers.VECTOR_ATTACKERS
    assert [document[name]["chance"] for name in ("balanced_accuracy", "auc")] == [0.5, 0.5]
    assert document["micro_f1"]["attacker"] == "paper"


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
    assert np.isfinite([*found.balanced_accuracy[:6], *found.auc[:6]]).all()
    assert found.balanced_accuracy.chance == pytest.approx(1 / 3)


def test_every_user_is_test_once_and_parts_are_disjoint(monkeypatch):
    vectors, labels, keys = users()
    seen = []

    def spy(data: AttackData) -> np.ndarray:
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


def test_test_users_never_influence_their_scores(monkeypatch):
    """With another label for every user of a fold its attackers give the same scores."""
    vectors, labels, keys = users(shift=1.0)
    turned = labels._replace(values=np.where(fold_of(keys, FAST) == 0, 1 - labels.values, labels.values))
    taken = []

    def keep(attacks, _, folds, *__, **___):
        taken.append([attack.scores[folds == 0] for attack in attacks.values()])

    monkeypatch.setattr(audit, "summarise_attacks", keep)
    for values in (labels, turned):
        cheap(vectors, values, keys)
    np.testing.assert_allclose(*taken, atol=2e-2)


def test_an_audit_takes_the_best_attacker_of_each_metric():
    vectors, labels, keys = users(shift=1.0)
    several = {"one": always(1), "logistic": logistic_scores, "zero": always(0)}
    few = several, {"logistic": logistic_scores}
    found, alone = (audit_inputs(vectors, labels, keys, one, FAST) for one in few)
    assert (found.auc[:3], found.balanced_accuracy[:3]) == (alone.auc[:3], alone.balanced_accuracy[:3])
    raised = found.balanced_accuracy.null_low - alone.balanced_accuracy.null_low
    assert raised > 0  # where the logistic attacker has less than 0.5 of permuted labels, a constant has it
    assert found.by_attacker["zero"]["auc"] == 0.5
    assert found.balanced_accuracy.attacker == found.auc.attacker == "logistic"


def test_micro_f1_is_of_guesses_by_the_values_frequencies():
    """Scores that say nothing guess the most frequent value: the majority's rate, whatever balanced accuracy says."""
    vectors, labels, keys = users()
    rare = labels._replace(values=(np.arange(200) % 5 == 0).astype(np.int64))

    def nothing(data: AttackData) -> np.ndarray:
        return np.full((len(data.train_labels), len(data.test), 2), np.log(0.5), np.float32)

    found = audit_inputs(vectors, rare, keys, {"nothing": nothing}, FAST)
    assert found.micro_f1[:1] == (0.8,)
    assert found.micro_f1.chance == 0.8
    assert found.balanced_accuracy.value == 0.5


class TestRepeats:
    SETTINGS = dataclasses.replace(FAST, num_repeats=3)

    def test_each_repeat_has_other_folds(self):
        vectors, labels, keys = users()
        inputs = np.arange(len(vectors), dtype=np.float32)[:, None]
        tested = []

        def spy(data: AttackData) -> np.ndarray:
            tested.append((len(data.test), data.seed))
            return logistic_scores(data)

        found = audit_inputs(inputs, labels, keys, {"spy": spy}, self.SETTINGS)
        folds = [fold_of(keys, self.SETTINGS, repeat) for repeat in range(3)]
        assert [size for size, _ in tested] == [count for fold in folds for count in np.bincount(fold)]
        assert len({seed for _, seed in tested}) == 12
        assert (folds[0] != folds[1]).mean() > 0.5 < (folds[1] != folds[2]).mean()
        assert found.num_users == 200

    def test_an_attacker_without_randomness_has_the_metrics_of_one_repeat(self):
        vectors, labels, keys = users(shift=1.0)

        def first_column(data: AttackData) -> np.ndarray:
            scores = np.stack([-data.test[:, 0], data.test[:, 0]], axis=1)
            return np.repeat(scores[None], len(data.train_labels), axis=0)

        sign = np.sign(vectors)  # standardising preserves the sign
        once, thrice = (
            audit_inputs(sign, labels, keys, {"a": first_column}, dataclasses.replace(FAST, num_repeats=n))
            for n in (1, 3)
        )
        assert thrice.balanced_accuracy[:6] == pytest.approx(once.balanced_accuracy[:6])

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
    for high in (1.0, float("nan")):
        for metric in ("balanced_accuracy", "auc"):
            undecided = getattr(blind, metric)._replace(null_high=high)
            assert dataclasses.replace(blind, **{metric: undecided}).hidden is None
    leaking = cheap(*users(shift=3.0))
    found = dataclasses.replace(leaking, balanced_accuracy=leaking.balanced_accuracy._replace(null_high=1.0))
    assert (found.leaks, found.hidden) == (True, False)


def test_the_null_has_its_level_with_cross_fitting_and_a_maximum():
    """60 independent data sets; a null of permuted test labels alone would reject about 8."""
    settings = AuditSettings(num_folds=3, num_permutations=10, num_bootstrap=4)
    two = {"all": logistic_scores, "half": half_of_the_inputs}
    found = [audit_inputs(*users(80, seed=seed), two, settings) for seed in range(60)]
    for metric in ("balanced_accuracy", "auc"):
        figures = [getattr(result, metric) for result in found]
        assert sum(not one.null_low <= one.value <= one.null_high for one in figures) <= 7  # 3 expected, deviation 1.7
    assert sum(result.leaks for result in found) <= 7
    assert len({result.auc.attacker for result in found}) == 2


def half_of_the_inputs(data: AttackData) -> np.ndarray:
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
    assert found.balanced_accuracy.null_low < found.balanced_accuracy.value < found.balanced_accuracy.null_high


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

"""Attackers with many histories of each person: they find a value that a model writes, in folds of people."""

import dataclasses

import numpy as np
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation import audit
from mtrec_ray.evaluation.attackers import VECTOR_ATTACKERS, AttackData, logistic_scores
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings, audit_histories, audit_inputs, fold_of
from mtrec_ray.evaluation.history_attacker import deep_mlp_scores
from mtrec_ray.evaluation.intervals import interval

FAST = AuditSettings(num_folds=3, num_permutations=2, num_bootstrap=100)
NUM_HISTORIES = 16


def people(num_users=240, written=0.0, seed=0, num_titles=60, width=16):
    """Vectors of a discrete set, one point a title, that move by `written` with the value.

    The direction is the title's own, so that one vector of each of a few people shows nothing: (N, H, d), labels, keys.
    """
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, num_users)
    points, directions = rng.normal(size=(2, num_titles, width))
    title = rng.integers(0, num_titles, (num_users, NUM_HISTORIES))
    vectors = points[title] + written * (2 * values - 1)[:, None, None] * directions[title]
    keys = rng.integers(0, 2**63, num_users).astype(np.uint64)
    return vectors.astype(np.float32), AttributeLabels("a", values, 2), keys


def test_a_written_value_is_found_by_many_histories_of_few_people_alone():
    histories, labels, keys = people(written=0.2)
    settings = dataclasses.replace(FAST, num_permutations=4)
    found = audit_histories(histories, labels, keys, settings)
    assert found.auc.value > max(0.8, found.auc.null_high)
    assert found.auc.attacker == "deep_mlp"
    assert (found.num_users, found.num_permutations) == (240, 4)
    few = {name: VECTOR_ATTACKERS[name] for name in ("logistic", "mlp")}
    one_vector = audit_inputs(histories[:, 0], labels, keys, few, settings)
    assert one_vector.auc.value < found.auc.value - 0.15
    backbone = audit_histories(people()[0], labels, keys, settings)
    assert not backbone.auc.exceeds_null
    assert interval(found.auc_replicates - backbone.auc_replicates).low > 0.1  # paired: the same weights of people


def test_the_same_seed_gives_the_same_metrics_in_any_order():
    histories, labels, keys = people(120, written=0.3)
    found, shuffled = audit_histories(histories, labels, keys, FAST), np.random.default_rng(5).permutation(120)
    moved = labels._replace(values=labels.values[shuffled])
    assert audit_histories(histories[shuffled], moved, keys[shuffled], FAST) == found
    assert audit_histories(histories, labels, keys, dataclasses.replace(FAST, seed=1)) != found


def test_people_of_unknown_value_are_left_out():
    histories, labels, keys = people(120, written=0.3)
    known = np.arange(120) % 4 > 0
    hidden = labels._replace(values=np.where(known, labels.values, -1))
    found = audit_histories(histories, hidden, keys, FAST)
    assert found == audit_histories(histories[known], labels._replace(values=labels.values[known]), keys[known], FAST)
    assert found.num_users == known.sum()


def test_keys_decide_folds_and_all_histories_of_a_person_have_one_label():
    _, labels, keys = people(120)
    histories = np.repeat(np.arange(120, dtype=np.float32)[:, None, None], NUM_HISTORIES, axis=1)
    histories[:, 1:] += 0.25  # the tested one is told apart
    folds, seen = fold_of(keys, FAST), []

    def spy(data: AttackData) -> np.ndarray:
        seen.append((len(data.train), len(data.validation), len(data.test)))
        for part, given in ((data.train, data.train_labels), (data.validation, data.validation_labels)):
            assert (np.diff(part.reshape(-1, NUM_HISTORIES), axis=1)[:, 1:] == 0).all()
            of_people = given.reshape(len(given), -1, NUM_HISTORIES)
            assert (of_people == of_people[:, :, :1]).all()
        return logistic_scores(data)

    audit_inputs(histories[:, 0], labels, keys, {"spy": spy}, FAST, histories)
    counts = np.bincount(folds)
    expected = [(120 - counts[f] - counts[(f + 1) % 3], counts[(f + 1) % 3], counts[f]) for f in range(3)]
    assert seen == [(train * NUM_HISTORIES, validation * NUM_HISTORIES, test) for train, validation, test in expected]


def test_few_permutations_are_trained_and_folds_are_not_repeated(monkeypatch):
    used = []
    monkeypatch.setattr(audit, "audit_inputs", lambda *arguments: used.append(arguments[-2]))
    audit_histories(*people(60), dataclasses.replace(FAST, num_permutations=20, num_repeats=4))
    assert [(settings.num_permutations, settings.num_repeats) for settings in used] == [(4, 1)]


def test_scores_of_a_labeling_do_not_depend_on_others_and_are_log_probabilities():
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(size, 6)).astype(np.float32) for size in (300, 100, 50)]
    train, validation, test = ((part[:, 0] * part[:, 1] > 0).astype(np.int64) for part in inputs)
    labelings = (np.stack([rng.permutation(of), of]) for of in (train, validation))
    several = AttackData(*inputs, *labelings, num_values=3, seed=3)
    alone = dataclasses.replace(several, train_labels=train[None], validation_labels=validation[None])
    scores = deep_mlp_scores(several)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(np.exp(scores).sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(deep_mlp_scores(alone)[0], scores[1])
    assert (scores[1].argmax(axis=1) == test).mean() > 0.75


def test_histories_that_are_not_finite_are_refused():
    histories, labels, keys = people(60)
    histories[3, 5, 0] = np.nan
    with pytest.raises(UserError, match="the model diverged"):
        audit_histories(histories, labels, keys, FAST)

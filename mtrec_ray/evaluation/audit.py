"""Audit of representations: can any of several attackers predict an attribute?

1. Users with a known value are split into folds by a hash of their key. Fold f is attacked by attackers trained on all
   other folds but f + 1, which decides strengths and stopping.
2. An attacker's metrics pool its test users of all folds: recalls pooled, AUC within folds. Few users are attacked
   repeatedly, in other folds. Leakage is the maximum over attackers.
3. `audit_histories`: the same folds, for an attacker who has vectors of many histories of each person that it is
   trained on. It is tested on one vector a user, as the others are.

The null is the normal prediction interval of one more draw: labels are permuted over all known users and everything is
repeated, training and maximum included (Good 2005; Ojala & Garriga 2010). Permuting test labels alone would reject
about 13% at a level of 5%. The bootstrap interval resamples test users of the attacker with the maximum.

Legend: N users, H histories of each, d width, A values, P = 1 + num_permutations labelings (0 is the true one),
R = 1 + num_bootstrap.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.attackers import VECTOR_ATTACKERS, AttackData, Attacker, Matrix
from mtrec_ray.evaluation.audit_metrics import Attack, AuditResult, summarise_attacks
from mtrec_ray.evaluation.history_attacker import HISTORY_ATTACKERS, MAX_HISTORY_PERMUTATIONS
from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.hashing import mix

MAX_TRAIN_USERS = 20_000  # of a fold, and as many validation users, chosen by hash


@dataclass(frozen=True)
class AuditSettings:
    """How users are split and how much is computed."""

    num_folds: int = 5
    num_repeats: int = 1  # repetitions with other folds; metrics are means over them
    num_permutations: int = 20
    num_bootstrap: int = 200
    seed: int = 0

    @staticmethod
    def repeats_for(num_users: int) -> int:
        """Repetitions that give about 1,500 attacks, at most 4."""
        return min(4, -(-1500 // max(1, num_users)))


class AttributeLabels(NamedTuple):
    """Users' values of one attribute: (N,) int64 in [0, num_values), -1 = unknown."""

    name: str
    values: np.ndarray
    num_values: int


def audit_vectors(
    vectors: np.ndarray, labels: AttributeLabels, user_keys: np.ndarray, settings: AuditSettings
) -> AuditResult:
    """Audit vectors (N, d) for one attribute; keys decide folds and bootstrap weights.

    UserError before any training if a vector or its square is not finite, or there are too few users.
    """
    check_vectors(vectors)
    check_users(labels, user_keys, settings)
    return audit_inputs(vectors.astype(np.float32), labels, user_keys, VECTOR_ATTACKERS, settings)


def audit_histories(
    histories: np.ndarray, labels: AttributeLabels, user_keys: np.ndarray, settings: AuditSettings
) -> AuditResult:
    """Audit vectors of several histories of each user, (N, H, d), the one to be tested first.

    Attackers are trained on all H of other users. A permutation gives all histories of a person one label.
    """
    check_vectors(histories)
    permutations = min(settings.num_permutations, MAX_HISTORY_PERMUTATIONS)
    once = replace(settings, num_repeats=1, num_permutations=permutations)
    check_users(labels, user_keys, once)
    vectors = histories.astype(np.float32)
    return audit_inputs(vectors[:, 0], labels, user_keys, HISTORY_ATTACKERS, once, vectors)


def check_vectors(vectors: np.ndarray) -> None:
    """UserError if a vector (..., d) or its square is not finite."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.square(vectors.astype(np.float32)).sum(axis=-1)).all()
    if not finite:
        raise UserError("some users' vectors are not finite, or too large to be attacked: the model diverged")


def fold_of(user_keys: np.ndarray, settings: AuditSettings, repeat: int = 0) -> np.ndarray:
    """Fold of each user, independent of attribute, inputs and other users: (N,) -> (N,)."""
    drawn = mix(user_keys, "attackers' fold", settings.seed, repeat)
    return (drawn % np.uint64(settings.num_folds)).astype(np.int64)


def check_users(labels: AttributeLabels, keys: np.ndarray, settings: AuditSettings) -> None:
    """UserError if a fold has too few users, or the users too few values, to attack."""
    known = labels.values >= 0
    num_values = len(np.unique(labels.values[known]))
    folds = [fold_of(keys[known], settings, repeat) for repeat in range(settings.num_repeats)]
    smallest = min(np.bincount(of, minlength=settings.num_folds).min() for of in folds)
    if known.any() and num_values < 2:
        raise UserError(f"attribute {labels.name!r}: all {known.sum()} users with a known value have the same one")
    if smallest < 2:
        raise UserError(
            f"attribute {labels.name!r}: {known.sum()} users with a known value are too few to attack in "
            f"{settings.num_folds} folds (the smallest has {smallest})"
        )


def audit_inputs(
    inputs: Matrix,
    labels: AttributeLabels,
    keys: np.ndarray,
    attackers: dict[str, Attacker],
    settings: AuditSettings,
    histories: np.ndarray | None = None,
) -> AuditResult:
    """Audit one attribute with the given attackers; inputs (N, d), dense or sparse.

    With `histories`, (N, H, d), attackers are trained on these instead.
    """
    order = np.argsort(keys, kind="stable")  # results do not depend on the caller's order
    order = order[labels.values[order] >= 0]
    inputs, keys, num_values, repeats = inputs[order], keys[order], labels.num_values, settings.num_repeats
    histories = None if histories is None else histories[order]
    rng = np.random.default_rng([settings.seed % 2**63, len(order)])
    true_labels = labels.values[order]
    labelings = np.stack([true_labels, *(rng.permutation(true_labels) for _ in range(settings.num_permutations))])
    folds = np.stack([fold_of(keys, settings, repeat) for repeat in range(repeats)], axis=1)  # (N, repeats)
    folds = (folds + settings.num_folds * np.arange(repeats)).ravel()
    splits = [
        (test, repeat, data)
        for repeat in range(repeats)
        for test, data in _splits(inputs, keys, labelings, num_values, settings, repeat, histories)
    ]
    labelings, shape = labelings.repeat(repeats, axis=1), (len(labelings), len(order), repeats)
    attacks = {}
    for name, attacker in attackers.items():
        scores, guesses = np.zeros((*shape, num_values), np.float32), np.zeros(shape, np.int64)
        for test, repeat, data in splits:
            scores[:, test, repeat] = found = attacker(data)
            guesses[:, test, repeat] = (found + data.log_prior).argmax(axis=-1)
        scores, guesses = scores.reshape(*labelings.shape, num_values), guesses.reshape(labelings.shape)
        attacks[name] = Attack.measure(scores, guesses, labelings, folds)
    weights = poisson_weights(keys, settings.num_bootstrap, settings.seed).repeat(repeats, axis=1)
    return summarise_attacks(attacks, labelings[0], folds, weights, num_users=len(order))


def _splits(
    inputs: Matrix,
    keys: np.ndarray,
    labelings: np.ndarray,
    num_values: int,
    settings: AuditSettings,
    repeat: int,
    histories: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, AttackData]]:
    """(test users, data of the attackers) per fold; dense inputs standardised by train users."""
    folds = fold_of(keys, settings, repeat)
    rank = mix(keys, "attackers' sample", settings.seed)  # which users a maximum drops
    for fold in range(settings.num_folds):
        in_validation = folds == (fold + 1) % settings.num_folds
        test = np.flatnonzero(folds == fold)
        masks = (folds != fold) & ~in_validation, in_validation
        by_rank = (np.flatnonzero(mask) for mask in masks)
        train, validation = (np.sort(users[np.argsort(rank[users])[:MAX_TRAIN_USERS]]) for users in by_rank)
        parts = [inputs[part] for part in (train, validation, test)]
        of_train, of_validation = labelings[:, train], labelings[:, validation]
        if histories is not None:  # rows are histories, one user's after the other's
            parts[:2] = (histories[part].reshape(-1, histories.shape[-1]) for part in (train, validation))
            of_train, of_validation = (of.repeat(histories.shape[1], axis=1) for of in (of_train, of_validation))
        if isinstance(inputs, np.ndarray):
            mean, spread = parts[0].mean(axis=0), parts[0].std(axis=0)
            parts = [(part - mean) / np.where(spread > 1e-6, spread, 1) for part in parts]
        drawn = mix(np.array([fold + settings.num_folds * repeat], np.uint64), "attackers", settings.seed)
        seed = int(drawn[0] >> np.uint64(2))
        x_train, x_validation, x_test = parts
        yield test, AttackData(x_train, x_validation, x_test, of_train, of_validation, num_values, seed)

"""Audit of frozen representations: can the best of several attackers predict an attribute from them?

1. Users with a known value are split into `num_folds` folds by a hash of their key. Fold f is attacked by attackers
   trained on all other folds but f + 1, where strengths, stopping and the attacker itself are chosen. With `cross_fit`
   every fold is test once; without it fold 0 alone is.
2. Each fold uses the attacker with the highest macro AUC on its validation users.
3. Metrics pool all test users: recalls pooled, AUC within folds.
4. With few users everything is repeated with other folds and averaged: the choice of attacker alone moves an AUC of
   470 users by 0.02.

The null. Labels are permuted over all known users and everything above is repeated, training included. If inputs and
attribute are independent, the true labeling is one more such draw (Good 2005; Ojala & Garriga 2010), so the null covers
the choice of attacker and the dependence between folds. (Permuting test labels alone would reject about 13% at a level
of 5% with five folds.) It is the normal prediction interval of one more draw, which holds 95% at any number of
permutations B; B = 20 makes it 9% wider than B = infinity. Cost: num_folds x (1 + B) trainings of all attackers.

The bootstrap interval resamples test users with fixed attackers; whether there is leakage is answered by the null.

Legend: N users, d width, A values, P = 1 + num_permutations labelings (0 is the true one), R = 1 + num_bootstrap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluation.attackers import VECTOR_ATTACKERS, AttackData, Attacker, Matrix, Scores
from mtrec_ray.evaluation.audit_metrics import macro_auc
from mtrec_ray.evaluation.audit_result import AuditResult, summarise_attacks
from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.hashing import mix

REPEATED_USERS, MAX_REPEATS = 1500, 4


@dataclass(frozen=True)
class AuditSettings:
    """How users are split and how much is computed. Time grows with folds x (1 + num_permutations)."""

    num_folds: int = 5
    cross_fit: bool = True
    num_repeats: int | None = 1
    """Repetitions with other folds; metrics are means over them. None: enough for 1,500 attacks, at most 4."""
    num_permutations: int = 20
    num_bootstrap: int = 200
    max_train_users: int = 20_000
    """Maximum training users of a fold, and validation users, chosen by hash."""
    seed: int = 0

    def repeats(self, num_users: int) -> int:
        """Repetitions for so many users; one without `cross_fit`, as other folds would test users trained on."""
        if not self.cross_fit:
            return 1
        return self.num_repeats or min(MAX_REPEATS, -(-REPEATED_USERS // max(1, num_users)))


class AttributeLabels(NamedTuple):
    """Users' values of one attribute: (N,) int64 in [0, num_values), -1 = unknown."""

    name: str
    values: np.ndarray
    num_values: int


def audit_vectors(
    vectors: np.ndarray, labels: AttributeLabels, user_keys: np.ndarray, settings: AuditSettings
) -> AuditResult:
    """Audit vectors (N, d) for one attribute; (N,) uint64 keys decide folds, permutations and bootstrap weights.

    Raises ValueError before any training if shapes, values or keys do not fit.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ValueError(f"expected finite (N, d) vectors, found shape {vectors.shape}")
    check_users(labels, user_keys, len(vectors), settings)
    return audit_inputs(vectors.astype(np.float32), labels, user_keys, VECTOR_ATTACKERS, settings)


def fold_of(user_keys: np.ndarray, settings: AuditSettings, repeat: int = 0) -> np.ndarray:
    """Fold of each user, independent of attribute, representation and other users: (N,) -> (N,)."""
    drawn = mix(user_keys, "attackers' fold", settings.seed, repeat)
    return (drawn % np.uint64(settings.num_folds)).astype(np.int64)


def check_users(labels: AttributeLabels, keys: np.ndarray, num_rows: int, settings: AuditSettings) -> None:
    """Raise ValueError if the rows do not fit or a part of the split has too few users or values to attack."""
    name, values, num_values = labels
    if not num_rows == len(values) == len(keys):
        raise ValueError(f"attribute {name!r}: {num_rows} rows, {len(values)} values, {len(keys)} user keys")
    if len(np.unique(keys)) < len(keys):
        raise ValueError("user keys repeat: a user would be in training and test at once")
    if num_values < 2 or values.min(initial=-1) < -1 or values.max(initial=-1) >= num_values:
        raise ValueError(f"attribute {name!r}: values must be -1 or in [0, {num_values}), with two values or more")
    for repeat in range(settings.repeats(len(keys))):
        _check_folds(name, values, fold_of(keys, settings, repeat), settings)


def _check_folds(name: str, values: np.ndarray, folds: np.ndarray, settings: AuditSettings) -> None:
    known = values >= 0
    counts = np.bincount(folds[known], minlength=settings.num_folds)
    if counts.min() < 2 or len(np.unique(values[known])) < 2:
        raise ValueError(
            f"attribute {name!r}: {known.sum()} users with {len(np.unique(values[known]))} known values are too few to "
            f"attack in {settings.num_folds} folds (the smallest has {counts.min()})"
        )
    tested = range(settings.num_folds) if settings.cross_fit else [0]
    if all(len(np.unique(values[known & (folds == fold)])) < 2 for fold in tested):
        raise ValueError(f"attribute {name!r}: the users tested all have one value: attack more users")


def audit_inputs(
    inputs: Matrix,
    labels: AttributeLabels,
    user_keys: np.ndarray,
    attackers: Mapping[str, Attacker],
    settings: AuditSettings,
) -> AuditResult:
    """Audit one attribute with the given attackers; inputs (N, d), dense or sparse."""
    order = np.argsort(user_keys, kind="stable")  # results do not depend on the caller's order
    order = order[labels.values[order] >= 0]
    inputs = inputs[order]
    keys, num_values, repeats = user_keys[order], labels.num_values, settings.repeats(len(user_keys))
    labelings = _labelings(labels.values[order], settings)  # (P, N)
    true_scores = {name: np.zeros((len(order), repeats, num_values), np.float32) for name in attackers}
    best = np.zeros((*labelings.shape, repeats, num_values), np.float32)
    folds = np.stack([fold_of(keys, settings, repeat) for repeat in range(repeats)], axis=1)  # (N, repeats)
    names, by_fold = list(attackers), []
    for repeat in range(repeats):
        for test, data in _splits(inputs, keys, folds[:, repeat], labelings, num_values, settings, repeat):
            scores = [attacker(data) for attacker in attackers.values()]
            choice = best_attackers(scores, data.validation_labels)  # (P,)
            for name, of_attacker in zip(names, scores, strict=True):
                true_scores[name][test, repeat] = of_attacker.test[0]
            for labeling, attacker in enumerate(choice):
                best[labeling, test, repeat] = scores[attacker].test[labeling]
            by_fold.append(names[choice[0]])
    tested = np.arange(len(order)) if settings.cross_fit else np.flatnonzero(folds[:, 0] == 0)
    weights = poisson_weights(keys[tested], settings.num_bootstrap, settings.seed)
    return summarise_attacks(
        best[:, tested].reshape(len(labelings), -1, num_values),
        {name: scores[tested].reshape(-1, num_values) for name, scores in true_scores.items()},
        labelings[:, tested].repeat(repeats, axis=1),
        (folds[tested] + settings.num_folds * np.arange(repeats)).ravel(),
        weights.repeat(repeats, axis=1),
        tuple(by_fold),
        num_users=len(tested),
    )


def best_attackers(scores: Sequence[Scores], validation_labels: np.ndarray) -> np.ndarray:
    """Index of the attacker with the highest macro AUC on validation users, the first on ties, per labeling: (P,).

    AUC uses every pair of users, so it varies less than accuracy on few validation users.
    """
    num_users = validation_labels.shape[1]
    weights, fold = np.ones((1, num_users)), np.zeros(num_users, np.int64)
    auc = [
        [macro_auc(of, labels, weights, fold)[0] for of, labels in zip(s.validation, validation_labels, strict=True)]
        for s in scores
    ]
    return np.argmax(np.nan_to_num(auc, nan=-1.0), axis=0)


def _labelings(values: np.ndarray, settings: AuditSettings) -> np.ndarray:
    """True values and permutations of them over all users: (N,) -> (P, N)."""
    rng = np.random.default_rng([settings.seed % 2**63, len(values)])
    return np.stack([values, *(rng.permutation(values) for _ in range(settings.num_permutations))])


def _splits(
    inputs: Matrix,
    keys: np.ndarray,
    folds: np.ndarray,
    labelings: np.ndarray,
    num_values: int,
    settings: AuditSettings,
    repeat: int,
) -> Iterator[tuple[np.ndarray, AttackData]]:
    """(indices of the test users, data of the attackers) per test fold; dense inputs standardised by train users."""
    rank = np.argsort(np.argsort(mix(keys, "attackers' sample", settings.seed)))  # which users a maximum drops
    for fold in range(settings.num_folds if settings.cross_fit else 1):
        in_validation = folds == (fold + 1) % settings.num_folds
        test = np.flatnonzero(folds == fold)
        masks = (folds != fold) & ~in_validation, in_validation
        train, validation = (_first(np.flatnonzero(mask), rank, settings) for mask in masks)
        parts = [inputs[part] for part in (train, validation, test)]
        if isinstance(inputs, np.ndarray):
            mean, spread = parts[0].mean(axis=0), parts[0].std(axis=0)
            parts = [(part - mean) / np.where(spread > 1e-6, spread, 1) for part in parts]
        x_train, x_validation, x_test = parts
        drawn = mix(np.array([fold + settings.num_folds * repeat], np.uint64), "attackers", settings.seed)
        seed = int(drawn[0] >> np.uint64(2))
        yield (
            test,
            AttackData(x_train, x_validation, x_test, labelings[:, train], labelings[:, validation], num_values, seed),
        )


def _first(users: np.ndarray, rank: np.ndarray, settings: AuditSettings) -> np.ndarray:
    """At most `max_train_users` of the users, by rank, in their order."""
    return np.sort(users[np.argsort(rank[users])[: settings.max_train_users]])

"""Audit of frozen representations: can an attribute be read from them, by the best of several attackers?

1. Users whose value is known are split by a hash of their key into `num_folds` folds. Fold f is attacked by attackers
   that learn on all other folds but f + 1, where strengths, stopping and the attacker itself are chosen. With
   `cross_fit` every fold is test once; without it fold 0 alone is test, and the three parts are disjoint for good.
2. Each fold's attacker is the one with the highest macro AUC on its validation users (AUC uses every pair of users,
   so it errs less than accuracy on a small validation part). Never across folds: the validation users of one fold are
   the test users of another.
3. Figures are of all test users together, as `audit_metrics` counts them: recalls pooled, AUC within folds.
4. Of few users, all of this is repeated with other folds, and figures are means: which attacker is chosen, and what
   the networks happen to find, alone move an AUC of 470 people by 0.02. On MovieLens-100K the AUC of what was not to be
   hidden moved by more than 0.03 in 13 of 27 figures of 300 people attacked once, in 3 of people attacked four times.

The null. Labels are permuted over all known users and everything above is done again: all attackers are trained, each
chooses its strength and stopping, the best is chosen on permuted validation labels and tested on permuted test labels.
If vectors and attribute are independent, the true labeling is one more such draw (Good 2005; Ojala & Garriga 2010), so
the null covers the choice among attackers and the dependence between folds. The cheap alternative, permuting the
labels of the test users alone, is exact for a single split but not for cross-fitting: users i and j, each in the
other's training part, enter the figure twice with the same product of labels, which widens its distribution (by up to
sqrt(2) for linear attackers; with five folds a test at 5% would reject about 13%). What remains to be saved is the
number of permutations B: a figure over hundreds of users is close to normal, so instead of empirical quantiles, which
would need B of a thousand, the null is the normal prediction interval of one more draw, mean +- t_{B-1}(97.5%) s
sqrt(1 + 1/B), which holds 95% at any B; B = 20 makes it 9% wider than B = infinity would. Cost: all attackers in
num_folds x (1 + B) trainings; attackers.py trains the labelings side by side.

The bootstrap interval resamples test users with the attackers as they are: it shows how far the figure would move
with other test users, not with other training users. The question "is there leakage" is answered by the null.

Legend: N users, d width, A values, P = 1 + num_permutations labelings (0 is the true one), R = 1 + num_bootstrap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluation.attackers import VECTOR_ATTACKERS, AttackData, Attacker, Matrix, Scores
from mtrec_ray.evaluation.audit_metrics import macro_auc
from mtrec_ray.evaluation.audit_result import AuditResult, summarise
from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.hashing import mix

REPEATED_USERS, MOST_REPEATS = 1500, 4


@dataclass(frozen=True)
class AuditSettings:
    """How users are split and how much is computed. Time grows with folds x (1 + num_permutations)."""

    num_folds: int = 5
    cross_fit: bool = True
    num_repeats: int | None = 1
    """Times all is done with other folds, where every fold is test once; figures are means over them. None: as many as
    make `REPEATED_USERS` attacks, at most `MOST_REPEATS`."""
    num_permutations: int = 20
    num_bootstrap: int = 200
    max_train_users: int = 20_000
    """A fold's training users beyond this are left out, by hash; its validation users too, its test users never."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_folds < 3:
            raise ValueError(f"num_folds={self.num_folds}: train, validation and test need three folds or more")
        if self.num_repeats is not None and self.num_repeats < 1:
            raise ValueError(f"num_repeats={self.num_repeats}: attack at least once")
        if self.num_permutations < 2:
            raise ValueError(f"num_permutations={self.num_permutations}: a spread needs two or more")

    def repeats(self, num_users: int) -> int:
        """How often so many users are attacked.

        Once where a single fold is tested: another split would test users who trained the attackers of the first.
        """
        if not self.cross_fit:
            return 1
        return self.num_repeats or min(MOST_REPEATS, -(-REPEATED_USERS // max(1, num_users)))


class Attribute(NamedTuple):
    """Values of one attribute: (N,) int64 in [0, num_values), -1 = unknown."""

    values: np.ndarray
    num_values: int


def audit_vectors(
    representations: Mapping[str, np.ndarray],
    attributes: Mapping[str, Attribute],
    user_keys: np.ndarray,
    settings: AuditSettings | None = None,
) -> dict[tuple[str, str], AuditResult]:
    """Audit every representation for every attribute: name -> (N, d) float32, name -> values, (N,) uint64 keys.

    Returns (representation, attribute) -> result. The same users, folds, permutations and bootstrap weights serve all
    representations. Each pair is independent of the others: call with one of each to run them as parallel tasks.
    Raises ValueError before any training if shapes, values or keys are unfit.
    """
    settings = settings or AuditSettings()
    for name, vectors in representations.items():
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError(f"representation {name!r}: expected finite (N, d) vectors, found shape {vectors.shape}")
    for name, attribute in attributes.items():
        for vectors in representations.values():
            check_users(name, attribute, user_keys, vectors.shape[0], settings)
    return {
        (name, of): audit_inputs(vectors.astype(np.float32), attribute, user_keys, VECTOR_ATTACKERS, settings)
        for name, vectors in representations.items()
        for of, attribute in attributes.items()
    }


def fold_of(user_keys: np.ndarray, settings: AuditSettings, repeat: int = 0) -> np.ndarray:
    """Fold of each user, the same whatever the attribute, the representation and the other users: (N,) -> (N,)."""
    drawn = mix(user_keys, "attackers' fold", settings.seed, repeat)
    return (drawn % np.uint64(settings.num_folds)).astype(np.int64)


def check_users(name: str, attribute: Attribute, keys: np.ndarray, num_rows: int, settings: AuditSettings) -> None:
    """Raise ValueError if the rows do not fit or a part of the split has too few users or values to attack."""
    values, num_values = attribute
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
    attribute: Attribute,
    user_keys: np.ndarray,
    attackers: Mapping[str, Attacker],
    settings: AuditSettings,
) -> AuditResult:
    """One attribute from one kind of input, dense or sparse: (N, d), (N,) values, (N,) uint64 keys."""
    order = np.argsort(user_keys, kind="stable")  # one order of users, whatever the caller's
    order = order[attribute.values[order] >= 0]
    keys, num_values, repeats = user_keys[order], attribute.num_values, settings.repeats(len(user_keys))
    labelings = _labelings(attribute.values[order], settings)  # (P, N)
    found = {name: np.zeros((len(order), repeats, num_values), np.float32) for name in attackers}
    best = np.zeros((*labelings.shape, repeats, num_values), np.float32)
    folds = np.stack([fold_of(keys, settings, repeat) for repeat in range(repeats)], axis=1)  # (N, repeats)
    names, by_fold = list(attackers), []
    for repeat in range(repeats):
        for test, data in _splits(inputs, order, keys, folds[:, repeat], labelings, num_values, settings, repeat):
            scores = [attacker(data) for attacker in attackers.values()]
            choice = choose(scores, data.validation_labels)  # (P,)
            for name, of_attacker in zip(names, scores, strict=True):
                found[name][test, repeat] = of_attacker.test[0]
            for labeling, attacker in enumerate(choice):
                best[labeling, test, repeat] = scores[attacker].test[labeling]
            by_fold.append(names[choice[0]])
    tested = np.flatnonzero(folds[:, 0] >= 0 if settings.cross_fit else folds[:, 0] == 0)
    weights = poisson_weights(keys[tested], settings.num_bootstrap, settings.seed)
    return summarise(
        best[:, tested].reshape(len(labelings), -1, num_values),
        {name: scores[tested].reshape(-1, num_values) for name, scores in found.items()},
        labelings[:, tested].repeat(repeats, axis=1),
        (folds[tested] + settings.num_folds * np.arange(repeats)).ravel(),
        weights.repeat(repeats, axis=1),
        tuple(by_fold),
        num_users=len(tested),
    )


def choose(scores: Sequence[Scores], validation_labels: np.ndarray) -> np.ndarray:
    """Attacker with the highest macro AUC on validation users, for each labeling; the first one on a draw: -> (P,)."""
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
    order: np.ndarray,
    keys: np.ndarray,
    folds: np.ndarray,
    labelings: np.ndarray,
    num_values: int,
    settings: AuditSettings,
    repeat: int,
) -> Iterator[tuple[np.ndarray, AttackData]]:
    """(places of the test users, data of the attackers) of each test fold; dense inputs standardised by train users."""
    rank = np.argsort(np.argsort(mix(keys, "attackers' sample", settings.seed)))  # who stays if there are too many
    for fold in range(settings.num_folds if settings.cross_fit else 1):
        held = folds == (fold + 1) % settings.num_folds
        test = np.flatnonzero(folds == fold)
        train, validation = (_first(np.flatnonzero(m), rank, settings) for m in ((folds != fold) & ~held, held))
        parts = [inputs[order[part]] for part in (train, validation, test)]
        if isinstance(inputs, np.ndarray):
            mean, spread = parts[0].mean(axis=0), parts[0].std(axis=0)
            parts = [(part - mean) / np.where(spread > 1e-6, spread, 1) for part in parts]
        drawn = mix(np.array([fold + settings.num_folds * repeat], np.uint64), "attackers", settings.seed)
        yield (
            test,
            AttackData(
                train=parts[0],
                validation=parts[1],
                test=parts[2],
                train_labels=labelings[:, train],
                validation_labels=labelings[:, validation],
                num_values=num_values,
                seed=int(drawn[0] >> np.uint64(2)),
            ),
        )


def _first(users: np.ndarray, rank: np.ndarray, settings: AuditSettings) -> np.ndarray:
    """At most `max_train_users` of the users, by rank, in their order."""
    return np.sort(users[np.argsort(rank[users])[: settings.max_train_users]])

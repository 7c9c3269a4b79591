"""Metrics of an audit: leakage with its null.

Legend: N users, M attacks on them, A attribute values, P labelings (0 is the true one, the others are permuted), R
replicates (`intervals.poisson_weights`, the plain sample at index 0).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from mtrec_ray.evaluation.attackers import PAPER
from mtrec_ray.evaluation.intervals import LEVEL, interval, nan_mean, ratio

LEAKAGE_METRICS = ("balanced_accuracy", "auc", "micro_f1")
ABOUT = ("num_users", "num_permutations", "leaks", "hidden")  # what `AuditResult.document` holds beside


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_values: int) -> np.ndarray:
    """Mean recall over the values that occur in a replicate: (N,), (N,), (R, N) -> (R,)."""
    truth = labels[:, None] == np.arange(num_values)  # (N, A)
    weights = weights.astype(np.float64)
    total = weights @ truth
    return nan_mean(ratio(weights @ (truth & (predictions == labels)[:, None]), total).T)


def micro_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Micro-averaged F1, paper B's metric, here the accuracy: (N,), (N,), (R, N) -> (R,)."""
    weights = weights.astype(np.float64)
    return ratio(weights @ (predictions == labels), weights.sum(axis=1))


def macro_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Mean one-vs-rest AUC, ties one half: (N, A), (N,), (R, N), (N,) folds -> (R,).

    Attackers of different folds have no common score scale, so only pairs within a fold count. Values without any pair
    are left out. An AUC below one half is not flipped: a sign chosen on test users is no attack.
    """
    num_values = scores.shape[1]
    won, pairs = np.zeros((2, len(weights), num_values))
    for fold in np.unique(folds):
        users = np.flatnonzero(folds == fold)
        for value in np.unique(labels[users]):
            more = _won_pairs(scores[users, value], labels[users] == value, weights[:, users])
            won[:, value] += more[0]
            pairs[:, value] += more[1]
    return nan_mean(ratio(won, pairs).T)


def _won_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of correctly ordered (positive, negative) pairs, and of all: (R,) each."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # first of each group of equal scores
    ordered = weights[:, order].astype(np.float64)
    up = np.add.reduceat(ordered * positive[order], ties, axis=1)
    down = np.add.reduceat(ordered * ~positive[order], ties, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


class Attack(NamedTuple):
    """What one attacker predicts from the true labeling, and its metrics on every labeling.

    M attacks: a user tested several times, in other folds, has several.
    """

    scores: np.ndarray  # (M, A) log probabilities as if all values were equally frequent
    guesses: np.ndarray  # (M,) most probable values, frequent ones more probable
    metrics: np.ndarray  # (3, P) `LEAKAGE_METRICS`

    @staticmethod
    def measure(scores: np.ndarray, guesses: np.ndarray, labelings: np.ndarray, folds: np.ndarray) -> "Attack":
        """From (P, M, A) scores, (P, M) guesses and labels, (M,) folds."""
        plain = np.ones((1, len(folds)))
        found = [
            [replicates(metric, *of_labeling, folds, plain)[0] for metric in LEAKAGE_METRICS]
            for of_labeling in zip(scores, guesses, labelings, strict=True)
        ]
        return Attack(scores[0], guesses[0], np.transpose(found))


class AttackFigure(NamedTuple):
    """The largest value of a metric over attackers, with the null of that largest value."""

    value: float
    low: float  # 95% bootstrap interval of the attacker that has the largest value
    high: float
    chance: float  # value of a constant prediction
    null_low: float  # 95% of the largest value without leakage
    null_high: float
    attacker: str

    @property
    def exceeds_null(self) -> bool:
        return self.value > self.null_high


@dataclass(frozen=True)
class AuditResult:
    """How well attackers predict one attribute from one representation."""

    num_users: int  # test users
    num_permutations: int  # draws behind each null
    balanced_accuracy: AttackFigure
    auc: AttackFigure
    micro_f1: AttackFigure  # of paper B's attacker, where it is among them
    by_attacker: Mapping[str, Mapping[str, float]]  # `LEAKAGE_METRICS` of each attacker
    auc_replicates: np.ndarray = field(compare=False, repr=False)  # (R,) of the attacker with the largest AUC

    @property
    def leaks(self) -> bool:
        """Whether an attacker exceeds the null, in balanced accuracy or in AUC."""
        return self.balanced_accuracy.exceeds_null or self.auc.exceeds_null

    @property
    def hidden(self) -> bool | None:
        """Whether nothing leaks; None for so few users that the null reaches 1."""
        detectable = self.balanced_accuracy.null_high < 1 and self.auc.null_high < 1  # False of NaN too
        return not self.leaks if detectable or self.leaks else None

    def document(self) -> dict[str, Any]:
        about = {name: getattr(self, name) for name in ABOUT}
        metrics = {metric: getattr(self, metric)._asdict() for metric in LEAKAGE_METRICS}
        return about | metrics | {"attackers": dict(self.by_attacker)}


def summarise_attacks(
    attacks: Mapping[str, Attack], labels: np.ndarray, folds: np.ndarray, weights: np.ndarray, num_users: int
) -> AuditResult:
    """The maximum over attackers of each metric: (M,) true labels and folds, (R, M) weights."""
    chance = {
        "balanced_accuracy": 1 / len(np.unique(labels)),
        "auc": 0.5,
        "micro_f1": float(np.bincount(labels).max() / len(labels)),  # the majority's rate
    }
    found, auc_replicates = {}, np.array([])
    for number, metric in enumerate(LEAKAGE_METRICS):
        names = [PAPER] if metric == "micro_f1" and PAPER in attacks else list(attacks)
        drawn = np.nan_to_num([attacks[name].metrics[number] for name in names], nan=-np.inf)  # (attackers, P)
        best = names[drawn[:, 0].argmax()]
        of_best = replicates(metric, attacks[best].scores, attacks[best].guesses, labels, folds, weights)
        auc_replicates = of_best if metric == "auc" else auc_replicates
        null = prediction_interval(drawn[:, 1:].max(axis=0))
        found[metric] = AttackFigure(*interval(of_best), chance[metric], *null, best)
    return AuditResult(
        num_users=num_users,
        num_permutations=attacks[best].metrics.shape[1] - 1,
        by_attacker={
            name: dict(zip(LEAKAGE_METRICS, attack.metrics[:, 0].tolist(), strict=True))
            for name, attack in attacks.items()
        },
        auc_replicates=auc_replicates,
        **found,
    )


def replicates(
    metric: str, scores: np.ndarray, guesses: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """One of `LEAKAGE_METRICS` in each replicate: (M, A) scores, (R, M) weights -> (R,)."""
    if metric == "auc":
        return macro_auc(scores, labels, weights, folds)
    if metric == "micro_f1":
        return micro_f1(guesses, labels, weights)
    return balanced_accuracy(scores.argmax(axis=-1), labels, weights, scores.shape[-1])


def prediction_interval(draws: np.ndarray) -> tuple[float, float]:
    """95% interval of one more draw of a normal distribution: (B,) -> bounds within [0, 1]."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return float("nan"), float("nan")
    reach = stdtrit(len(draws) - 1, (1 + LEVEL) / 2) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    return float(max(draws.mean() - reach, 0)), float(min(draws.mean() + reach, 1))

"""Metrics of an audit: leakage with its null, and NDCG by attribute value.

Legend: N users, A attribute values, P labelings (0 is the true one, the others are permuted), R replicates
(`intervals.poisson_weights`, the plain sample at index 0).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from mtrec_ray.evaluation.intervals import LEVEL, Interval, interval, nan_mean, poisson_weights, ratio

LEAKAGE_METRICS = ("balanced_accuracy", "auc", "micro_f1")
ABOUT = ("attacker", "num_users", "num_permutations", "leaks", "hidden")  # what `AuditResult.document` holds beside
NUM_GAP_PERMUTATIONS, MIN_GAP_USERS = 300, 10


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


class NdcgGap(NamedTuple):
    """The largest difference of mean NDCG between the users of two attribute values."""

    gap: Interval
    null_high: float  # 95% quantile of the largest gap when values are permuted over users: a smaller gap may be chance
    best: int
    worst: int


def largest_ndcg_gap(
    ndcg: np.ndarray, values: np.ndarray, num_values: int, keys: np.ndarray, num_bootstrap: int = 200, seed: int = 0
) -> NdcgGap | None:
    """Largest NDCG gap: (N,) NDCG, NaN = no test event; (N,) values, -1 = unknown.

    Values with fewer than `MIN_GAP_USERS` users take no part; None if fewer than two values remain.
    """
    order = np.argsort(keys, kind="stable")
    order = order[(values[order] >= 0) & np.isfinite(ndcg[order])]
    ndcg, values = ndcg[order].astype(np.float64), values[order]
    truth = values[:, None] == np.arange(num_values)  # (N, A)
    counts = truth.sum(axis=0)
    compared = np.flatnonzero(counts >= MIN_GAP_USERS)
    if len(compared) < 2:
        return None
    weights = poisson_weights(keys[order], num_bootstrap, seed).astype(np.float64)
    means = ratio(weights @ (truth * ndcg[:, None]), weights @ truth)  # (R, A)
    best, worst = (int(compared[pick(means[0, compared])]) for pick in (np.argmax, np.argmin))
    rng = np.random.default_rng([seed, num_values])
    null = []
    for _ in range(NUM_GAP_PERMUTATIONS):
        shuffled = rng.permutation(ndcg) @ truth[:, compared] / counts[compared]
        null.append(shuffled.max() - shuffled.min())
    return NdcgGap(interval(means[:, best] - means[:, worst]), float(np.quantile(null, 0.95)), best, worst)


def _won_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of correctly ordered (positive, negative) pairs, and of all: (R,) each."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # first of each group of equal scores
    ordered = weights[:, order].astype(np.float64)
    up = np.add.reduceat(ordered * positive[order], ties, axis=1)
    down = np.add.reduceat(ordered * ~positive[order], ties, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


@dataclass(frozen=True)
class AuditResult:
    """How well the chosen attackers predict one attribute from one representation."""

    attacker: str  # the one chosen in most folds
    attacker_by_fold: tuple[str, ...]
    num_users: int  # test users
    num_permutations: int  # draws behind each null
    balanced_accuracy: Interval
    auc: Interval
    micro_f1: Interval
    majority_rate: float  # Micro-F1 of a constant prediction
    chance: float  # balanced accuracy of a constant prediction: 1 / (values that occur)
    null: tuple[float, float]  # 95% of the balanced accuracies without leakage
    auc_null: tuple[float, float]
    by_attacker: Mapping[str, Mapping[str, float]]  # `LEAKAGE_METRICS` of each attacker, chosen or not

    @property
    def leaks(self) -> bool:
        """Whether the best attacker exceeds the null, in balanced accuracy or in AUC."""
        return self.balanced_accuracy.value > self.null[1] or self.auc.value > self.auc_null[1]

    @property
    def hidden(self) -> bool | None:
        """Whether nothing leaks; None for so few users that the null reaches 1."""
        detectable = self.null[1] < 1 and self.auc_null[1] < 1  # False of NaN too
        return not self.leaks if detectable or self.leaks else None

    def document(self) -> dict[str, Any]:
        """JSON-able form; `chance` of each metric is its value without information."""
        (low, high), (auc_low, auc_high) = self.null, self.auc_null
        extra = {
            "balanced_accuracy": {"chance": self.chance, "null_low": low, "null_high": high},
            "auc": {"chance": 0.5, "null_low": auc_low, "null_high": auc_high},
            "micro_f1": {"chance": self.majority_rate},
        }
        about = {name: getattr(self, name) for name in ABOUT}
        metrics = {metric: getattr(self, metric)._asdict() | extra[metric] for metric in LEAKAGE_METRICS}
        return about | metrics | {"attackers": dict(self.by_attacker)}


def summarise_attacks(
    best: np.ndarray,
    by_attacker: Mapping[str, np.ndarray],
    labelings: np.ndarray,
    folds: np.ndarray,
    weights: np.ndarray,
    by_fold: tuple[str, ...],
    num_users: int,
) -> AuditResult:
    """Metrics from log probabilities: chosen attackers' (P, N, A), each attacker's (N, A).

    `labelings` (P, N), `folds` (N,), `weights` (R, N). A user tested several times, in other folds, has several rows.
    """
    labels, plain = labelings[0], weights[:1]
    drawn = [_replicates(s, y, folds, plain)[:, 0] for s, y in zip(best[1:], labelings[1:], strict=True)]
    nulls = [prediction_interval(draws) for draws in np.stack(drawn, axis=1)]
    return AuditResult(
        **dict(zip(LEAKAGE_METRICS, map(interval, _replicates(best[0], labels, folds, weights)), strict=True)),
        attacker=Counter(by_fold).most_common(1)[0][0],
        attacker_by_fold=by_fold,
        num_users=num_users,
        num_permutations=len(labelings) - 1,
        majority_rate=float(np.bincount(labels).max() / len(labels)),
        chance=1 / len(np.unique(labels)),
        null=nulls[0],
        auc_null=nulls[1],
        by_attacker={
            name: dict(zip(LEAKAGE_METRICS, _replicates(s, labels, folds, plain)[:, 0].tolist(), strict=True))
            for name, s in by_attacker.items()
        },
    )


def _replicates(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`LEAKAGE_METRICS` of scores (N, A) in each replicate: (3, R)."""
    predictions, num_values = scores.argmax(axis=-1), scores.shape[-1]
    accuracy = balanced_accuracy(predictions, labels, weights, num_values)
    return np.stack([accuracy, macro_auc(scores, labels, weights, folds), micro_f1(predictions, labels, weights)])


def prediction_interval(draws: np.ndarray) -> tuple[float, float]:
    """95% interval of one more draw of a normal distribution: (B,) -> bounds within [0, 1]."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return float("nan"), float("nan")
    reach = stdtrit(len(draws) - 1, (1 + LEVEL) / 2) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    return float(max(draws.mean() - reach, 0)), float(min(draws.mean() + reach, 1))

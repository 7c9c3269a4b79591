"""Figures of the fairness audit: leakage of predictions, NDCG by attribute value; each over bootstrap weights of users.

Every replicate array has the plain sample (all weights 1) in place 0, ready for `intervals.interval`.

Legend: N users, A attribute values, R = 1 + num_bootstrap replicates (`bootstrap.poisson_weights`).
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.intervals import Interval, interval


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_values: int) -> np.ndarray:
    """Mean recall over the values that occur: (N,) int, (N,) int, (R, N) -> (R,) float64.

    Recalls count hard predictions, so users of several folds are pooled: a value absent from one fold is counted by
    the others. A value with no weight in a replicate is left out of that replicate's mean.
    """
    truth = labels[:, None] == np.arange(num_values)  # (N, A)
    weights = weights.astype(np.float64)
    total = weights @ truth
    recall = _ratio(weights @ (truth & (predictions == labels)[:, None]), total)
    return _mean_over_values(recall)


def micro_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Micro-averaged F1, paper B's figure: (N,), (N,), (R, N) -> (R,).

    With one label and one prediction a user, false positives and false negatives are the same number, so it equals
    accuracy. It says nothing below the majority value's share.
    """
    weights = weights.astype(np.float64)
    return _ratio(weights @ (predictions == labels), weights.sum(axis=1))


def macro_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Mean over values of the one-vs-rest AUC, ties one half: (N, A), (N,), (R, N), (N,) fold of each user -> (R,).

    Attackers of different folds share no score scale: pooling their scores would rank users of one attacker against
    users of another, which drags the AUC of a good attack down and lets that of a bad one fall below one half. So only
    pairs within a fold are counted, and a value's AUC is its won pairs over all folds divided by its pairs (Mann &
    Whitney 1947, stratified): a fold without the value has no pairs and no say. Values without any pair are left out;
    an AUC below one half stays there, for a sign chosen on test users is no attack.
    """
    num_values = scores.shape[1]
    won, pairs = np.zeros((2, len(weights), num_values))
    for fold in np.unique(folds):
        users = np.flatnonzero(folds == fold)
        for value in np.unique(labels[users]):
            more = _won_pairs(scores[users, value], labels[users] == value, weights[:, users])
            won[:, value] += more[0]
            pairs[:, value] += more[1]
    return _mean_over_values(_ratio(won, pairs))


def majority_rate(labels: np.ndarray) -> float:
    """Share of the most frequent value: the micro-F1 of an attacker that looks at nothing; (N,) -> float."""
    return float(np.bincount(labels).max() / len(labels))


@dataclass(frozen=True)
class GroupGaps:
    """NDCG of the users of each attribute value, and the largest difference between two values."""

    ndcg: tuple[Interval, ...]
    """(A,) mean NDCG with its 95% bootstrap interval; NaN for a value without users."""
    num_users: tuple[int, ...]
    best: int
    worst: int
    gap: Interval
    """NDCG of `best` minus that of `worst`; the interval is that of this pair."""
    gap_null_high: float
    """95% quantile of the largest gap when values are permuted over users: a gap below it may be chance."""


def group_gaps(
    ndcg: np.ndarray,
    values: np.ndarray,
    num_values: int,
    user_keys: np.ndarray,
    num_bootstrap: int = 200,
    min_users: int = 10,
    seed: int = 0,
) -> GroupGaps:
    """NDCG by value and its gaps: (N,) float with NaN = no test event, (N,) int64 with -1 = unknown, (N,) uint64 keys.

    The largest of many noisy differences is large even where nothing differs, and its bootstrap interval never reaches
    0; hence the permutation quantile beside it (300 permutations, nothing is trained). Values with fewer than
    `min_users` users are listed but take no part in the gap. Raises ValueError if fewer than two values are left.
    """
    order = np.argsort(user_keys, kind="stable")
    order = order[(values[order] >= 0) & np.isfinite(ndcg[order])]
    ndcg, values = ndcg[order].astype(np.float64), values[order]
    truth = values[:, None] == np.arange(num_values)  # (N, A)
    counts = truth.sum(axis=0)
    compared = np.flatnonzero(counts >= max(min_users, 1))
    if len(compared) < 2:
        raise ValueError(f"{len(compared)} values have {min_users} users or more: a gap needs two (lower min_users)")
    weights = poisson_weights(user_keys[order], num_bootstrap, seed).astype(np.float64)
    means = _ratio(weights @ (truth * ndcg[:, None]), weights @ truth)  # (R, A)
    best, worst = (int(compared[pick(means[0, compared])]) for pick in (np.argmax, np.argmin))
    rng = np.random.default_rng([seed, num_values])
    null = []
    for _ in range(300):
        shuffled = rng.permutation(ndcg) @ truth[:, compared] / counts[compared]
        null.append(shuffled.max() - shuffled.min())
    return GroupGaps(
        ndcg=tuple(interval(means[:, value]) for value in range(num_values)),
        num_users=tuple(int(count) for count in counts),
        best=best,
        worst=worst,
        gap=interval(means[:, best] - means[:, worst]),
        gap_null_high=float(np.quantile(null, 0.95)),
    )


def _won_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of (positive, negative) pairs in the right order, ties one half, and of all pairs; (n,), (n,), (R, n)."""
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # first of each group of equal scores
    ordered = weights[:, order].astype(np.float64)
    up = np.add.reduceat(ordered * positive[order], ties, axis=1)
    down = np.add.reduceat(ordered * ~positive[order], ties, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    return (up * below).sum(axis=1), up.sum(axis=1) * down.sum(axis=1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise ratio, NaN over zero."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)


def _mean_over_values(rows: np.ndarray) -> np.ndarray:
    """Mean over the last axis without its NaN; NaN where all are: (R, A) -> (R,)."""
    known = np.isfinite(rows)
    return _ratio(np.where(known, rows, 0).sum(axis=1), known.sum(axis=1))

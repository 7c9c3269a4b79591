"""Metrics of the fairness audit: leakage of predictions, and NDCG by attribute value, over bootstrap weights of users.

Every replicate array has the plain sample (all weights 1) at index 0, as `intervals.interval` expects.

Legend: N users, A attribute values, R = 1 + num_bootstrap replicates (`bootstrap.poisson_weights`).
"""

from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.intervals import Interval, interval

NUM_GAP_PERMUTATIONS = 300


def balanced_accuracy(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_values: int) -> np.ndarray:
    """Mean recall over the values that occur: (N,) int, (N,) int, (R, N) -> (R,) float64.

    Users of several folds are pooled. A value without weight in a replicate is left out of that replicate's mean.
    """
    truth = labels[:, None] == np.arange(num_values)  # (N, A)
    weights = weights.astype(np.float64)
    total = weights @ truth
    recall = _ratio(weights @ (truth & (predictions == labels)[:, None]), total)
    return _mean_over_values(recall)


def micro_f1(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Micro-averaged F1, paper B's metric: (N,), (N,), (R, N) -> (R,).

    Equals accuracy, as each user has one label and one prediction; below `majority_rate` it means nothing.
    """
    weights = weights.astype(np.float64)
    return _ratio(weights @ (predictions == labels), weights.sum(axis=1))


def macro_auc(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Mean over values of the one-vs-rest AUC, ties one half: (N, A), (N,), (R, N), (N,) fold of each user -> (R,).

    Attackers of different folds have no common score scale, so only pairs within a fold count: a value's AUC is its
    won pairs over all folds divided by its pairs (Mann & Whitney 1947, stratified). Values without any pair are left
    out. An AUC below one half is not flipped, as a sign chosen on test users is no attack.
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
    """Fraction of the most frequent value, the micro-F1 of a constant prediction; (N,) -> float."""
    return float(np.bincount(labels).max() / len(labels))


class NdcgGap(NamedTuple):
    """The largest difference of mean NDCG between the users of two attribute values."""

    gap: Interval
    null_high: float
    """95% quantile of the largest gap when values are permuted over users: a smaller gap may be chance."""
    best: int
    worst: int


def largest_ndcg_gap(
    ndcg: np.ndarray,
    values: np.ndarray,
    num_values: int,
    user_keys: np.ndarray,
    num_bootstrap: int = 200,
    min_users: int = 10,
    seed: int = 0,
) -> NdcgGap | None:
    """Largest NDCG gap: (N,) float with NaN = no test event, (N,) int64 with -1 = unknown, (N,) uint64 keys.

    The largest of many noisy differences is large even without a true one, hence the permutation quantile. Values with
    fewer than `min_users` users take no part; None if fewer than two values remain.
    """
    order = np.argsort(user_keys, kind="stable")
    order = order[(values[order] >= 0) & np.isfinite(ndcg[order])]
    ndcg, values = ndcg[order].astype(np.float64), values[order]
    truth = values[:, None] == np.arange(num_values)  # (N, A)
    counts = truth.sum(axis=0)
    compared = np.flatnonzero(counts >= max(min_users, 1))
    if len(compared) < 2:
        return None
    weights = poisson_weights(user_keys[order], num_bootstrap, seed).astype(np.float64)
    means = _ratio(weights @ (truth * ndcg[:, None]), weights @ truth)  # (R, A)
    best, worst = (int(compared[pick(means[0, compared])]) for pick in (np.argmax, np.argmin))
    rng = np.random.default_rng([seed, num_values])
    null = []
    for _ in range(NUM_GAP_PERMUTATIONS):
        shuffled = rng.permutation(ndcg) @ truth[:, compared] / counts[compared]
        null.append(shuffled.max() - shuffled.min())
    return NdcgGap(interval(means[:, best] - means[:, worst]), float(np.quantile(null, 0.95)), best, worst)


def _won_pairs(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of correctly ordered (positive, negative) pairs, ties one half, and of all pairs; (n,), (n,), (R, n)."""
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

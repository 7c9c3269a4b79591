"""Average precision (PR-AUC) from score histograms, and the bounds that binning leaves open."""

import numpy as np

BLOCK_POSITIVES = 2**20


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision with the scores of a bin taken as ties: (..., bins), (..., bins) -> (...) float64.

    AP = sum_b (R_b - R_{b+1}) P_b over bins from the highest score down, with recall R and precision P of everything
    at or above bin b: `sklearn.metrics.average_precision_score` of the binned scores. NaN without positives.
    """
    true_positives = np.cumsum(positives[..., ::-1], axis=-1, dtype=np.float64)
    retrieved = true_positives + np.cumsum(negatives[..., ::-1], axis=-1, dtype=np.float64)
    precision = true_positives / np.maximum(retrieved, 1)
    total = true_positives[..., -1]
    gained = np.einsum("...b,...b->...", precision, positives[..., ::-1].astype(np.float64))
    return np.divide(gained, total, out=np.full(total.shape, np.nan), where=total > 0)


def average_precision_bounds(negatives: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Smallest and largest average precision of scores with these bin counts; (bins,), (bins,) -> floats.

    Lowest: in each bin all negatives come first, then the positives one by one; the k-th positive overall has
    precision k / (k + negatives in its bin or higher). Highest: a bin's positives tie and precede its negatives. Both
    are attained, so the counts allow no tighter bound. (NaN, NaN) without positives.
    """
    hits, misses = positives[::-1].astype(np.int64), negatives[::-1].astype(np.int64)
    true_positives, false_positives = np.cumsum(hits), np.cumsum(misses)
    total = int(true_positives[-1])
    if total == 0:
        return float("nan"), float("nan")
    before = false_positives - misses
    highest = float((hits * (true_positives / np.maximum(true_positives + before, 1))).sum() / total)
    lowest = 0.0
    for start in range(0, total, BLOCK_POSITIVES):
        rank = np.arange(start + 1, min(total, start + BLOCK_POSITIVES) + 1)
        bins = np.searchsorted(true_positives, rank)
        lowest += float((rank / (rank + false_positives[bins])).sum())
    return lowest / total, highest

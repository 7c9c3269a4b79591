"""Average precision (the paper's PR-AUC) from score histograms, and how far binning can have moved it."""

import numpy as np

BLOCK_POSITIVES = 2**20


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision with the scores of a bin taken as ties: (..., bins), (..., bins) -> (...) float64.

    AP = sum_b (R_b - R_{b+1}) P_b over bins from the highest score down, R and P being recall and precision of
    everything at or above bin b: `sklearn.metrics.average_precision_score` of the binned scores.
    NaN where there is no positive: an empty truth has no precision.
    """
    true_positives = np.cumsum(positives[..., ::-1], axis=-1, dtype=np.float64)
    retrieved = true_positives + np.cumsum(negatives[..., ::-1], axis=-1, dtype=np.float64)
    precision = true_positives / np.maximum(retrieved, 1)
    total = true_positives[..., -1]
    gained = np.einsum("...b,...b->...", precision, positives[..., ::-1].astype(np.float64))
    return np.divide(gained, total, out=np.full(total.shape, np.nan), where=total > 0)


def average_precision_bounds(negatives: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Smallest and largest average precision that scores with these bin counts can have; (bins,), (bins,) -> floats.

    Above a positive of bin b are, whatever the order inside bins, all of the higher bins and none of the lower ones.
    Lowest: in each bin all negatives come first, then the positives one by one; the k-th positive overall then has
    precision k / (k + negatives in its bin or higher). Highest: the positives of a bin tie and precede its negatives;
    each has precision TP_b / (TP_b + negatives in higher bins). Both are attained, so no tighter bound follows from
    the counts. (NaN, NaN) without positives.
    """
    hits, misses = positives[::-1].astype(np.int64), negatives[::-1].astype(np.int64)
    true_positives, false_positives = np.cumsum(hits), np.cumsum(misses)
    total = int(true_positives[-1])
    if total == 0:
        return float("nan"), float("nan")
    before = false_positives - misses
    highest = float((hits * (true_positives / np.maximum(true_positives + before, 1))).sum() / total)
    lowest = 0.0
    for begin in range(0, total, BLOCK_POSITIVES):
        rank = np.arange(begin + 1, min(total, begin + BLOCK_POSITIVES) + 1)
        bins = np.searchsorted(true_positives, rank)
        lowest += float((rank / (rank + false_positives[bins])).sum())
    return lowest / total, highest

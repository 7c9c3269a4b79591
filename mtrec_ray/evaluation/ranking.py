"""Ranking metrics per user over masked candidates, and their bootstrap-weighted means.

Titles with equal scores are in random order, and every metric is its expectation over that order (McSherry & Najork
2008, "Computing Information Retrieval Performance Measures Efficiently in the Presence of Tied Scores").
Legend: U users of a chunk, T titles, P positives of the chunk, R = 1 + num_bootstrap replicates, M metrics.
"""

from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.intervals import ratio
from mtrec_ray.evaluation.score_counts import positive_pairs

FIXED_POINT = 2.0**24  # values are rounded to 1/2^24, so that sums below 2^29 are exact in float64 in any order
RANKING_METRICS = ("ndcg@10", "hit@10", "recall@10", "mrr")  # columns of `ranking_metrics` at the default cutoff


def ranking_metrics(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, k: int = 10) -> np.ndarray:
    """Metrics of each user: (U, T) scores, bool labels and candidates -> (U, M) float64.

    For a user with n positive candidates, r their ranks (1 = highest score):

    * ndcg@k = sum_{r <= k} 1 / log2(r + 1) / sum_{i <= min(n, k)} 1 / log2(i + 1)  (Jarvelin & Kekalainen 2002, binary)
    * hit@k = 1 if min r <= k else 0
    * recall@k = |{r <= k}| / n
    * mrr = 1 / min r, over the full list  (Voorhees 1999)

    A user without a positive candidate is NaN in every metric; a label outside the mask is not counted.
    """
    values = np.full((len(logits), len(RANKING_METRICS)), np.nan)
    hits = locate_positives(logits, labels, mask)
    if not len(hits.user):
        return values
    users, first, per_user = np.unique(hits.user, return_index=True, return_counts=True)
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])
    after, upto = np.minimum(hits.above, k), np.minimum(hits.above + hits.tied, k)
    best = np.lexsort((hits.above, hits.user))[first]  # positives remain grouped by user
    ndcg = np.add.reduceat((gains[upto] - gains[after]) / hits.tied, first) / gains[np.minimum(per_user, k)]
    # Probability that the i-th tied positive misses the top k if the earlier ones do: (t - m - i) / (t - i), where m of
    # t tied candidates are in the top k.
    missed = np.maximum(hits.tied - (upto - after) - hits.order, 0) / (hits.tied - hits.order)
    hit = 1 - np.multiply.reduceat(missed, first)
    recall = np.add.reduceat((upto - after) / hits.tied, first) / per_user
    mrr = _expected_reciprocal_rank(hits.above[best], hits.tied[best], hits.tied_positives[best])
    values[users] = np.stack([ndcg, hit, recall, mrr], axis=1)
    return values


def ranking_sums(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Exact weighted sums over users with a positive: (R, U) -> (R, M + 1), last of weights."""
    values = ranking_metrics(logits, labels, mask)
    valid = ~np.isnan(values[:, 0])
    rounded = np.round(values[valid] * FIXED_POINT) / FIXED_POINT
    return weights[:, valid].astype(np.float64) @ np.append(rounded, np.ones((len(rounded), 1)), axis=1)


def ranking_means(sums: np.ndarray) -> np.ndarray:
    """Means of added `ranking_sums`: (..., M + 1) -> (..., M); NaN without a positive."""
    return ratio(sums[..., :-1], sums[..., -1:])


@dataclass(frozen=True)
class PositiveRanks:
    """Ranks of a chunk's positives, (P,) each, sorted by user."""

    user: np.ndarray
    above: np.ndarray  # candidates with a higher score
    tied: np.ndarray  # candidates with the same score, itself included
    tied_positives: np.ndarray  # positives among them
    order: np.ndarray  # 0, 1, ... among the tied positives of the user


def locate_positives(logits: np.ndarray, labels: np.ndarray, mask: np.ndarray) -> PositiveRanks:
    """Count the candidates above and tied with each positive one."""
    user, title = positive_pairs(labels, mask)
    scores = logits[user, title]
    above, tied = np.zeros(len(user), dtype=np.int64), np.zeros(len(user), dtype=np.int64)
    everything, row, row_of = bool(mask.all()), logits[:0].ravel(), -1
    for index, (u, score) in enumerate(zip(user.tolist(), scores, strict=True)):  # one pass over a row in the cache
        if u != row_of:
            row, row_of = (logits[u] if everything else logits[u][mask[u]]), u
        above[index] = np.count_nonzero(row > score)
        tied[index] = np.count_nonzero(row == score)
    by_group = np.lexsort((scores, user))
    new = np.ones(len(user), dtype=bool)
    new[1:] = (np.diff(user[by_group]) != 0) | (np.diff(scores[by_group]) != 0)
    starts = np.flatnonzero(new)
    sizes = np.diff(np.append(starts, len(user)))
    tied_positives, order = np.empty(len(user), dtype=np.int64), np.empty(len(user), dtype=np.int64)
    tied_positives[by_group] = np.repeat(sizes, sizes)
    order[by_group] = np.arange(len(user)) - np.repeat(starts, sizes)
    return PositiveRanks(user, above, tied, tied_positives, order)


def _expected_reciprocal_rank(above: np.ndarray, tied: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """E[1 / (above + j)], j the first of `positives` in a random order of `tied`; (users,)."""
    expected = 1 / (above + 1.0)
    for row in np.flatnonzero(tied > positives):
        a, t, p = int(above[row]), int(tied[row]), int(positives[row])
        j = np.arange(1, t - p + 2)
        misses = np.cumprod(np.append(1.0, (t - j[:-1] - p + 1) / (t - j[:-1] + 1)))
        expected[row] = (misses * p / (t - j + 1) / (a + j)).sum()
    return expected

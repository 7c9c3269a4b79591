"""Count scores of a chunk of users into histograms, of a territory or of single titles.

Legend: U users of a chunk, T titles of the chunk, R = 1 + num_bootstrap replicates, N scores.
"""

from collections.abc import Mapping

import numpy as np

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.intervals import MAX_WEIGHT
from mtrec_ray.evaluation.score_counts import ScoreCounts, ScoreGrid, positive_pairs

MAX_EXACT_FLOAT32 = 2**24
MAX_ROWS = 1024  # users in one matrix product
BLOCK_SCORES = 2**16  # scores binned at a time


def count_scores(
    counts: ScoreCounts, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, weights: np.ndarray
) -> None:
    """Count users' scores of all their candidates; a label that is none is not counted.

    (U, T) float32 scores, bool labels and candidates; (R, U) `poisson_weights`. UserError for a NaN score.
    """
    if logits.shape[1] * MAX_WEIGHT > MAX_EXACT_FLOAT32:
        raise UserError(f"{logits.shape[1]} titles in one chunk, the counts are exact up to {2**21}")
    rows = max(1, min(MAX_ROWS, MAX_EXACT_FLOAT32 // (MAX_WEIGHT * max(1, logits.shape[1]))))
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        _count_rows(counts, logits[part], labels[part], mask[part], weights[:, part])


def count_title_scores(
    counts: Mapping[int, ScoreCounts],
    logits: np.ndarray,
    labels: np.ndarray,
    mask: np.ndarray,
    title_index: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Count scores of single titles; `counts` by title, `title_index` (T,) names the columns."""
    columns = [(column, title) for column, title in enumerate(title_index.tolist()) if title in counts]
    by_user = np.ascontiguousarray(weights.T) if columns else weights.T  # (U, R)
    for column, title in columns:
        offered, label = mask[:, column], labels[:, column]
        for kind, chosen in (("negatives", offered & ~label), ("positives", offered & label)):
            users = np.flatnonzero(chosen)
            rows = by_user if len(users) == len(by_user) else by_user[users]
            counts[title].add_scores(kind, counts[title].grid.fine_bins(logits[users, column]), rows)


def _count_rows(
    counts: ScoreCounts, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, weights: np.ndarray
) -> None:
    """Negatives are many: one product of counts (U, span) and weights (R, U)."""
    grid = counts.grid
    user, title = positive_pairs(labels, mask)
    hits = grid.fine_bins(logits[user, title])
    counts.add_scores("positives", hits, weights[:, user].T)

    if len(mask) and (mask == mask[0]).all():  # all users are offered the same titles
        scores = logits if mask[0].all() else logits[:, mask[0]]
        sizes = np.full(len(scores), scores.shape[1])
    else:
        scores, sizes = logits[mask], np.count_nonzero(mask, axis=1)
    if not scores.size:
        return
    bounds = grid.fine_bins(np.array([scores.min(), scores.max()]))
    first, coarse_first = int(bounds[0]), int(grid.coarsen(bounds)[0])
    fine, per_user = _bin_counts(grid, scores.ravel(), sizes, bounds)
    np.subtract.at(fine, hits - first, 1)
    np.subtract.at(per_user, (user, grid.coarsen(hits) - coarse_first), 1)
    counts.spans["fine_negatives"].add(first, fine[:, None])
    counts.spans["negatives"].add(coarse_first, per_user.T @ weights.T)


def _bin_counts(
    grid: ScoreGrid, scores: np.ndarray, sizes: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,), (U,) per user, first and last fine bin -> fine (span,), coarse (U, span)."""
    (first, last), (coarse_first, coarse_last) = bounds.tolist(), grid.coarsen(bounds).tolist()
    width = coarse_last - coarse_first + 1
    ends = np.append(0, np.cumsum(sizes))
    fine_counts = np.zeros(last - first + 1, dtype=np.int64)
    per_user = np.empty((len(sizes), width), dtype=np.float32)
    rows = max(1, BLOCK_SCORES * len(sizes) // len(scores))
    for start in range(0, len(sizes), rows):  # blocks that stay in the cache
        end = min(start + rows, len(sizes))
        fine = grid.fine_bins(scores[ends[start] : ends[end]])
        flat = grid.coarsen(fine)
        fine -= first
        fine_counts += np.bincount(fine, minlength=len(fine_counts))
        offsets = np.arange(end - start, dtype=np.int32) * np.int32(width) - np.int32(coarse_first)
        flat += np.repeat(offsets, sizes[start:end])
        per_user[start:end] = np.bincount(flat, minlength=(end - start) * width).reshape(-1, width)
    return fine_counts, per_user

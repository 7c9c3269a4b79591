"""PR-AUC per territory of any number of users, from score histograms, in memory that does not grow with the users.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates.
"""

import numpy as np

from mtrec_ray.evaluation.bootstrap import MAX_WEIGHT, poisson_weights
from mtrec_ray.evaluation.score_counts import ScoreCounts, positive_pairs
from mtrec_ray.evaluation.score_grid import ScoreGrid

MAX_EXACT_FLOAT32 = 2**24
MAX_ROWS = 1024
"""Users in one matrix product."""
BLOCK_SCORES = 2**16
"""Scores binned at a time."""


class PrAucAccumulator:
    """Per territory, bootstrap-weighted histograms of the scores of positives and of negatives.

    Territories are allocated when first seen. Picklable.
    """

    def __init__(
        self, num_territories: int, num_bootstrap: int = 200, seed: int = 0, grid: ScoreGrid | None = None
    ) -> None:
        self.num_territories = num_territories
        self.num_bootstrap = num_bootstrap
        self.seed = seed
        self.grid = grid or ScoreGrid()
        self.counts: dict[int, ScoreCounts] = {}

    def add(
        self,
        territory: int,
        user_keys: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Count one chunk of users of one territory.

        Args:
            territory: dense index.
            user_keys: (U,) uint64.
            logits: (U, T) float32.
            labels: (U, T) bool; a label outside the mask is not counted.
            mask: (U, T) bool, True = candidate.
            weights: (R, U) of `poisson_weights`, when the caller has them already.

        Raises:
            ValueError: unknown territory, shapes that do not fit, or a NaN among the candidates' scores.
        """
        if not 0 <= territory < self.num_territories:
            raise ValueError(f"territory {territory} is not in [0, {self.num_territories})")
        if not logits.shape == labels.shape == mask.shape or logits.shape[:1] != user_keys.shape:
            raise ValueError(
                f"shapes differ: user_keys {user_keys.shape}, logits {logits.shape}, labels {labels.shape}, "
                f"mask {mask.shape}"
            )
        if weights is None:
            weights = poisson_weights(user_keys, self.num_bootstrap, self.seed)
        if logits.shape[1] * MAX_WEIGHT > MAX_EXACT_FLOAT32:
            raise ValueError(f"{logits.shape[1]} titles in one chunk, the counts are exact up to {2**21}")
        counts = self._territory(territory)
        rows = max(1, min(MAX_ROWS, MAX_EXACT_FLOAT32 // (MAX_WEIGHT * max(1, logits.shape[1]))))
        for begin in range(0, len(user_keys), rows):
            part = slice(begin, begin + rows)
            self._add_rows(counts, logits[part], labels[part], mask[part], weights[:, part])

    def merge(self, other: "PrAucAccumulator") -> None:
        """Add the counts of another accumulator of the same settings."""
        if self._settings() != other._settings():
            raise ValueError(f"cannot merge accumulators of {self._settings()} and {other._settings()}")
        for territory, counts in other.counts.items():
            self._territory(territory).merge(counts)

    def pooled(self) -> ScoreCounts:
        """Counts of all territories together."""
        pooled = ScoreCounts(self.grid, self.num_bootstrap)
        for counts in self.counts.values():
            pooled.merge(counts)
        return pooled

    def _settings(self) -> tuple[int, int, int, ScoreGrid]:
        return self.num_territories, self.num_bootstrap, self.seed, self.grid

    def _territory(self, territory: int) -> ScoreCounts:
        if territory not in self.counts:
            self.counts[territory] = ScoreCounts(self.grid, self.num_bootstrap)
        return self.counts[territory]

    def _add_rows(
        self, counts: ScoreCounts, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, weights: np.ndarray
    ) -> None:
        """Negatives are many: one product of per-user counts (U, span) and weights (R, U). Positives are few."""
        user, title = positive_pairs(labels, mask)
        hits = self.grid.fine_bins(logits[user, title])
        counts.add_scores("positives", hits, weights[:, user].T)

        if len(mask) and (mask == mask[0]).all():  # all users are offered the same titles
            logits = logits if mask[0].all() else logits[:, mask[0]]
            scores, sizes = logits, np.full(len(logits), logits.shape[1])
        else:
            scores, sizes = logits[mask], np.count_nonzero(mask, axis=1)
        if not scores.size:
            return
        first, last = self.grid.fine_bins(np.array([scores.min(), scores.max()])).tolist()
        coarse_first, coarse_last = self.grid.coarsen(np.array([first, last])).tolist()
        width = coarse_last - coarse_first + 1
        fine, per_user = self._count(scores.ravel(), sizes, first, last - first + 1, coarse_first, width)
        np.subtract.at(fine, hits - first, 1)
        np.subtract.at(per_user, (user, self.grid.coarsen(hits) - coarse_first), 1)
        counts.spans["fine_negatives"].add(first, fine[:, None])
        counts.spans["negatives"].add(coarse_first, per_user.T @ weights.T)

    def _count(
        self, scores: np.ndarray, sizes: np.ndarray, first: int, fine_width: int, coarse_first: int, width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (N,), sizes (U,) of them per user -> fine counts (fine_width,), coarse ones (U, width) float32."""
        ends = np.append(0, np.cumsum(sizes))
        fine_counts = np.zeros(fine_width, dtype=np.int64)
        per_user = np.empty((len(sizes), width), dtype=np.float32)
        rows = max(1, BLOCK_SCORES * len(sizes) // len(scores))
        for begin in range(0, len(sizes), rows):  # blocks that stay in the cache
            end = min(begin + rows, len(sizes))
            fine = self.grid.fine_bins(scores[ends[begin] : ends[end]])
            flat = self.grid.coarsen(fine)
            fine -= first
            fine_counts += np.bincount(fine, minlength=fine_width)
            offsets = np.arange(end - begin, dtype=np.int32) * np.int32(width) - np.int32(coarse_first)
            flat += np.repeat(offsets, sizes[begin:end])
            per_user[begin:end] = np.bincount(flat, minlength=(end - begin) * width).reshape(-1, width)
        return fine_counts, per_user

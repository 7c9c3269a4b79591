"""PR-AUC and score histograms of single titles over all test users they are offered to (paper A, table 3 and figure 2).

Legend: U users of a chunk, T titles of the chunk, S chosen titles, R = 1 + num_bootstrap replicates.
"""

import numpy as np

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.score_counts import ScoreCounts
from mtrec_ray.evaluation.score_grid import ScoreGrid

MAX_TITLES = 512


class TitlePrAucAccumulator:
    """Bootstrap-weighted histograms of the scores of chosen titles, positives and negatives apart.

    Memory grows with titles x occupied bins x replicates.
    """

    def __init__(
        self, titles: np.ndarray, num_bootstrap: int = 200, seed: int = 0, grid: ScoreGrid | None = None
    ) -> None:
        """`titles` are the chosen titles' dense indices, (S,), distinct, at most 512."""
        self.titles = np.asarray(titles, dtype=np.int64)
        if len(self.titles) > MAX_TITLES or len(np.unique(self.titles)) != len(self.titles):
            raise ValueError(f"choose at most {MAX_TITLES} distinct titles, got {len(self.titles)}")
        self.num_bootstrap = num_bootstrap
        self.seed = seed
        self.grid = grid or ScoreGrid()
        self.counts = [ScoreCounts(self.grid, num_bootstrap) for _ in self.titles]

    def add(
        self,
        user_keys: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        mask: np.ndarray,
        title_index: np.ndarray,
        weights: np.ndarray | None = None,
    ) -> None:
        """Count one chunk of users; shapes as in `PrAucAccumulator.add`, `title_index` (T,) names the columns."""
        slots = {int(title): slot for slot, title in enumerate(self.titles)}
        columns = [(c, slots[t]) for c, t in enumerate(np.asarray(title_index).tolist()) if t in slots]
        if not columns:
            return
        if weights is None:
            weights = poisson_weights(user_keys, self.num_bootstrap, self.seed)
        by_user = np.ascontiguousarray(weights.T)  # (U, R)
        for column, slot in columns:
            offered, label = mask[:, column], labels[:, column]
            for kind, chosen in (("negatives", offered & ~label), ("positives", offered & label)):
                users = np.flatnonzero(chosen)
                rows = by_user if len(users) == len(by_user) else by_user[users]
                self.counts[slot].add_scores(kind, self.grid.fine_bins(logits[users, column]), rows)

    def merge(self, other: "TitlePrAucAccumulator") -> None:
        """Add the counts of another accumulator of the same titles and settings."""
        if self._settings() != other._settings() or not np.array_equal(self.titles, other.titles):
            raise ValueError(f"cannot merge title accumulators of {self._settings()} and {other._settings()}")
        for own, added in zip(self.counts, other.counts, strict=True):
            own.merge(added)

    def pr_auc(self) -> np.ndarray:
        """(S, R) average precision of each title and replicate; NaN for a title without positives."""
        rows = [counts.pr_auc() for counts in self.counts]
        return np.stack(rows) if rows else np.empty((0, 1 + self.num_bootstrap))

    def histograms(self) -> np.ndarray:
        """(S, 2, num_bins) int64 plain counts of users by score, [:, 0] negatives, [:, 1] positives."""
        plain = [
            [c.spans[kind].dense(self.grid.num_bins, num_replicates=1)[0] for kind in ("negatives", "positives")]
            for c in self.counts
        ]
        return np.array(plain, dtype=np.int64).reshape(len(self.counts), 2, self.grid.num_bins)

    def _settings(self) -> tuple[int, int, ScoreGrid]:
        return self.num_bootstrap, self.seed, self.grid

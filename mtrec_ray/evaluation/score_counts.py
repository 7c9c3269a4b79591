"""Integer histograms of scores: exact under addition, so any sharding gives the same counts bit for bit.

Legend: U users, T titles, R = 1 + num_bootstrap replicates (0 is plain), N scores.
"""

import numpy as np
import torch

from mtrec_ray.evaluation.average_precision import average_precision, average_precision_bounds
from mtrec_ray.evaluation.score_grid import ScoreGrid

KINDS = ("negatives", "positives")
PROMOTE_ABOVE = 2**30
SPAN_STEP = 64
"""Bins by which a stored span grows at a time."""


class SpanCounts:
    """(num_bins, R) integer counts of which only the occupied span of bins is stored.

    int32 until a count may pass 2^30, then int64; pickled in the narrowest dtype that holds the counts.
    """

    def __init__(self, num_replicates: int) -> None:
        self.first_bin = 0
        self.counts = np.zeros((0, num_replicates), dtype=np.int32)
        self.max_count = 0
        """Upper bound of the counts."""

    def add(self, first_bin: int, counts: np.ndarray) -> None:
        """Add (width, R) integer counts of any dtype at bins first_bin, first_bin + 1, ..."""
        if len(counts) == 0:
            return
        self._cover(first_bin, first_bin + len(counts))
        self.max_count += int(counts.max())
        if self.counts.dtype == np.int32 and self.max_count >= PROMOTE_ABOVE:
            self.counts = self.counts.astype(np.int64)
        start = first_bin - self.first_bin
        self.counts[start : start + len(counts)] += counts.astype(self.counts.dtype, copy=False)

    def dense(self, num_bins: int, num_replicates: int | None = None) -> np.ndarray:
        """(R, num_bins) int64, of the first `num_replicates` replicates if given."""
        counts = self.counts[: num_bins - self.first_bin, :num_replicates].T
        out = np.zeros((len(counts), num_bins), dtype=np.int64)
        out[:, self.first_bin : self.first_bin + counts.shape[1]] = counts
        return out

    def __getstate__(self) -> tuple[int, np.ndarray]:
        """First bin and (width, R) counts without empty bins at the ends."""
        occupied = np.flatnonzero(self.counts[:, 0])  # replicate 0 counts everybody once
        if not len(occupied):
            return 0, self.counts[:0]
        span = self.counts[occupied[0] : occupied[-1] + 1]
        return self.first_bin + int(occupied[0]), span.astype(np.min_scalar_type(int(span.max())))

    def __setstate__(self, state: tuple[int, np.ndarray]) -> None:
        first_bin, counts = state
        SpanCounts.__init__(self, counts.shape[1])
        self.add(first_bin, counts)

    def _cover(self, first: int, end: int) -> None:
        """Grow the span to bins first to end."""
        width = len(self.counts)
        if width and first >= self.first_bin and end <= self.first_bin + width:
            return
        if width:
            first, end = min(first, self.first_bin), max(end, self.first_bin + width)
        first, end = first - first % SPAN_STEP, end + -end % SPAN_STEP
        grown = np.zeros((end - first, self.counts.shape[1]), dtype=self.counts.dtype)
        start = max(0, self.first_bin - first)
        grown[start : start + width] = self.counts
        self.first_bin, self.counts = first, grown


class ScoreCounts:
    """Histograms of one territory's or title's scores: every replicate coarse, the plain sample also fine."""

    def __init__(self, grid: ScoreGrid, num_bootstrap: int) -> None:
        self.grid = grid
        self.spans = {kind: SpanCounts(1 + num_bootstrap) for kind in KINDS}
        self.spans |= {f"fine_{kind}": SpanCounts(1) for kind in KINDS}

    def __iadd__(self, other: "ScoreCounts") -> "ScoreCounts":
        for name, span in other.spans.items():
            self.spans[name].add(span.first_bin, span.counts)
        return self

    def add_scores(self, kind: str, fine_bins: np.ndarray, weights: np.ndarray) -> None:
        """Count few scores, one user each: kind `negatives` or `positives`, (N,) fine bins, (N, R) weights."""
        if len(fine_bins):
            self.spans[kind].add(*weighted_counts(self.grid.coarsen(fine_bins), weights))
            first = int(fine_bins.min())
            self.spans[f"fine_{kind}"].add(first, np.bincount(fine_bins - first)[:, None])

    def histogram(self, num_replicates: int | None = None) -> np.ndarray:
        """(R, 2, num_bins) int64 weighted counts, [:, 0] negatives, [:, 1] positives."""
        return np.stack([self.spans[kind].dense(self.grid.num_bins, num_replicates) for kind in KINDS], axis=1)

    def fine_histogram(self) -> np.ndarray:
        """(2, num_fine_bins) int64 plain counts."""
        return np.concatenate([self.spans[f"fine_{kind}"].dense(self.grid.num_fine_bins) for kind in KINDS])

    def pr_auc(self) -> np.ndarray:
        """(R,) average precision, the plain one from the fine bins; NaN without positives.

        The other replicates are multiplied by fine / coarse of the plain sample, as coarse bins lose nearly the same
        fraction in each: this centres the interval on the estimate.
        """
        coarse = average_precision(*np.moveaxis(self.histogram(), 1, 0))
        fine = average_precision(*self.fine_histogram())
        return np.append(fine, coarse[1:] * (fine / coarse[0]))

    def pr_auc_bounds(self) -> tuple[float, float]:
        """Lowest and highest average precision that the unbinned scores can have."""
        return average_precision_bounds(*self.fine_histogram())


def weighted_counts(bins: np.ndarray, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """Sum of the weights (N, R) in each bin (N,): (first bin, (span, R) float32); exact up to sums of 2^24."""
    first, last = int(bins.min()), int(bins.max())
    sums = torch.zeros(last - first + 1, weights.shape[1])
    sums.index_add_(0, torch.from_numpy(bins - first), torch.from_numpy(np.ascontiguousarray(weights)))
    return first, sums.numpy()


def positive_pairs(labels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (user, title) indices of the positive candidates; (U, T) bool each.

    Faster than `np.nonzero` where labels are sparse.
    """
    user, title = np.divmod(np.flatnonzero(labels), max(1, labels.shape[1]))
    offered = mask[user, title]
    return user[offered], title[offered]

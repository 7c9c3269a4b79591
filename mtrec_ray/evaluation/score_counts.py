"""Integer histograms of scores and their PR-AUC; any sharding gives the same counts.

Legend: U users, T titles, R = 1 + num_bootstrap replicates (0 is plain), N scores.
"""

from dataclasses import dataclass

import numpy as np
import torch

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.intervals import ratio

KINDS = ("negatives", "positives")
PROMOTE_ABOVE = 2**30
SPAN_STEP = 64  # bins by which a stored span grows at a time
BLOCK_POSITIVES = 2**20


@dataclass(frozen=True)
class ScoreGrid:
    """Bins equal in x / (1 + |x| / limit): scores of saturated models keep their order.

    Around 0 a fine bin is 1/2048 logit wide and a coarse one 1/32, at +-limit four times as much.
    """

    limit: float = 16.0  # scale at which bins start to widen, in logits
    num_bins: int = 1024
    refine: int = 64  # A power of two

    @property
    def num_fine_bins(self) -> int:
        return self.num_bins * self.refine

    def edges(self) -> np.ndarray:
        """(num_bins + 1,) float64 edges of the coarse bins in logits, the outermost infinite."""
        squashed = np.linspace(-1.0, 1.0, self.num_bins + 1)
        with np.errstate(divide="ignore"):
            return self.limit * squashed / (1 - np.abs(squashed))

    def fine_bins(self, logits: np.ndarray) -> np.ndarray:
        """Fine bin of each score, float32 -> int32, non-decreasing; UserError if one is NaN."""
        if logits.size and np.isnan(logits.max()):
            raise UserError(f"{int(np.isnan(logits).sum())} of {logits.size} scores are NaN: the model diverged")
        logits = np.clip(logits, -1e9, 1e9).astype(np.float32, copy=False)  # infinity falls into an end bin
        scaled = np.abs(logits)
        scaled += np.float32(self.limit)
        np.divide(logits, scaled, out=scaled)
        scaled *= np.float32(self.num_fine_bins / 2)
        np.add(scaled, np.float32(self.num_fine_bins / 2), out=scaled)
        np.clip(scaled, 0, self.num_fine_bins - 1, out=scaled)
        return scaled.astype(np.int32)

    def coarsen(self, fine_bins: np.ndarray) -> np.ndarray:
        """Coarse bin of each fine bin."""
        return fine_bins >> (self.refine.bit_length() - 1)


GRID = ScoreGrid()


class SpanCounts:
    """(num_bins, R) counts; only occupied bins are stored, int64 once int32 may overflow."""

    def __init__(self, num_replicates: int) -> None:
        self.first_bin = 0
        self.counts = np.zeros((0, num_replicates), dtype=np.int32)
        self.max_count = 0  # upper bound

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

    def dense(self, num_bins: int) -> np.ndarray:
        """(R, num_bins) int64."""
        counts = self.counts[: num_bins - self.first_bin].T
        out = np.zeros((len(counts), num_bins), dtype=np.int64)
        out[:, self.first_bin : self.first_bin + counts.shape[1]] = counts
        return out

    def __getstate__(self) -> tuple[int, np.ndarray]:
        """First bin and (width, R) counts without empty bins at the ends, in the narrowest dtype."""
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
    """Histograms of scores: every replicate coarse, the plain sample also fine."""

    def __init__(self, grid: ScoreGrid, num_bootstrap: int) -> None:
        self.grid = grid
        self.spans = {kind: SpanCounts(1 + num_bootstrap) for kind in KINDS}
        self.spans |= {f"fine_{kind}": SpanCounts(1) for kind in KINDS}

    def __iadd__(self, other: "ScoreCounts") -> "ScoreCounts":
        for name, span in other.spans.items():
            self.spans[name].add(span.first_bin, span.counts)
        return self

    def add_scores(self, kind: str, fine_bins: np.ndarray, weights: np.ndarray) -> None:
        """Count few scores, one user each: (N,) fine bins, (N, R) weights; `kind` of `KINDS`."""
        if not len(fine_bins):
            return
        bins = self.grid.coarsen(fine_bins)
        first, fine_first = int(bins.min()), int(fine_bins.min())
        sums = torch.zeros(int(bins.max()) - first + 1, weights.shape[1])  # float32, exact to sums of 2^24
        sums.index_add_(0, torch.from_numpy(bins - first), torch.from_numpy(np.ascontiguousarray(weights)))
        self.spans[kind].add(first, sums.numpy())
        self.spans[f"fine_{kind}"].add(fine_first, np.bincount(fine_bins - fine_first)[:, None])

    def histogram(self) -> np.ndarray:
        """(R, 2, num_bins) int64 weighted counts, [:, 0] negatives, [:, 1] positives."""
        return np.stack([self.spans[kind].dense(self.grid.num_bins) for kind in KINDS], axis=1)

    def fine_histogram(self) -> np.ndarray:
        """(2, num_fine_bins) int64 plain counts."""
        return np.concatenate([self.spans[f"fine_{kind}"].dense(self.grid.num_fine_bins) for kind in KINDS])

    def pr_auc(self) -> np.ndarray:
        """(R,) average precision, the plain one from the fine bins; NaN without positives.

        The other replicates are multiplied by its fine / coarse, which centres the interval on the estimate.
        """
        coarse = average_precision(*np.moveaxis(self.histogram(), 1, 0))
        fine = average_precision(*self.fine_histogram())
        return np.append(fine, coarse[1:] * (fine / coarse[0]))


def positive_pairs(labels: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (user, title) indices of the positive candidates; (U, T) bool each."""
    user, title = np.divmod(np.flatnonzero(labels), max(1, labels.shape[1]))  # faster than np.nonzero on sparse labels
    offered = mask[user, title]
    return user[offered], title[offered]


def average_precision(negatives: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Average precision, scores of a bin taken as ties: (..., bins), (..., bins) -> (...).

    AP = sum_b (R_b - R_{b+1}) P_b over bins from the highest score down, with recall R and precision P of everything
    at or above bin b: `sklearn.metrics.average_precision_score` of the binned scores. NaN without positives.
    """
    true_positives = np.cumsum(positives[..., ::-1], axis=-1, dtype=np.float64)
    retrieved = true_positives + np.cumsum(negatives[..., ::-1], axis=-1, dtype=np.float64)
    precision = true_positives / np.maximum(retrieved, 1)
    total = true_positives[..., -1]
    gained = np.einsum("...b,...b->...", precision, positives[..., ::-1].astype(np.float64))
    return ratio(gained, total)


def average_precision_bounds(negatives: np.ndarray, positives: np.ndarray) -> tuple[float, float]:
    """Smallest and largest average precision of scores with these bin counts, (bins,) each.

    Lowest: in each bin all negatives come first, then the positives one by one; the k-th positive overall has
    precision k / (k + negatives in its bin or higher). Highest: a bin's positives tie and precede its negatives.
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

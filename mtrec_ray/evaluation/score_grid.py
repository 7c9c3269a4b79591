"""A fixed grid of logits: scores become bins, so histograms of any shards can be added."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoreGrid:
    """Bins over all real scores: equal in x / (1 + |x| / limit), coarse ones and `refine` fine ones in each.

    By default a fine bin is 1/2048 logit wide around 0 and a coarse one 1/32, four times as much at +-limit, and so on,
    so scores of saturated models keep their order. Scale scores much smaller than logits (a cosine) up first.
    """

    limit: float = 16.0
    """Scale at which bins start to widen, in logits."""
    num_bins: int = 1024
    refine: int = 64
    """A power of two."""

    def __post_init__(self) -> None:
        if not (self.limit > 0 and self.num_bins >= 2 and self.refine >= 1 and self.refine & (self.refine - 1) == 0):
            raise ValueError(f"a grid needs limit > 0, num_bins >= 2 and refine a power of two, got {self}")
        if self.num_fine_bins > 2**20:
            raise ValueError(f"{self.num_fine_bins} fine bins are more than float32 scores resolve: at most {2**20}")

    @property
    def num_fine_bins(self) -> int:
        return self.num_bins * self.refine

    def edges(self) -> np.ndarray:
        """(num_bins + 1,) float64 edges of the coarse bins in logits, the outermost infinite."""
        squashed = np.linspace(-1.0, 1.0, self.num_bins + 1)
        with np.errstate(divide="ignore"):
            return self.limit * squashed / (1 - np.abs(squashed))

    def fine_bins(self, logits: np.ndarray) -> np.ndarray:
        """Fine bin of each score, float32 -> int32 of the same shape, non-decreasing in the score.

        Raises:
            ValueError: a score is NaN.
        """
        if logits.size and np.isnan(logits.max()):
            raise ValueError(f"{int(np.isnan(logits).sum())} of {logits.size} scores are NaN: the model diverged")
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

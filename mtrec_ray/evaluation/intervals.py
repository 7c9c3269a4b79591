"""Bootstrap replicates, their 95% intervals and means, and paired relative gains.

Arrays have the replicates as their last axis, R = 1 + num_bootstrap, with the plain estimate at index 0, so that steps
compose. A user has the same weights for every model, day and shard: two runs are compared replicate by replicate.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit  # scipy.stats takes a second to import

from mtrec_ray.hashing import mix

LEVEL = 0.95
MIN_FINITE = 0.5  # minimum fraction of replicates with a value (a replicate may draw no positive at all)
DRAWS_PER_HASH = 4
MAX_WEIGHT = 8  # largest weight of a user: what 16 bits resolve of Poisson(1)


class Interval(NamedTuple):
    """An estimate and its 95% interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def poisson_weights(user_keys: np.ndarray, num_bootstrap: int, seed: int = 0) -> np.ndarray:
    """Weight of each user in each replicate: (U,) uint64 -> (R, U) float32, ones in row 0.

    Poisson(1) weights make the bootstrap streamable (Chamandy et al. 2012, "Estimating Uncertainty for Massive Data
    Streams"). One 64-bit hash gives four draws of 16 bits.
    """
    counters = np.arange(-(-num_bootstrap // DRAWS_PER_HASH), dtype=np.uint64)
    hashes = mix(user_keys[:, None], "poisson bootstrap", seed, counters)  # (U, hashes)
    draws = _poisson_table()[hashes.astype("<u8").view("<u2")]  # (U, 4 * hashes)
    weights = np.ones((1 + num_bootstrap, len(user_keys)), dtype=np.float32)
    weights[1:] = draws[:, :num_bootstrap].T
    return weights


@functools.cache
def _poisson_table() -> np.ndarray:
    """Inverse of the Poisson(1) distribution function at (i + 1/2) / 65536; (65536,) uint8."""
    cdf = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(MAX_WEIGHT)])
    return np.searchsorted(cdf, (np.arange(65536) + 0.5) / 65536).astype(np.uint8)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Elementwise ratio, NaN over zero; arrays that broadcast to the numerator's shape."""
    return np.divide(
        numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=np.asarray(denominator) > 0
    )


def interval(replicates: np.ndarray) -> Interval:
    """Percentile interval (Efron & Tibshirani 1993), if enough replicates have a value."""
    value, drawn = float(replicates[0]), replicates[1:]
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(value) or not len(drawn) or len(drawn) < MIN_FINITE * (len(replicates) - 1):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def relative_gain(run: np.ndarray, first: np.ndarray) -> np.ndarray:
    """100 (run / first - 1), paired by replicate: (..., R), (..., R) -> (..., R)."""
    return 100 * (ratio(run, first) - 1)


def nan_mean(replicates: np.ndarray, weights: np.ndarray | int = 1) -> np.ndarray:
    """Weighted mean over days or territories with a value, or NaN: (n, ..., R) -> (..., R)."""
    finite = np.isfinite(replicates) & np.isfinite(replicates[..., :1])
    return ratio((np.where(finite, replicates, 0.0) * weights).sum(axis=0), (finite * weights).sum(axis=0))


def mean_over_seeds(replicates: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of several runs that differ in the seed alone: a sequence of (..., R) -> (..., R).

    Two independent errors add up. Users: the mean within each replicate. Seeds: the replicates get quantiles of
    s / sqrt(n) times Student's t with n - 1 degrees of freedom in a fixed random order, s being the standard deviation
    of the n estimates (a bootstrap over 3 seeds would understate the variance by a third).
    """
    runs = np.stack([np.asarray(r, dtype=np.float64) for r in replicates])  # (n, ..., R)
    mean = runs.mean(axis=0)
    num_seeds, num_bootstrap = len(runs), runs.shape[-1] - 1
    if num_seeds == 1 or num_bootstrap == 0:
        return mean
    spread = runs[..., 0].std(axis=0, ddof=1) / np.sqrt(num_seeds)
    quantiles = stdtrit(num_seeds - 1, (np.arange(num_bootstrap) + 0.5) / num_bootstrap)
    mean[..., 1:] += spread[..., None] * np.random.default_rng(0).permutation(quantiles)
    return mean

"""95% intervals from bootstrap replicates, alone and over days, territories and seeds; relative gains, paired.

Arrays have the replicates as their last axis, R = 1 + num_bootstrap, with the plain estimate at index 0. So steps
compose: gain of each seed, mean over seeds, mean over days, interval.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes a second to import

LEVEL = 0.95
MIN_FINITE = 0.5
"""Minimum fraction of replicates with a value (a replicate may draw no positive at all)."""


class Interval(NamedTuple):
    """An estimate and its 95% interval; NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def interval(replicates: np.ndarray) -> Interval:
    """Percentile interval (Efron & Tibshirani 1993, chapter 13): (R,) -> estimate, 2.5% and 97.5% quantiles.

    No bounds without an estimate, without replicates, or when fewer than half of them have a value.
    """
    value, drawn = float(replicates[0]), replicates[1:]
    drawn = drawn[np.isfinite(drawn)]
    if np.isnan(value) or not len(drawn) or len(drawn) < MIN_FINITE * (len(replicates) - 1):
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def relative_gain(run: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """100 (run / baseline - 1), in percent, replicate by replicate: (..., R), (..., R) -> (..., R).

    Users have the same weights in both, so their common error cancels (a paired interval). NaN over a zero baseline.
    """
    ratio = np.divide(run, baseline, out=np.full(np.shape(run), np.nan), where=np.asarray(baseline) > 0)
    return 100 * (ratio - 1)


def nan_mean(replicates: np.ndarray, axis: int = 0) -> np.ndarray:
    """Mean over days, or over territories (macro): rows without an estimate are left out; NaN if all are.

    A row with an estimate but a NaN replicate is left out of that replicate's mean.
    """
    rows = np.moveaxis(np.asarray(replicates, dtype=np.float64), axis, 0)
    finite = np.isfinite(rows) & np.isfinite(rows[..., :1])
    count = finite.sum(axis=0)
    total = np.where(finite, rows, 0).sum(axis=0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def mean_over_seeds(replicates: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of several runs that differ in the seed alone: a sequence of (..., R) -> (..., R).

    Two independent errors add up. Users: the mean over seeds within each bootstrap replicate, as seeds share their test
    users. Seeds: replicate b gets an error e_b, the quantiles of s / sqrt(n) times Student's t with n - 1 degrees of
    freedom in a fixed random order, s being the standard deviation of the n plain estimates (a bootstrap over n = 3
    seeds would understate the variance by a third). One run is returned unchanged.
    """
    runs = np.stack([np.asarray(r, dtype=np.float64) for r in replicates])  # (n, ..., R)
    mean = runs.mean(axis=0)
    num_seeds, num_bootstrap = len(runs), runs.shape[-1] - 1
    if num_seeds == 1 or num_bootstrap == 0:
        return mean
    spread = runs[..., 0].std(axis=0, ddof=1) / np.sqrt(num_seeds)
    quantiles = stdtrit(num_seeds - 1, (np.arange(num_bootstrap) + 0.5) / num_bootstrap)
    quantiles = np.random.default_rng(0).permutation(quantiles)
    mean[..., 1:] += spread[..., None] * quantiles
    return mean

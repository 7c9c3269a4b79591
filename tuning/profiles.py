"""First-time discoveries of training users in the window, by territory and title.

Legend: `N` territories, `T` titles.
"""

from collections.abc import Sequence

import numpy as np

from mtrec_ray.jobs.shards import count_bucket_discoveries
from mtrec_ray.lake.cluster import MapTasks
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.tuning.clustering import Evidence

SMOOTHING = 100.0
"""Discoveries added to each territory's profile, distributed as those of all."""


def count_discoveries(
    lake: Lake, calendar: Calendar, sample: SampleConfig, buckets: Sequence[int], map_over: MapTasks
) -> np.ndarray:
    """(2, N, T) discoveries in the window by training users of even and odd buckets."""
    window = {0: Catalogue.of(lake, *calendar.day_bounds(0))}
    counts = np.zeros((2, len(window[0].offers), len(window[0].title_ids)), dtype=np.int64)
    for bucket, ((cells, found), _, _) in map_over(count_bucket_discoveries, buckets, lake, sample, window):
        counts[bucket % 2].ravel()[cells] += found
    return counts


def taste_evidence(counts: np.ndarray, offer_mask: np.ndarray) -> Evidence:
    """How much more of each title a territory discovers than all do, in standard deviations.

    s_tj = (x_tj - n_t q_tj) / sqrt(q_tj (1 + SMOOTHING / n_t)), q_tj being title j's fraction of what all territories
    discover of the titles offered in t: a smoothed log ratio for popular titles, small for territories with few
    discoveries. Titles offered in a single territory do not compare territories and are left out.

    Args:
        counts: (2, N, T) from `count_discoveries`.
        offer_mask: (N, T) bool.
    """
    comparable = offer_mask & (offer_mask.sum(axis=0) > 1)
    halves = [_standardised(np.where(comparable, half, 0).astype(np.float64), comparable) for half in counts]
    return Evidence(np.stack([vectors for vectors, _ in halves]), np.stack([seen for _, seen in halves]))


def _standardised(counts: np.ndarray, comparable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, T) s_tj and (N,) discoveries of one half."""
    popularity = (counts.sum(axis=0) + 0.5) * comparable  # (N, T)
    fraction = popularity / np.maximum(popularity.sum(axis=1, keepdims=True), 1.0)
    seen = counts.sum(axis=1)
    spread = np.sqrt(fraction * (1.0 + SMOOTHING / np.maximum(seen, 1.0))[:, None])
    return np.divide(counts - seen[:, None] * fraction, spread, out=np.zeros_like(counts), where=spread > 0), seen

"""Discoveries of training users in the window by territory: evidence for partitions.

Legend: `N` territories, `T` titles.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np

from mtrec_ray.console import ProgressCallback
from mtrec_ray.jobs.shards import count_bucket_discoveries
from mtrec_ray.lake.cluster import joins_cluster
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import CLUSTER, LocalReader, Reader
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.affinity import gradient_evidence
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.data import TrialData
from mtrec_ray.tuning.partitions import PartitionMaker

SMOOTHING = 100.0  # discoveries added to each territory's profile, distributed as those of all


def quick_reader() -> Reader:
    """A cluster's reader, or that of this process: a local Ray would take longer to start."""
    return CLUSTER if joins_cluster() else LocalReader()


def partition_maker(config: PropensityConfig, data: TrialData, progress: ProgressCallback | None) -> PartitionMaker:
    """Makes partitions of a lake from what its training users discover in the training window."""
    counts = count_discoveries(data.lake, data.calendar, config.sample, data.buckets, quick_reader(), progress)
    mask = Catalogue.of(data.lake, *data.calendar.day_bounds(0)).offer_mask
    model = config.model.model_copy(update={"groups": None, "group_block": None})
    baseline = config.model_copy(update={"kind": "baseline", "model": model})
    evidence = {
        "taste": cache(partial(taste_evidence, counts, mask)),
        "affinity": cache(partial(gradient_evidence, baseline, data)),
    }
    return PartitionMaker(data.lake.manifest, counts.sum(axis=0), evidence, config.seed)


def count_discoveries(
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    buckets: Sequence[int],
    reader: Reader,
    progress: ProgressCallback | None = None,
) -> np.ndarray:
    """(2, N, T) discoveries in the window by training users of even and odd buckets."""
    window = {0: Catalogue.of(lake, *calendar.day_bounds(0))}
    counts = np.zeros((2, len(window[0].offers), len(window[0].title_ids)), dtype=np.int64)
    shared = (lake, sample, window)
    counted = reader.map(count_bucket_discoveries, buckets, *shared, stage="counting discoveries", progress=progress)
    for bucket, ((cells, found), _, _) in counted:
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
    counts = np.where(comparable, counts, 0).astype(np.float64)
    popularity = (counts.sum(axis=1, keepdims=True) + 0.5) * comparable  # (2, N, T)
    fraction = popularity / np.maximum(popularity.sum(axis=2, keepdims=True), 1.0)
    seen = counts.sum(axis=2, keepdims=True)  # (2, N, 1)
    spread = np.sqrt(fraction * (1.0 + SMOOTHING / np.maximum(seen, 1.0)))
    vectors = np.divide(counts - seen * fraction, spread, out=np.zeros_like(counts), where=spread > 0)
    return Evidence(vectors, seen[:, :, 0])

"""Who is trained on: a random sample R and a disjoint adaptive active set A.

Every decision is a seeded hash of the user id, so it is the same in any order, for any number of readers and buckets.
"""

import numpy as np

from mtrec_ray.hashing import uniforms
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Calendar
from mtrec_ray.streams.config import SampleConfig

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_of(keys: np.ndarray, sample: SampleConfig) -> np.ndarray:
    """TRAIN, VALIDATION or TEST of each user key; (N,) uint64 -> (N,) int8."""
    draw = uniforms(keys, "split", sample.split_seed)
    split = np.full(len(keys), TRAIN, dtype=np.int8)
    split[draw < sample.test_fraction + sample.validation_fraction] = VALIDATION
    split[draw < sample.test_fraction] = TEST
    return split


def in_random_sample(keys: np.ndarray, sample: SampleConfig) -> np.ndarray:
    """(N,) bool: training users of the random sample R."""
    chosen = uniforms(keys, "random sample", sample.seed) < sample.random_fraction
    return chosen & (split_of(keys, sample) == TRAIN)


def adaptive_rates(num_active: np.ndarray, num_addable: np.ndarray, size: float, tau: float) -> np.ndarray:
    """(territories,) sampling rates of an added set of `size` users.

    A territory's part is proportional to num_active^tau; too few addable users (active, training, outside R) pass the
    surplus on to the other territories.
    """
    weights = np.where(num_addable > 0, np.power(np.maximum(num_active, 1.0), tau), 0.0)
    wanted = np.zeros(len(weights))
    unfilled = weights > 0
    while unfilled.any():
        remaining = size - wanted[~unfilled].sum()
        parts = remaining * weights / weights[unfilled].sum()
        full = unfilled & (parts >= num_addable)
        if not full.any():
            wanted[unfilled] = parts[unfilled]
            break
        wanted[full] = num_addable[full]
        unfilled &= ~full
    return np.divide(wanted, num_addable, out=np.zeros_like(wanted), where=num_addable > 0).clip(0.0, 1.0)


def sampled_users(
    bucket: Bucket, sample: SampleConfig, calendar: Calendar, rates: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ascending rows of the sampled users (S,), and which of them are of the added set (S,)."""
    in_random = in_random_sample(bucket.keys, sample)
    eligible = (split_of(bucket.keys, sample) == TRAIN) & ~in_random
    if sample.upsample == "active":
        eligible &= bucket.active(*calendar.day_bounds(0), sample.active_days)
    added = eligible & (uniforms(bucket.keys, "added set", sample.seed) < rates[bucket.territory])
    rows = np.flatnonzero(in_random | added)
    return rows, added[rows]

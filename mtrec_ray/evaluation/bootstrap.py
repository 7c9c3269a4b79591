"""Poisson bootstrap over users, drawn from a hash of the user's key.

A user has the same weights for every model, day and shard, so two runs are compared replicate by replicate (paired).

Legend: U users, R = 1 + num_bootstrap replicates (replicate 0 is the plain sample, every weight 1).
"""

import functools
import math

import numpy as np

from mtrec_ray.hashing import mix

DRAWS_PER_HASH = 4
MAX_WEIGHT = 8
"""Largest weight of a user: what 16 bits resolve of Poisson(1)."""


def poisson_weights(user_keys: np.ndarray, num_bootstrap: int, seed: int = 0) -> np.ndarray:
    """Weight of each user in each replicate: (U,) uint64 -> (1 + num_bootstrap, U) float32, integers in [0, 8].

    Poisson(1) weights instead of multinomial resampling make the bootstrap streamable (Chamandy et al. 2012,
    "Estimating Uncertainty for Massive Data Streams"). One 64-bit hash gives four draws of 16 bits; rounding the
    distribution to 1/65536 moves its mean by less than 1e-4.
    """
    num_hashes = -(-num_bootstrap // DRAWS_PER_HASH)
    counters = np.arange(num_hashes, dtype=np.uint64)
    hashes = mix(user_keys[:, None], "poisson bootstrap", seed, counters)  # (U, num_hashes)
    draws = _poisson_table()[hashes.astype("<u8").view("<u2")]  # (U, 4 * num_hashes)
    weights = np.ones((1 + num_bootstrap, len(user_keys)), dtype=np.float32)
    weights[1:] = draws[:, :num_bootstrap].T
    return weights


@functools.cache
def _poisson_table() -> np.ndarray:
    """Inverse of the Poisson(1) distribution function at (i + 1/2) / 65536; (65536,) uint8."""
    cdf = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(MAX_WEIGHT)])
    return np.searchsorted(cdf, (np.arange(65536) + 0.5) / 65536).astype(np.uint8)

"""Stateless randomness: hashes of ids, the same in any order, process and bucket."""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd

Salt = int | str


def user_keys(user_ids: Iterable[str] | np.ndarray) -> np.ndarray:
    """SipHash of each user id (`pandas.util.hash_array`): (N,) strings -> (N,) uint64."""
    ids = np.asarray(user_ids, dtype=object)
    return pd.util.hash_array(ids, categorize=False)  # pyright: ignore[reportAttributeAccessIssue]


def bucket_of(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    """Lake bucket of each user key: (N,) uint64 -> (N,) int32 below `num_buckets`."""
    return (mix(keys, "bucket") % np.uint64(num_buckets)).astype(np.int32)


def mix(keys: np.ndarray, *salts: Salt | np.ndarray) -> np.ndarray:
    """64-bit hash of `keys` with salts (SplitMix64 finaliser, Steele et al. 2014).

    A salt is an int, a string, or a uint64 array that broadcasts against `keys`.
    """
    state = np.asarray(keys, dtype=np.uint64)
    for salt in salts:
        state = _splitmix64(state ^ _splitmix64(_salt_to_uint64(salt)))
    return state


def uniforms(keys: np.ndarray, *salts: Salt | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from the upper 53 bits of `mix`."""
    return (mix(keys, *salts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _salt_to_uint64(salt: Salt | np.ndarray) -> np.ndarray:
    if isinstance(salt, str):
        salt = int.from_bytes(hashlib.blake2b(salt.encode(), digest_size=8).digest(), "little")
    if isinstance(salt, int):
        salt = np.array(salt % 2**64, dtype=np.uint64)
    return salt.astype(np.uint64)


def _splitmix64(state: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return state ^ (state >> np.uint64(31))

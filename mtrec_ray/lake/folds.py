"""Cross-fitting folds: which of a user's titles are left out of which of its vectors."""

from datetime import datetime

import numpy as np

from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, pair_code, user_and_title, within


def fold_of_pairs(
    bucket: Bucket,
    bounds: tuple[datetime, datetime],
    user_row: np.ndarray,
    title_index: np.ndarray,
    num_folds: int,
    seed: int,
) -> np.ndarray:
    """Fold of each (user, title) pair; (P,), (P,) -> (P,) int64 in [0, num_folds).

    The titles of a user's history in [start, end) are dealt out evenly in the order of a hash, so every vector of a
    user with two titles or more has a title left; any other title (a negative) gets a fold by its hash alone. Other
    users have no influence.
    """
    inside = within(bucket.event_time, *bounds)
    history = np.unique(pair_code(bucket.event_user[inside], bucket.event_title[inside]))
    user, title = user_and_title(history)
    order = np.lexsort((_hashes(bucket, user, title, seed), user))
    counts = np.bincount(user, minlength=len(bucket.keys))
    rank = np.empty(len(history), dtype=np.int64)
    rank[order] = np.arange(len(history)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = (mix(bucket.keys, "first fold", seed) % np.uint64(num_folds)).astype(np.int64)
    dealt = (rank + first[user]) % num_folds
    folds = (_hashes(bucket, user_row, title_index, seed) % np.uint64(num_folds)).astype(np.int64)
    pairs = pair_code(user_row, title_index)
    index = np.searchsorted(history, pairs)
    known = index < len(history)
    known[known] = history[index[known]] == pairs[known]
    folds[known] = dealt[index[known]]
    return folds


def _hashes(bucket: Bucket, user_row: np.ndarray, title_index: np.ndarray, seed: int) -> np.ndarray:
    return mix(bucket.keys[user_row], "fold", seed, title_index.astype(np.uint64))

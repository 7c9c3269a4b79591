"""Accuracy by group of users: means with intervals, and the largest gap with its null.

Legend: U users, G groups such as the values of an attribute, R replicates (`intervals.poisson_weights`, the plain
sample at index 0).
"""

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from mtrec_ray.evaluation.intervals import Interval, interval, ratio

MIN_GROUP_USERS = 10  # a smaller group has no mean of its own
NUM_GAP_PERMUTATIONS = 300


class GroupMeans(NamedTuple):
    """Means of a metric over each group of users."""

    num_users: np.ndarray  # (G,) with a metric
    replicates: np.ndarray  # (R, G)

    @staticmethod
    def measure(metric: np.ndarray, groups: np.ndarray, num_groups: int, weights: np.ndarray) -> "GroupMeans":
        """From (U,) metrics, NaN = none, (U,) groups, -1 = none, and (R, U) weights."""
        users = np.flatnonzero((groups >= 0) & np.isfinite(metric))
        counts, shape = np.bincount(groups[users], minlength=num_groups), (num_groups, len(groups))
        sums = [
            np.asarray(csr_matrix((of, (groups[users], users)), shape=shape) @ weights.T).T
            for of in (metric[users], np.ones(len(users)))
        ]
        return GroupMeans(counts, ratio(*sums))

    @property
    def measured(self) -> np.ndarray:
        """Groups with enough users."""
        return np.flatnonzero(self.num_users >= MIN_GROUP_USERS)


class NdcgGap(NamedTuple):
    """The largest difference of mean NDCG between two groups."""

    gap: Interval
    ratio: Interval  # worst / best
    null_high: float  # 95% quantile of the largest gap when groups are permuted over users: a smaller gap may be chance
    best: int
    worst: int


def largest_ndcg_gap(
    ndcg: np.ndarray, groups: np.ndarray, num_groups: int, keys: np.ndarray, weights: np.ndarray, seed: int = 0
) -> NdcgGap | None:
    """Largest NDCG gap: (U,) NDCG, groups and keys, as `GroupMeans.measure` takes them.

    Groups with fewer than `MIN_GROUP_USERS` users take no part; None if fewer than two remain.
    """
    found = GroupMeans.measure(ndcg, groups, num_groups, weights)
    compared = found.measured
    if len(compared) < 2:
        return None
    best, worst = (int(compared[pick(found.replicates[0, compared])]) for pick in (np.argmax, np.argmin))
    highest, lowest = found.replicates[:, best], found.replicates[:, worst]
    order = np.argsort(keys, kind="stable")  # the null does not depend on the caller's order
    order = order[(groups[order] >= 0) & np.isfinite(ndcg[order])]
    truth = groups[order, None] == compared  # (U, G)
    rng = np.random.default_rng([seed, num_groups])
    null = []
    for _ in range(NUM_GAP_PERMUTATIONS):
        shuffled = rng.permutation(ndcg[order]) @ truth / found.num_users[compared]
        null.append(shuffled.max() - shuffled.min())
    gap, quotient = interval(highest - lowest), interval(ratio(lowest, highest))
    return NdcgGap(gap, quotient, float(np.quantile(null, 0.95)), best, worst)

"""Balanced clustering of territories by what they gain from sharing.

A territory's evidence s_t is a sum over its n_t pairs, such as its gradient. Groups c with own parameters gain, to
first order and without the products of a territory with itself, which are mostly noise,

    J = sum over groups of (sum over t != u in c of <s_t, s_u>) / (sum over t in c of n_t)

Moves and swaps from random starts maximise it (Kernighan-Lin). Legend: `N` territories, `G` groups, `E` numbers.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NUM_STARTS = 10
SLACK = 1.5  # largest group, in mean group sizes


@dataclass(frozen=True)
class Evidence:
    """What the pairs of each territory show of its taste, from two halves of the users."""

    vectors: np.ndarray  # (2, N, E) float64: sums over each half's pairs, the mean over all pairs removed
    pairs: np.ndarray  # (2, N) number of pairs, or positives, behind each

    @staticmethod
    def centred(sums: np.ndarray, pairs: np.ndarray) -> "Evidence":
        """Evidence about differences: what all pairs have in common does not separate territories."""
        pairs = np.asarray(pairs, dtype=np.float64)
        means = sums.sum(axis=1, keepdims=True) / np.maximum(1.0, pairs.sum(axis=1))[:, None, None]
        return Evidence(sums - pairs[:, :, None] * means, pairs)

    def products(self, half: int | None = None) -> np.ndarray:
        """(N, N) <s_t, s_u> of one half or of all users, zero for a territory with itself."""
        vectors = self.vectors.sum(axis=0) if half is None else self.vectors[half]
        products = vectors @ vectors.T
        np.fill_diagonal(products, 0.0)
        return products

    def cosines(self) -> np.ndarray:
        """(N, N) cosines, 0 for a territory without evidence."""
        vectors = self.vectors.sum(axis=0)
        norms = np.linalg.norm(vectors, axis=1)
        return vectors @ vectors.T / np.maximum(np.outer(norms, norms), np.finfo(float).tiny)

    def clusters(self, num_groups: int, seed: int = 0) -> np.ndarray:
        """(N,) groups with the largest J over all users."""
        return balanced_clusters(self.products(), self.pairs.sum(axis=0), num_groups, seed)

    def best_count(self, counts: Iterable[int], seed: int = 0) -> int:
        """The number of groups whose clusters in each half of the users have most J in the other."""

        def gain_in_other_half(count: int) -> float:
            found = (balanced_clusters(self.products(half), self.pairs[half], count, seed) for half in (0, 1))
            return sum(gain(self.products(1 - half), self.pairs[1 - half], group) for half, group in enumerate(found))

        return max(counts, key=gain_in_other_half)


def gain(products: np.ndarray, pairs: np.ndarray, group: np.ndarray) -> float:
    """J of a partition; (N, N) products, (N,) pairs, (N,) group of each territory."""
    total = 0.0
    for index in np.unique(group):
        members = group == index
        total += products[np.ix_(members, members)].sum() / max(1.0, pairs[members].sum())
    return total


def balanced_clusters(
    products: np.ndarray, pairs: np.ndarray, num_groups: int, seed: int = 0, num_starts: int = NUM_STARTS
) -> np.ndarray:
    """(N,) groups with the largest J of all starts; (N, N) products, (N,) pairs."""
    rng, size = np.random.default_rng(seed), len(pairs)
    capacity = math.ceil(SLACK * size / num_groups)
    best, best_gain = np.zeros(size, dtype=np.int64), -np.inf
    for _ in range(num_starts):
        group = np.empty(size, dtype=np.int64)
        group[rng.permutation(size)] = np.arange(size) % num_groups
        while sum(improve(group, t, products, np.maximum(pairs, 1.0), capacity) for t in rng.permutation(size)):
            pass  # until a whole round changes nothing
        found = gain(products, pairs, group)
        if found > best_gain:
            best, best_gain = group, found
    return renumbered(best)


def renumbered(group: np.ndarray) -> np.ndarray:
    """The same partition, groups numbered 0, 1, ... in the order of their first territory."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def improve(group: np.ndarray, t: int, products: np.ndarray, pairs: np.ndarray, capacity: int) -> bool:
    """Change `group` by the best move or swap of territory t; False where none gains."""
    one_hot = np.eye(int(group.max()) + 1)[group]
    to_group = products @ one_hot  # (N, G) sum of a territory's products with each group
    within, weight = np.einsum("ng,ng->g", to_group, one_hot), pairs @ one_hot  # (G,)
    count, here, now, own = one_hot.sum(axis=0), group[t], within / weight, to_group[t]

    moves = np.full(len(now), -np.inf)
    if count[here] > 1:
        left = (within[here] - 2 * own[here]) / (weight[here] - pairs[t])
        moves = (within + 2 * own) / (weight + pairs[t]) - now + left - now[here]
        moves[(count >= capacity) | (np.arange(len(now)) == here)] = -np.inf

    here_within = within[here] - 2 * own[here] + 2 * (to_group[:, here] - products[t])  # (N,)
    there_within = within[group] - 2 * to_group[np.arange(len(group)), group] + 2 * (own[group] - products[t])
    swaps = here_within / (weight[here] - pairs[t] + pairs) + there_within / (weight[group] - pairs + pairs[t])
    swaps = np.where(group == here, -np.inf, swaps - now[here] - now[group])

    if max(moves.max(), swaps.max()) <= 1e-9 * (np.abs(within) / weight).sum() + 1e-300:
        return False
    if moves.max() >= swaps.max():
        group[t] = moves.argmax()
    else:
        other = swaps.argmax()
        group[t], group[other] = group[other], here
    return True

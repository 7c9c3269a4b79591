"""Territories into groups by what they gain from sharing: balanced clustering of evidence vectors.

Legend: `N` territories, `G` groups, `E` numbers of an evidence vector.

A territory's evidence s_t is a sum over its pairs (such as its gradient), n_t their number. A group c that gets
parameters of its own gains, to first order, |sum of its s_t|^2 / sum of its n_t. The part of that which a territory has
with itself is mostly its own noise, and grows as a territory shrinks; the products of different territories carry
independent noise, so

    J = sum over groups of (sum over t != u in c of <s_t, s_u>) / (sum over t in c of n_t)

is free of that bias, and small territories, who know little, weigh little. It is maximised by moves and swaps from
random starts (Kernighan-Lin style), with at most `slack` times the mean number of territories in a group.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NUM_STARTS = 10
SLACK = 1.5


@dataclass(frozen=True)
class Evidence:
    """What every territory's pairs say of its taste, gathered from two halves of the users."""

    vectors: np.ndarray
    """(2, N, E) float64: sums over each half's pairs of the territory, the mean over all pairs removed."""
    pairs: np.ndarray
    """(2, N) number of pairs, or positives, behind each."""

    @staticmethod
    def centred(sums: np.ndarray, pairs: np.ndarray) -> "Evidence":
        """Evidence about differences: what all pairs have in common says nothing about who should share."""
        pairs = np.asarray(pairs, dtype=np.float64)
        means = sums.sum(axis=1, keepdims=True) / np.maximum(1.0, pairs.sum(axis=1))[:, None, None]
        return Evidence(sums - pairs[:, :, None] * means, pairs)

    @property
    def total_pairs(self) -> np.ndarray:
        """(N,)"""
        return self.pairs.sum(axis=0)

    def products(self, half: int | None = None) -> np.ndarray:
        """(N, N) <s_t, s_u> of one half or of all users, without those of a territory with itself."""
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
        return balanced_clusters(self.products(), self.total_pairs, num_groups, seed)

    def best_count(self, counts: Iterable[int], seed: int = 0) -> int:
        """The number of groups whose clusters, found in one half of the users, have the largest J in the other."""

        def told_by_the_other(count: int) -> float:
            found = (balanced_clusters(self.products(half), self.pairs[half], count, seed) for half in (0, 1))
            return sum(gain(self.products(1 - half), self.pairs[1 - half], group) for half, group in enumerate(found))

        return max(counts, key=told_by_the_other)


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
    """(N,) group of each territory with the largest J found, groups numbered by their first territory.

    Args:
        products: (N, N) symmetric, zero diagonal: `Evidence.products`.
        pairs: (N,).
        num_groups: at most N.
        seed: of the starts.
        num_starts: the best of so many is taken.
    """
    rng = np.random.default_rng(seed)
    size = len(pairs)
    capacity = math.ceil(SLACK * size / num_groups)
    best, best_gain = np.zeros(size, dtype=np.int64), -np.inf
    for _ in range(num_starts):
        group = np.empty(size, dtype=np.int64)
        group[rng.permutation(size)] = np.arange(size) % num_groups
        climber = _Climber(products, np.maximum(pairs, 1.0), group, num_groups, capacity)
        while sum(climber.improve(t) for t in rng.permutation(size).tolist()):
            pass  # until a whole round changes nothing
        found = gain(products, pairs, climber.group)
        if found > best_gain:
            best, best_gain = climber.group.copy(), found
    return renumbered(best)


def renumbered(group: np.ndarray) -> np.ndarray:
    """The same partition, groups numbered 0, 1, ... in the order of their first territory."""
    _, first, inverse = np.unique(group, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


class _Climber:
    """One start: improves a territory's place by the best move or swap, with running sums."""

    def __init__(self, products: np.ndarray, pairs: np.ndarray, group: np.ndarray, num_groups: int, capacity: int):
        self.products, self.pairs, self.group, self.capacity = products, pairs, group, capacity
        one_hot = np.eye(num_groups)[group]
        self.to_group = products @ one_hot  # (N, G) sum of a territory's products with each group
        self.within = np.einsum("ng,ng->g", self.to_group, one_hot)  # (G,)
        self.weight = pairs @ one_hot  # (G,)
        self.count = np.bincount(group, minlength=num_groups)

    def improve(self, t: int) -> bool:
        """Take the best change of t's place; False where there is none."""
        move_gain, target = self._best_move(t)
        swap_gain, other = self._best_swap(t)
        tolerance = 1e-9 * (np.abs(self.within) / self.weight).sum() + 1e-300
        if max(move_gain, swap_gain) <= tolerance:
            return False
        if move_gain >= swap_gain:
            self._move(t, target)
        else:
            here, there = int(self.group[t]), int(self.group[other])
            self._move(t, there)
            self._move(other, here)
        return True

    def _best_move(self, t: int) -> tuple[float, int]:
        here = self.group[t]
        if self.count[here] == 1:
            return -np.inf, -1
        now = self.within / self.weight
        left = (self.within[here] - 2 * self.to_group[t, here]) / (self.weight[here] - self.pairs[t])
        joined = (self.within + 2 * self.to_group[t]) / (self.weight + self.pairs[t])
        gains = joined - now + left - now[here]
        gains[(self.count >= self.capacity) | (np.arange(len(gains)) == here)] = -np.inf
        return float(gains.max()), int(gains.argmax())

    def _best_swap(self, t: int) -> tuple[float, int]:
        here, group, n = self.group[t], self.group, self.pairs
        now = self.within / self.weight
        own, pair = self.to_group[t], self.products[t]
        here_within = self.within[here] - 2 * own[here] + 2 * (self.to_group[:, here] - pair)  # (N,)
        there_within = self.within[group] - 2 * self.to_group[np.arange(len(n)), group] + 2 * (own[group] - pair)
        here_weight, there_weight = self.weight[here] - n[t] + n, self.weight[group] - n + n[t]
        gains = here_within / here_weight + there_within / there_weight - now[here] - now[group]
        gains[group == here] = -np.inf
        return float(gains.max()), int(gains.argmax())

    def _move(self, t: int, target: int) -> None:
        here = self.group[t]
        self.within[here] -= 2 * self.to_group[t, here]
        self.within[target] += 2 * self.to_group[t, target]
        self.to_group[:, here] -= self.products[:, t]
        self.to_group[:, target] += self.products[:, t]
        self.weight[here] -= self.pairs[t]
        self.weight[target] += self.pairs[t]
        self.count[here] -= 1
        self.count[target] += 1
        self.group[t] = target

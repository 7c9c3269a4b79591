"""How far top-k lists lean to popular and to global titles: exposure counts per territory, and what follows from them.

Legend: U users of a chunk, T titles of the chunk, N titles of the catalogue, k length of a list.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import rel_entr

from mtrec_ray.evaluation.score_counts import positive_pairs

CANDIDATE, EXPOSED, POSITIVE, HIT = range(4)
"""Rows of the counts: user-title pairs that could be shown, were shown (top k), are positive, are both."""


@dataclass(frozen=True)
class TitleHistory:
    """What training knew of each title."""

    popularity: np.ndarray
    """(num_territories, N) interactions in the training window."""
    is_local: np.ndarray
    """(N,) bool, True = offered or watched in one territory only."""


class PopularityBiasAccumulator:
    """Counts of candidates, exposures, positives and hits of each title in the users' top-k lists, by territory."""

    def __init__(self, num_territories: int, num_titles: int, k: int = 10) -> None:
        self.num_territories = num_territories
        self.num_titles = num_titles
        self.k = k
        self.counts: dict[int, np.ndarray] = {}  # territory -> (4, N) int64
        self.num_users: dict[int, int] = {}

    def add(
        self, territory: int, logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, title_index: np.ndarray
    ) -> None:
        """Count one chunk of users: (U, T) scores, labels, candidates; `title_index` (T,) names the columns.

        A user with fewer than k candidates gets a list of them all. Ties at the end of a list are cut the same way
        for the same scores.
        """
        user, column = top_titles(logits, mask, self.k)
        counts = np.zeros((4, self.num_titles), dtype=np.int64)
        np.add.at(counts[CANDIDATE], title_index, mask.sum(axis=0))
        np.add.at(counts[EXPOSED], title_index[column], 1)
        np.add.at(counts[POSITIVE], title_index[positive_pairs(labels, mask)[1]], 1)
        np.add.at(counts[HIT], title_index[column[labels[user, column]]], 1)
        self._add_counts(territory, counts, len(logits))

    def merge(self, other: "PopularityBiasAccumulator") -> None:
        """Add the counts of another accumulator of the same settings."""
        if (self.num_territories, self.num_titles, self.k) != (other.num_territories, other.num_titles, other.k):
            raise ValueError("cannot merge popularity-bias accumulators of different territories, titles or k")
        for territory, counts in other.counts.items():
            self._add_counts(territory, counts, other.num_users[territory])

    def metrics(self, territory: int | None, history: TitleHistory, head_share: float = 0.8) -> dict[str, float]:
        """`bias_metrics` of one territory, or of all users together with None."""
        if history.popularity.shape != (self.num_territories, self.num_titles):
            raise ValueError(
                f"popularity is {history.popularity.shape}, expected {(self.num_territories, self.num_titles)}"
            )
        empty = np.zeros((4, self.num_titles), dtype=np.int64)
        if territory is None:
            counts, num_users = sum(self.counts.values(), empty), sum(self.num_users.values())
            popularity = history.popularity.sum(axis=0)
        else:
            counts, num_users = self.counts.get(territory, empty), self.num_users.get(territory, 0)
            popularity = history.popularity[territory]
        return bias_metrics(counts, num_users, popularity, history.is_local, head_share)

    def _add_counts(self, territory: int, counts: np.ndarray, num_users: int) -> None:
        self.counts[territory] = self.counts[territory] + counts if territory in self.counts else counts
        self.num_users[territory] = self.num_users.get(territory, 0) + num_users


def top_titles(logits: np.ndarray, mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(user, column) of the k best candidates of each user, lists one after another, best first within a list."""
    scores = torch.from_numpy(logits if mask.all() else np.where(mask, logits, -np.inf).astype(np.float32))
    column = torch.topk(scores, min(k, scores.shape[1]), dim=1).indices.numpy()  # (U, k)
    user = np.repeat(np.arange(len(logits)), column.shape[1])
    chosen = mask[user, column.ravel()]
    return user[chosen], column.ravel()[chosen]


def short_head(popularity: np.ndarray, head_share: float) -> np.ndarray:
    """The fewest most popular titles that hold `head_share` of the interactions; (N,) -> (N,) bool.

    The others are the long tail (Abdollahpouri, Burke & Mobasher 2019, with 80%).
    """
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), dtype=bool)
    head[order] = before < head_share * popularity.sum()
    return head


def bias_metrics(
    counts: np.ndarray, num_users: int, popularity: np.ndarray, is_local: np.ndarray, head_share: float = 0.8
) -> dict[str, float]:
    """Popularity-bias metrics of top-k lists: (4, N) counts, (N,) training interactions, (N,) local titles.

    L_u is a user's list, phi(i) a title's interactions in training, head and tail as in `short_head`:

    * arp = mean of phi(i) over all places of all lists (Yin et al. 2012, "Challenging the Long Tail Recommendation")
    * aplt = places that hold a tail title / places (Abdollahpouri, Burke & Mobasher 2019, "Managing Popularity Bias
      in Recommender Systems with Personalized Re-ranking"); with lists of equal length the mean over users
    * aclt = places that hold a tail title / users (same source)
    * pop_rsp = std(P) / mean(P), P_g = places of group g / candidates of group g, g in (head, tail): 0 = both groups
      are shown at the same rate (Zhu, Wang & Caverlee 2020, "Measuring and Mitigating Item Under-Recommendation Bias")
    * pop_reo = the same of P_g = positives of g that are in the list / positives of g (same source)
    * local_share, local_share_history = share of local titles among places, among training interactions of candidates
    * local_js = Jensen-Shannon divergence in bits between those two (Lin 1991): 0 = lists as local as the history
    * gini = Gini coefficient of places over the candidate titles: 0 = all alike, towards 1 = one title takes all

    NaN where a denominator is zero (no list, no positive of a group, no history).
    """
    offered = counts[CANDIDATE] > 0
    exposed = counts[EXPOSED].astype(np.float64)
    places = float(exposed.sum())
    history = np.where(offered, popularity, 0).astype(np.float64)
    tail = ~short_head(history, head_share)
    local_share = _ratio(exposed[is_local].sum(), places)
    local_history = _ratio(history[is_local].sum(), history.sum())
    return {
        "arp": _ratio((exposed * history).sum(), places),
        "aplt": _ratio(exposed[tail].sum(), places),
        "aclt": _ratio(exposed[tail].sum(), num_users),
        "pop_rsp": _relative_spread(counts[EXPOSED], counts[CANDIDATE], tail),
        "pop_reo": _relative_spread(counts[HIT], counts[POSITIVE], tail),
        "local_share": local_share,
        "local_share_history": local_history,
        "local_js": jensen_shannon(local_share, local_history),
        "gini": gini(exposed[offered]),
    }


def jensen_shannon(p: float, q: float) -> float:
    """Jensen-Shannon divergence in bits between two yes/no distributions with probabilities p and q; in [0, 1]."""
    if np.isnan(p) or np.isnan(q):
        return float("nan")
    first, second = np.array([p, 1 - p]), np.array([q, 1 - q])
    middle = (first + second) / 2
    return float((rel_entr(first, middle) + rel_entr(second, middle)).sum() / (2 * np.log(2)))


def gini(values: np.ndarray) -> float:
    """Gini coefficient sum_i (2 i - n - 1) x_i / (n sum x) of x sorted upwards; NaN if empty or all zero."""
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    weights = 2 * np.arange(1, len(ranked) + 1) - len(ranked) - 1
    return _ratio((weights * ranked).sum(), len(ranked) * ranked.sum())


def _relative_spread(shown: np.ndarray, possible: np.ndarray, tail: np.ndarray) -> float:
    rates = np.array([_ratio(shown[group].sum(), possible[group].sum()) for group in (~tail, tail)])
    return _ratio(rates.std(), rates.mean())


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")

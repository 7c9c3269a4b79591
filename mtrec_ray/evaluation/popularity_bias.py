"""Popularity bias of top-k lists: exposure counts and metrics.

Legend: U users and T titles of a chunk, N titles of the catalogue.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import rel_entr

from mtrec_ray.evaluation.intervals import ratio
from mtrec_ray.evaluation.score_counts import positive_pairs

CANDIDATE, EXPOSED, POSITIVE, HIT = range(4)  # rows: pairs that may be shown, are, are positive, are both
BIAS_METRICS = (
    "arp", "aplt", "aclt", "pop_rsp", "pop_reo", "local_fraction", "local_fraction_history", "local_js", "gini",
)  # fmt: skip
HEAD_FRACTION = 0.8  # fraction of the interactions held by the short head (Abdollahpouri, Burke & Mobasher 2019)


@dataclass(frozen=True)
class TitleHistory:
    """Interactions of each title before the evaluation."""

    popularity: np.ndarray  # (num_territories, N) interactions in the training window
    is_local: np.ndarray  # (N,) bool, True = offered or watched in one territory only


def exposure_counts(
    logits: np.ndarray, labels: np.ndarray, mask: np.ndarray, title_index: np.ndarray, num_titles: int, k: int
) -> np.ndarray:
    """Counts of each title in a chunk's top-k lists, (4, N) int64.

    (U, T) scores, labels, candidates; `title_index` (T,) names the columns. Users with under k candidates get all.
    """
    user, column = top_titles(logits, mask, k)
    counts = np.zeros((4, num_titles), dtype=np.int64)
    np.add.at(counts[CANDIDATE], title_index, mask.sum(axis=0))
    np.add.at(counts[EXPOSED], title_index[column], 1)
    np.add.at(counts[POSITIVE], title_index[positive_pairs(labels, mask)[1]], 1)
    np.add.at(counts[HIT], title_index[column[labels[user, column]]], 1)
    return counts


def top_titles(logits: np.ndarray, mask: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(user, column) of each user's k best candidates, list after list, best first."""
    scores = torch.from_numpy(np.where(mask, logits, -np.inf).astype(np.float32))  # a copy: torch wants to write
    column = torch.topk(scores, min(k, scores.shape[1]), dim=1).indices.numpy()  # (U, k)
    user = np.repeat(np.arange(len(logits)), column.shape[1])
    chosen = mask[user, column.ravel()]
    return user[chosen], column.ravel()[chosen]


def short_head(popularity: np.ndarray) -> np.ndarray:
    """The fewest titles with `HEAD_FRACTION` of the interactions: (N,) -> (N,) bool."""
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), dtype=bool)
    head[order] = before < HEAD_FRACTION * popularity.sum()
    return head


def bias_metrics(counts: np.ndarray, num_users: int, popularity: np.ndarray, is_local: np.ndarray) -> dict[str, float]:
    """Popularity-bias metrics: (4, N) counts, (N,) training interactions, (N,) local titles.

    A slot is one position of one list, phi(i) a title's interactions in training, head and tail as in `short_head`:

    * arp = mean of phi(i) over slots (Yin et al. 2012, "Challenging the Long Tail Recommendation")
    * aplt, aclt = fraction of slots with a tail title, and their number per user (Abdollahpouri, Burke & Mobasher 2019,
      "Managing Popularity Bias in Recommender Systems with Personalized Re-ranking")
    * pop_rsp = std(P) / mean(P), P_g = slots of group g / candidates of group g, g in (head, tail): 0 = both groups
      are shown at the same rate (Zhu, Wang & Caverlee 2020, "Measuring and Mitigating Item Under-Recommendation Bias")
    * pop_reo = the same of P_g = positives of g in the lists / positives of g (same source)
    * local_fraction, local_fraction_history = fraction of local titles among slots, among training interactions
    * local_js = Jensen-Shannon divergence in bits between those two (Lin 1991): 0 = lists as local as the history
    * gini = Gini coefficient of slots over the candidate titles: 0 = all alike, towards 1 = one title has all

    NaN where a denominator is zero (no list, no positive of a group, no history).
    """
    offered = counts[CANDIDATE] > 0
    exposed = counts[EXPOSED].astype(np.float64)
    slots = float(exposed.sum())
    history = np.where(offered, popularity, 0.0)
    tail = ~short_head(history)
    local_fraction = ratio(exposed[is_local].sum(), slots)
    local_history = ratio(history[is_local].sum(), history.sum())
    values = (
        ratio((exposed * history).sum(), slots),
        ratio(exposed[tail].sum(), slots),
        ratio(exposed[tail].sum(), num_users),
        _relative_spread(counts[EXPOSED], counts[CANDIDATE], tail),
        _relative_spread(counts[HIT], counts[POSITIVE], tail),
        local_fraction,
        local_history,
        jensen_shannon(float(local_fraction), float(local_history)),
        gini(exposed[offered]),
    )
    return dict(zip(BIAS_METRICS, map(float, values), strict=True))


def jensen_shannon(p: float, q: float) -> float:
    """Jensen-Shannon divergence in bits between two Bernoulli distributions; in [0, 1]."""
    if np.isnan(p) or np.isnan(q):
        return float("nan")
    first, second = np.array([p, 1 - p]), np.array([q, 1 - q])
    middle = (first + second) / 2
    return float((rel_entr(first, middle) + rel_entr(second, middle)).sum() / (2 * np.log(2)))


def gini(values: np.ndarray) -> float:
    """Gini coefficient sum_i (2 i - n - 1) x_i / (n sum x) of x sorted upwards, or NaN."""
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    weights = 2 * np.arange(1, len(ranked) + 1) - len(ranked) - 1
    return float(ratio((weights * ranked).sum(), len(ranked) * ranked.sum()))


def _relative_spread(shown: np.ndarray, possible: np.ndarray, tail: np.ndarray) -> np.ndarray:
    rates = ratio(*(np.array([of[group].sum() for group in (~tail, tail)]) for of in (shown, possible)))
    return ratio(rates.std(), rates.mean())

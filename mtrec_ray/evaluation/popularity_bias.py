"""Popularity bias of top-k lists: counts per user, sums by replicate, and metrics.

Legend: U users and T titles of a chunk, N titles of the catalogue, G territories, R = 1 + num_bootstrap replicates, C
counts of `BIAS_COUNTS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import rel_entr

from mtrec_ray.evaluation.intervals import ratio
from mtrec_ray.evaluation.score_counts import positive_pairs

CANDIDATE, EXPOSED = range(2)  # rows of `exposure_counts`: pairs that may be shown, pairs that are
BIAS_METRICS = (
    "arp", "popularity_lift", "novelty", "aplt", "aclt", "pop_rsp", "pop_reo", "local_fraction",
    "local_fraction_history", "local_js", "gini",
)  # fmt: skip
WITHOUT_REPLICATES = ("local_fraction_history", "gini")  # not of the test users; exposure of every title in each
BIAS_COUNTS = (  # of one user; a slot is one position of its list
    "users", "slots", "popularity", "novelty", "tail_slots", "local_slots", "head_candidates", "tail_candidates",
    "head_positives", "tail_positives", "head_hits", "tail_hits",
)  # fmt: skip
UNITS_PER_BIT = 1024
HEAD_FRACTION = 0.8  # fraction of the interactions held by the short head (Abdollahpouri, Burke & Mobasher 2019)


@dataclass(frozen=True)
class TitleHistory:
    """Interactions of each title before the evaluation."""

    popularity: np.ndarray  # (num_territories, N) interactions in the training window
    is_local: np.ndarray  # (N,) bool, True = offered or watched in one territory only


@dataclass(frozen=True)
class DayTitles:
    """History of the titles offered on a day; row G of a territory axis is all territories."""

    popularity: np.ndarray  # (G + 1, N) interactions in the training window, 0 for titles that are not offered
    is_tail: np.ndarray  # (G + 1, N) bool, outside the `short_head`
    is_local: np.ndarray  # (N,) bool

    @cached_property
    def rarity(self) -> np.ndarray:
        """(G + 1, N) -log2 of a title's share of the interactions, each title with one more.

        In whole units of 1 / `UNITS_PER_BIT` bits: sums of them are exact in any order.
        """
        counts = self.popularity + 1.0
        return np.round(-np.log2(counts / counts.sum(axis=1, keepdims=True)) * UNITS_PER_BIT)

    @classmethod
    def of(cls, history: TitleHistory, offer_mask: np.ndarray) -> "DayTitles":
        """`offer_mask` (G, N) bool: offered in the territory on the day."""
        everywhere = np.where(offer_mask.any(axis=0), history.popularity.sum(axis=0), 0)
        popularity = np.vstack([np.where(offer_mask, history.popularity, 0), everywhere])
        return cls(popularity, ~np.array([short_head(row) for row in popularity]), history.is_local)


def exposure_counts(
    shown: tuple[np.ndarray, np.ndarray], mask: np.ndarray, title_index: np.ndarray, num_titles: int
) -> np.ndarray:
    """How often each title is a candidate and in a list of `top_titles`, (2, N) int64.

    (U, T) candidates; `title_index` (T,) names the columns.
    """
    counts = np.zeros((2, num_titles), dtype=np.int64)
    np.add.at(counts[CANDIDATE], title_index, mask.sum(axis=0))
    np.add.at(counts[EXPOSED], title_index[shown[1]], 1)
    return counts


def bias_sums(
    shown: tuple[np.ndarray, np.ndarray],
    labels: np.ndarray,
    mask: np.ndarray,
    title_index: np.ndarray,
    titles: DayTitles,
    rows: Sequence[int],
    weights: np.ndarray,
) -> np.ndarray:
    """Weighted sums of the users' `BIAS_COUNTS`, exact in any order: (rows, R, C) float64.

    Lists of `top_titles`, (U, T) bool labels and candidates, (R, U) weights; `rows` of `titles` say what is popular.
    """
    num_users, (user, column) = len(mask), shown
    positive_user, positive_column = positive_pairs(labels, mask)
    hit = labels[user, column]

    def per_user(users: np.ndarray, values: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(users, weights=values, minlength=num_users)

    slots, candidates = per_user(user), np.count_nonzero(mask, axis=1)
    positives, hits, local = per_user(positive_user), per_user(user[hit]), titles.is_local[title_index]
    counts = []
    for row in rows:
        popularity, tail = titles.popularity[row, title_index], titles.is_tail[row, title_index]
        rarity = titles.rarity[row, title_index]
        tail_candidates = np.count_nonzero(mask & tail, axis=1)
        tail_positives = per_user(positive_user, tail[positive_column])
        tail_hits = per_user(user[hit], tail[column[hit]])
        columns = (
            np.ones(num_users), slots, per_user(user, popularity[column]), per_user(user, rarity[column]),
            per_user(user, tail[column]), per_user(user, local[column]), candidates - tail_candidates, tail_candidates,
            positives - tail_positives, tail_positives, hits - tail_hits, tail_hits,
        )  # fmt: skip
        counts.append(np.stack(columns, axis=1))
    return weights.astype(np.float64) @ np.array(counts)


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


def bias_metrics(sums: np.ndarray, exposure: np.ndarray, titles: DayTitles) -> dict[str, np.ndarray]:
    """Popularity-bias metrics, (G + 1, R) each; R = 1 for those `WITHOUT_REPLICATES`.

    (G + 1, R, C) of `bias_sums`, (G + 1, 2, N) of `exposure_counts`. A slot is one position of one list, phi(i) a
    title's interactions in training, head and tail as in `short_head`:

    * arp = mean of phi(i) over slots (Yin et al. 2012, "Challenging the Long Tail Recommendation")
    * popularity_lift = arp / mean of phi(i) over training interactions - 1: 0 = lists as popular as what is watched
      (Abdollahpouri et al. 2020, "The Connection Between Popularity Bias, Calibration, and Fairness")
    * novelty = mean over slots of -log2((phi(i) + 1) / sum of (phi + 1)), in bits (Zhou et al. 2010, "Solving the
      apparent diversity-accuracy dilemma of recommender systems"; 1 is added as a title may have no interaction)
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
    of = dict(zip(BIAS_COUNTS, np.moveaxis(sums, -1, 0), strict=True))
    local = ratio(of["local_slots"], of["slots"])
    history = titles.popularity
    local_history = ratio(history[:, titles.is_local].sum(axis=1), history.sum(axis=1))[:, None]
    of_history = ratio(np.square(history, dtype=np.float64).sum(axis=1), history.sum(axis=1))[:, None]
    arp = ratio(of["popularity"], of["slots"])
    shown = (of["slots"] - of["tail_slots"], of["tail_slots"])
    ginis = [gini(row[EXPOSED][row[CANDIDATE] > 0]) for row in exposure]
    values = (
        arp,
        ratio(arp, of_history) - 1,
        ratio(of["novelty"], of["slots"]) / UNITS_PER_BIT,
        ratio(of["tail_slots"], of["slots"]),
        ratio(of["tail_slots"], of["users"]),
        _relative_spread(shown, (of["head_candidates"], of["tail_candidates"])),
        _relative_spread((of["head_hits"], of["tail_hits"]), (of["head_positives"], of["tail_positives"])),
        local,
        local_history,
        jensen_shannon(local, local_history),
        np.array(ginis)[:, None],
    )
    return dict(zip(BIAS_METRICS, values, strict=True))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> np.ndarray:
    """Jensen-Shannon divergence in bits between Bernoulli distributions; in [0, 1], or NaN."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    middle = (p + q) / 2
    parts = rel_entr(p, middle) + rel_entr(1 - p, 1 - middle) + rel_entr(q, middle) + rel_entr(1 - q, 1 - middle)
    return parts / (2 * np.log(2))


def gini(values: np.ndarray) -> float:
    """Gini coefficient sum_i (2 i - n - 1) x_i / (n sum x) of x sorted upwards, or NaN."""
    ranked = np.sort(np.asarray(values, dtype=np.float64))
    weights = 2 * np.arange(1, len(ranked) + 1) - len(ranked) - 1
    return float(ratio((weights * ranked).sum(), len(ranked) * ranked.sum()))


def _relative_spread(shown: tuple[np.ndarray, np.ndarray], possible: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    rates = ratio(np.stack(shown), np.stack(possible))  # (2, ...): head, tail
    return ratio(rates.std(axis=0), rates.mean(axis=0))

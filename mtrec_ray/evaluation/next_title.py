"""How high a held-out title ranks for its user: AUC, HIT@k and NDCG@k, against sampled negatives and the catalogue.

Legend: `U` users, `N` titles of the catalogue.

Both protocols leave out what the user has watched otherwise. Sampled (paper B, 3.1): the held-out title against 99
others; it flatters and can order two models wrongly (Krichene and Rendle, KDD 2020), so the full ranking stands beside.
"""

from dataclasses import dataclass, fields

import numpy as np

from mtrec_ray.hashing import mix

NUM_NEGATIVES = 99
CUTOFF = 10


@dataclass(frozen=True)
class NextTitleMetrics:
    """Figures of each user, (U,) float64; a mean over users is the figure of a model."""

    auc: np.ndarray
    """Share of the sampled negatives that score below the held-out title, ties half."""
    hit: np.ndarray
    """1 where the title is among the first ten of itself and the sampled negatives."""
    ndcg: np.ndarray
    """1 / log2(1 + rank) there, else 0 (one relevant title, so the ideal is 1)."""
    full_hit: np.ndarray
    """The same two over the whole catalogue."""
    full_ndcg: np.ndarray

    def means(self) -> dict[str, float]:
        """Mean of each over users; NaN without users."""
        return {f.name: float(getattr(self, f.name).mean()) if len(self.auc) else float("nan") for f in fields(self)}

    @staticmethod
    def concatenate(parts: "list[NextTitleMetrics]") -> "NextTitleMetrics":
        """The users of all parts."""
        names = [f.name for f in fields(NextTitleMetrics)]
        return NextTitleMetrics(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})


@dataclass(frozen=True)
class Negatives:
    """Titles that users' held-out titles are ranked against, the same for every model."""

    eligible: np.ndarray
    """(U, N) bool: all of them, for the full ranking."""
    drawn: np.ndarray
    """(U, 99) titles of the sampled one; where fewer than 99 are eligible others stand behind them."""


def draw_negatives(target: np.ndarray, seen: np.ndarray, user_keys: np.ndarray, seed: int = 0) -> Negatives:
    """Without replacement and by hash; a catalogue with fewer than 99 unseen titles gives all of them.

    Args:
        target: (U,) index of the held-out title.
        seen: (U, N) bool, the user's other titles; the held-out one is never excluded.
        user_keys: (U,) uint64.
        seed: of the draws.
    """
    eligible = ~seen
    eligible[np.arange(len(target)), target] = False
    return Negatives(eligible, _drawn(eligible, user_keys, seed))


def next_title_metrics(scores: np.ndarray, target: np.ndarray, negatives: Negatives) -> NextTitleMetrics:
    """Figures of users whose next title was held out; one that scores as high takes half a rank from it.

    Scores that are no numbers rank it last: a model that has diverged is no good one.

    Args:
        scores: (U, N) of every title, any monotone scale.
        target: (U,) index of the held-out title.
        negatives: of the users.
    """
    rows = np.arange(len(target))
    eligible, drawn = negatives.eligible, negatives.drawn
    wanted = scores[rows, target][:, None]  # (U, 1)
    beats = 1.0 - (scores < wanted) - 0.5 * (scores == wanted)  # (U, N)
    full_rank = 1 + (beats * eligible).sum(axis=1)
    taken = np.take_along_axis(eligible, drawn, axis=1)
    lost = (np.take_along_axis(beats, drawn, axis=1) * taken).sum(axis=1)  # (U,)
    hit, ndcg = _hit(1 + lost), _gain(1 + lost)
    return NextTitleMetrics(
        auc=1 - lost / np.maximum(taken.sum(axis=1), 1),
        hit=hit,
        ndcg=ndcg,
        full_hit=_hit(full_rank),
        full_ndcg=_gain(full_rank),
    )


def _drawn(eligible: np.ndarray, user_keys: np.ndarray, seed: int) -> np.ndarray:
    """(U, 99) titles, eligible ones first drawn: those with the smallest lots."""
    titles = np.arange(eligible.shape[1], dtype=np.uint64)
    lots = mix(user_keys[:, None], "next title negatives", seed, titles)  # (U, N)
    lots[~eligible] = np.iinfo(np.uint64).max
    count = min(NUM_NEGATIVES, eligible.shape[1])
    return np.argpartition(lots, count - 1, axis=1)[:, :count]


def _hit(rank: np.ndarray) -> np.ndarray:
    return (rank <= CUTOFF).astype(np.float64)


def _gain(rank: np.ndarray) -> np.ndarray:
    return np.where(rank <= CUTOFF, 1 / np.log2(1 + rank), 0.0)

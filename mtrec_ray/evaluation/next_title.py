"""How high a held-out title ranks for its user: AUC, HIT@10 and NDCG@10.

Sampled (paper B, 3.1): the held-out title against 99 others; as it flatters and can order two models wrongly (Krichene
and Rendle, KDD 2020), the full ranking is reported too. Both exclude the user's other titles.
Legend: U users, N titles of the catalogue.
"""

from typing import NamedTuple

import numpy as np

from mtrec_ray.hashing import mix

NUM_NEGATIVES = 99
CUTOFF = 10


class NextTitleMetrics(NamedTuple):
    """Metrics of each user, (U,) float64; a model's metric is the mean over users.

    `full_` means over the whole catalogue, no prefix among the sampled negatives.
    """

    auc: np.ndarray  # fraction of the negatives that score below the held-out title, ties half
    hit: np.ndarray  # 1 where the title is among the first ten
    ndcg: np.ndarray  # 1 / log2(1 + rank) there, else 0 (one relevant title, so the ideal is 1)
    full_hit: np.ndarray
    full_ndcg: np.ndarray

    @classmethod
    def reported(cls) -> dict[str, str]:
        """Name in audits and bundles, as in `ndcg@10` -> field."""
        return {name if name == "auc" else f"{name}@{CUTOFF}": name for name in cls._fields}

    def means(self) -> dict[str, float]:
        """Mean of each over users; NaN without users."""
        return {name: float(of.mean()) if len(of) else float("nan") for name, of in self._asdict().items()}


class SampledNegatives(NamedTuple):
    """Titles that users' held-out titles are ranked against, the same for every model."""

    eligible: np.ndarray  # (U, N) bool: all of them, for the full ranking
    drawn: np.ndarray  # (U, 99) titles of the sampled ranking, padded with others where fewer than 99 are eligible


def sample_negatives(target: np.ndarray, seen: np.ndarray, user_keys: np.ndarray, seed: int = 0) -> SampledNegatives:
    """Sample 99 titles per user by hash: (U,) held-out titles, (U, N) other titles, (U,) keys."""
    eligible = ~seen
    eligible[np.arange(len(target)), target] = False
    titles = np.arange(eligible.shape[1], dtype=np.uint64)
    hashes = mix(user_keys[:, None], "next title negatives", seed, titles)  # (U, N)
    hashes[~eligible] = np.iinfo(np.uint64).max
    count = min(NUM_NEGATIVES, eligible.shape[1])
    return SampledNegatives(eligible, np.argpartition(hashes, count - 1, axis=1)[:, :count])


def next_title_metrics(scores: np.ndarray, target: np.ndarray, negatives: SampledNegatives) -> NextTitleMetrics:
    """Metrics of users' held-out titles (U,) from scores of every title (U, N).

    A tied title costs half a rank; a user with a score that is NaN or infinite has NaN metrics: the model diverged.
    """
    rows = np.arange(len(target))
    eligible, drawn = negatives.eligible, negatives.drawn
    wanted = scores[rows, target][:, None]  # (U, 1)
    beats = 1.0 - (scores < wanted) - 0.5 * (scores == wanted)  # (U, N)
    full_rank = 1 + (beats * eligible).sum(axis=1)
    taken = np.take_along_axis(eligible, drawn, axis=1)
    lost = (np.take_along_axis(beats, drawn, axis=1) * taken).sum(axis=1)  # (U,)
    diverged = ~np.isfinite(scores).all(axis=1)
    lost[diverged] = full_rank[diverged] = np.nan
    auc = 1 - lost / np.maximum(taken.sum(axis=1), 1)
    return NextTitleMetrics(auc, *_hit_and_ndcg(1 + lost), *_hit_and_ndcg(full_rank))


def _hit_and_ndcg(rank: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = rank <= CUTOFF
    hit, ndcg = inside.astype(np.float64), np.where(inside, 1 / np.log2(1 + rank), 0.0)
    hit[np.isnan(rank)] = ndcg[np.isnan(rank)] = np.nan
    return hit, ndcg

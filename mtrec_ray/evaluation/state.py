"""Everything that is counted about one model on one day and cohort, filled in shards, merged, then summarised.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates, G territories.
"""

from dataclasses import dataclass, field

import numpy as np

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.popularity_bias import PopularityBiasAccumulator, TitleHistory
from mtrec_ray.evaluation.pr_auc import PrAucAccumulator
from mtrec_ray.evaluation.ranking import RankingAccumulator
from mtrec_ray.evaluation.score_grid import ScoreGrid
from mtrec_ray.evaluation.titles import TitlePrAucAccumulator


@dataclass(frozen=True)
class EvaluationSettings:
    """What two states must share to be merged, and two results to be compared."""

    num_territories: int
    num_titles: int
    num_bootstrap: int = 200
    """Replicates behind each 95% interval; memory grows with it."""
    seed: int = 0
    """Of the users' bootstrap weights; the same for all runs, or nothing is paired."""
    cutoffs: tuple[int, ...] = (10,)
    """k of NDCG, hit rate and recall."""
    list_length: int = 10
    """Length of the lists whose popularity bias is measured."""
    titles: tuple[int, ...] = ()
    """Dense indices of the titles that get figures of their own."""
    grid: ScoreGrid = field(default_factory=ScoreGrid)


@dataclass(frozen=True)
class EvaluationResult:
    """What a report needs of one model on one day and cohort. Row G of each territory axis is all users pooled."""

    settings: EvaluationSettings
    num_users: np.ndarray
    """(G + 1,) test users."""
    num_candidates: np.ndarray
    """(G + 1,) scored user-title pairs."""
    num_positives: np.ndarray
    """(G + 1,) positive pairs among the candidates."""
    num_outside: np.ndarray
    """(G + 1,) positive pairs of titles that were no candidates: not counted in any metric."""
    pr_auc: np.ndarray
    """(G + 1, R); NaN without positives."""
    pr_auc_bounds: np.ndarray
    """(G + 1, 2) lowest and highest PR-AUC that the unbinned scores can have."""
    ranking: dict[str, np.ndarray]
    """Metric name such as `ndcg@10` -> (G + 1, R)."""
    bias: dict[str, np.ndarray]
    """Metric name such as `aplt` -> (G + 1,); empty without a history."""
    title_pr_auc: np.ndarray
    """(S, R) of `settings.titles`."""
    title_positives: np.ndarray
    """(S,)"""
    title_histograms: np.ndarray
    """(S, 2, grid.num_bins) users by score, negatives and positives."""
    title_is_local: np.ndarray | None
    """(S,) bool; None without a history."""


class EvaluationState:
    """One model, one day, one cohort: all accumulators behind one `add` and one `merge`. Picklable."""

    def __init__(self, settings: EvaluationSettings) -> None:
        s = settings
        self.settings = s
        self.num_users = np.zeros(s.num_territories, dtype=np.int64)
        self.num_outside = np.zeros(s.num_territories, dtype=np.int64)
        self.pr_auc = PrAucAccumulator(s.num_territories, s.num_bootstrap, s.seed, s.grid)
        self.ranking = RankingAccumulator(s.num_territories, s.num_bootstrap, s.seed, s.cutoffs)
        self.titles = TitlePrAucAccumulator(np.array(s.titles, np.int64), s.num_bootstrap, s.seed, s.grid)
        self.bias = PopularityBiasAccumulator(s.num_territories, s.num_titles, s.list_length)

    def add(
        self,
        territory_index: int,
        user_keys: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        candidates: np.ndarray,
        title_index: np.ndarray,
    ) -> None:
        """Count one chunk of users of one territory; any split of the users into chunks gives the same state.

        Args:
            territory_index: dense index in [0, num_territories).
            user_keys: (U,) uint64, from `mtrec_ray.hashing.user_keys`.
            logits: (U, T) float32.
            labels: (U, T) bool.
            candidates: (U, T) bool, True = the title is offered to the user. A positive that is no candidate enters
                no metric and is counted in `num_outside`.
            title_index: (T,) dense title indices of the columns, distinct.

        Raises:
            ValueError: shapes that do not fit, an index out of range, or a NaN among the candidates' scores.
        """
        title_index = np.asarray(title_index, dtype=np.int64)
        if title_index.shape != logits.shape[1:]:
            raise ValueError(f"title_index is {title_index.shape}, logits are {logits.shape}")
        if len(title_index) and not 0 <= title_index.min() <= title_index.max() < self.settings.num_titles:
            raise ValueError(f"title_index must lie in [0, {self.settings.num_titles})")
        weights = poisson_weights(user_keys, self.settings.num_bootstrap, self.settings.seed)
        self.pr_auc.add(territory_index, user_keys, logits, labels, candidates, weights)  # validates first
        self.ranking.add(territory_index, user_keys, logits, labels, candidates, weights)
        self.titles.add(user_keys, logits, labels, candidates, title_index, weights)
        self.bias.add(territory_index, logits, labels, candidates, title_index)
        self.num_users[territory_index] += len(user_keys)
        self.num_outside[territory_index] += np.count_nonzero(labels & ~candidates)

    def merge(self, other: "EvaluationState") -> None:
        """Add another state of the same settings; order does not matter."""
        if self.settings != other.settings:
            raise ValueError(f"cannot merge states of {self.settings} and {other.settings}")
        self.num_users += other.num_users
        self.num_outside += other.num_outside
        self.pr_auc.merge(other.pr_auc)
        self.ranking.merge(other.ranking)
        self.titles.merge(other.titles)
        self.bias.merge(other.bias)

    def summarise(self, history: TitleHistory | None = None) -> EvaluationResult:
        """Reduce the counts to metrics: small, and all that a report needs. Without a history no popularity bias."""
        territories = [*range(self.settings.num_territories), None]
        pr_auc, bounds, candidates, positives = self._summarise_pr_auc()
        ranking = np.stack([self.ranking.means(t) for t in territories])  # (G + 1, R, M)
        bias = [] if history is None else [self.bias.metrics(t, history) for t in territories]
        histograms = self.titles.histograms()
        return EvaluationResult(
            settings=self.settings,
            num_users=_with_total(self.num_users),
            num_candidates=candidates,
            num_positives=positives,
            num_outside=_with_total(self.num_outside),
            pr_auc=pr_auc,
            pr_auc_bounds=bounds,
            ranking={name: ranking[:, :, m] for m, name in enumerate(self.ranking.names)},
            bias={name: np.array([b[name] for b in bias]) for name in bias[0]} if bias else {},
            title_pr_auc=self.titles.pr_auc(),
            title_positives=histograms[:, 1].sum(axis=-1),
            title_histograms=histograms,
            title_is_local=None if history is None else history.is_local[self.titles.titles],
        )

    def _summarise_pr_auc(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """PR-AUC (G + 1, R), its bounds (G + 1, 2), candidates and positives (G + 1,), one territory at a time."""
        num = self.settings.num_territories
        pr_auc = np.full((num + 1, 1 + self.settings.num_bootstrap), np.nan)
        bounds = np.full((num + 1, 2), np.nan)
        totals = np.zeros((num + 1, 2), dtype=np.int64)
        for row, counts in [*self.pr_auc.counts.items(), (num, self.pr_auc.pooled())]:
            pr_auc[row], bounds[row] = counts.pr_auc(), counts.pr_auc_bounds()
            totals[row] = counts.fine_histogram().sum(axis=1)
        return pr_auc, bounds, totals.sum(axis=1), totals[:, 1]


def _with_total(counts: np.ndarray) -> np.ndarray:
    return np.append(counts, counts.sum())

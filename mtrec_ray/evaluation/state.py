"""Counts of one model on one day and cohort: filled in shards, merged, then summarised.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates, G territories.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.popularity_bias import TitleHistory, bias_metrics, exposure_counts
from mtrec_ray.evaluation.pr_auc import count_scores, count_title_scores
from mtrec_ray.evaluation.ranking import metric_names, ranking_means, ranking_sums
from mtrec_ray.evaluation.score_counts import ScoreCounts
from mtrec_ray.evaluation.score_grid import ScoreGrid

MAX_TITLES = 512


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings that merged states and compared results have in common."""

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
    """Dense indices of the titles with metrics of their own, at most 512; memory grows with them."""
    grid: ScoreGrid = field(default_factory=ScoreGrid)

    def __post_init__(self) -> None:
        if len(self.titles) > MAX_TITLES or len(set(self.titles)) != len(self.titles):
            raise ValueError(f"choose at most {MAX_TITLES} distinct titles, got {len(self.titles)}")


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of one model on one day and cohort. Row G of each territory axis is all users pooled."""

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
    """One model, one day, one cohort: counts of any number of users behind one `add` and one `merge`. Picklable."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = settings
        histograms = partial(ScoreCounts, settings.grid, settings.num_bootstrap)
        num_sums = len(metric_names(settings.cutoffs)) + 1
        self.num_users = np.zeros(settings.num_territories, dtype=np.int64)
        self.num_outside = np.zeros(settings.num_territories, dtype=np.int64)
        self.scores: defaultdict[int, ScoreCounts] = defaultdict(histograms)
        """Of each territory, as the next two; memory is used for those with users."""
        self.ranking: defaultdict[int, np.ndarray] = defaultdict(
            partial(np.zeros, (1 + settings.num_bootstrap, num_sums))
        )
        self.exposure: defaultdict[int, np.ndarray] = defaultdict(partial(np.zeros, (4, settings.num_titles), np.int64))
        self.title_scores = {title: histograms() for title in settings.titles}

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
            candidates: (U, T) bool, True = the title is offered to the user. Other positives enter no metric and are
                counted in `num_outside`.
            title_index: (T,) dense title indices of the columns, distinct.

        Raises:
            ValueError: shapes that do not fit, an index out of range, or a NaN among the candidates' scores.
        """
        s, title_index = self.settings, np.asarray(title_index, dtype=np.int64)
        if not logits.shape == labels.shape == candidates.shape == user_keys.shape + title_index.shape:
            raise ValueError(
                f"shapes differ: user_keys {user_keys.shape}, title_index {title_index.shape}, logits {logits.shape}, "
                f"labels {labels.shape}, candidates {candidates.shape}"
            )
        if not 0 <= territory_index < s.num_territories:
            raise ValueError(f"territory {territory_index} is not in [0, {s.num_territories})")
        if len(title_index) and not 0 <= title_index.min() <= title_index.max() < s.num_titles:
            raise ValueError(f"title_index must lie in [0, {s.num_titles})")
        weights = poisson_weights(user_keys, s.num_bootstrap, s.seed)
        count_scores(self.scores[territory_index], logits, labels, candidates, weights)  # first, as it checks for NaN
        count_title_scores(self.title_scores, logits, labels, candidates, title_index, weights)
        self.ranking[territory_index] += ranking_sums(logits, labels, candidates, weights, s.cutoffs)
        self.exposure[territory_index] += exposure_counts(
            logits, labels, candidates, title_index, s.num_titles, s.list_length
        )
        self.num_users[territory_index] += len(user_keys)
        self.num_outside[territory_index] += np.count_nonzero(labels & ~candidates)

    def merge(self, other: "EvaluationState") -> None:
        """Add another state of the same settings; order does not matter."""
        if self.settings != other.settings:
            raise ValueError(f"cannot merge states of {self.settings} and {other.settings}")
        self.num_users += other.num_users
        self.num_outside += other.num_outside
        for name in ("scores", "ranking", "exposure", "title_scores"):
            own = getattr(self, name)
            for key, counts in getattr(other, name).items():
                own[key] += counts

    def summarise(self, history: TitleHistory | None = None) -> EvaluationResult:
        """Reduce the counts to metrics. Without a history there is no popularity bias."""
        s, num = self.settings, self.settings.num_territories
        pooled = ScoreCounts(s.grid, s.num_bootstrap)
        for counts in self.scores.values():
            pooled += counts
        pr_auc = np.full((num + 1, 1 + s.num_bootstrap), np.nan)
        bounds, totals = np.full((num + 1, 2), np.nan), np.zeros((num + 1, 2), dtype=np.int64)
        for row, counts in [*self.scores.items(), (num, pooled)]:
            pr_auc[row], bounds[row] = counts.pr_auc(), counts.pr_auc_bounds()
            totals[row] = counts.fine_histogram().sum(axis=1)
        titles = list(self.title_scores.values())
        histograms = np.array([counts.histogram(num_replicates=1)[0] for counts in titles], dtype=np.int64)
        histograms = histograms.reshape(len(titles), 2, s.grid.num_bins)
        ranking = np.stack([ranking_means(sums) for sums in _with_total(self.ranking, num)])  # (G + 1, R, M)
        return EvaluationResult(
            settings=s,
            num_users=np.append(self.num_users, self.num_users.sum()),
            num_candidates=totals.sum(axis=1),
            num_positives=totals[:, 1],
            num_outside=np.append(self.num_outside, self.num_outside.sum()),
            pr_auc=pr_auc,
            pr_auc_bounds=bounds,
            ranking={name: ranking[:, :, m] for m, name in enumerate(metric_names(s.cutoffs))},
            bias={} if history is None else self._bias(history),
            title_pr_auc=np.array([counts.pr_auc() for counts in titles]).reshape(len(titles), 1 + s.num_bootstrap),
            title_positives=histograms[:, 1].sum(axis=-1),
            title_histograms=histograms,
            title_is_local=None if history is None else history.is_local[list(s.titles)],
        )

    def _bias(self, history: TitleHistory) -> dict[str, np.ndarray]:
        """Metric name -> (G + 1,)."""
        num_users = np.append(self.num_users, self.num_users.sum())
        popularity = np.append(history.popularity, history.popularity.sum(axis=0, keepdims=True), axis=0)
        counts = _with_total(self.exposure, self.settings.num_territories)
        rows = [bias_metrics(*row, history.is_local) for row in zip(counts, num_users, popularity, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _with_total(of_territory: defaultdict[int, np.ndarray], num_territories: int) -> list[np.ndarray]:
    """The arrays of all territories, zeros for those without users, and their sum."""
    factory = of_territory.default_factory
    assert factory is not None
    zeros = factory()
    found = [of_territory.get(territory, zeros) for territory in range(num_territories)]
    return [*found, sum(of_territory.values(), zeros)]

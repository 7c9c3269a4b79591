"""Counts of one model on one day and cohort: filled in shards, merged, then summarised.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates, G territories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.evaluation.distinct_users import DistinctUsers
from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.evaluation.popularity_bias import (
    BIAS_COUNTS,
    DayTitles,
    bias_metrics,
    bias_sums,
    exposure_counts,
    top_titles,
)
from mtrec_ray.evaluation.pr_auc import count_scores, count_title_scores
from mtrec_ray.evaluation.ranking import RANKING_METRICS, ranking_means, ranking_sums
from mtrec_ray.evaluation.score_counts import GRID, ScoreCounts, average_precision_bounds

LIST_LENGTH = 10  # of the lists whose popularity bias is measured
# Test users, scored user-title pairs, positive pairs among them, positives that were no candidates.
COUNTS = ("num_users", "num_candidates", "num_positives", "num_outside")
PR_AUC_BOUNDS = ("pr_auc_lower_bound", "pr_auc_upper_bound")  # PR-AUC that the unbinned scores can have


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings that merged states and compared results have in common."""

    num_territories: int
    num_titles: int
    num_bootstrap: int = 200  # replicates behind each 95% interval; memory grows with it
    titles: tuple[int, ...] = ()  # dense indices of those with metrics of their own; memory grows with them
    title_territory: int | None = None  # whose users those metrics are of; None = all


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model on one day and cohort; row G of a territory axis is all users."""

    counts: dict[str, np.ndarray]  # `COUNTS` -> (G + 1,), and `title_positives` (S,)
    metrics: dict[str, np.ndarray]  # name -> (G + 1, R), NaN without positives; R = 1 for those without replicates
    title_pr_auc: np.ndarray  # (S, R) of `settings.titles`
    title_histograms: np.ndarray  # (S, 2, num_bins) users by score, negatives and positives
    title_is_local: np.ndarray | None  # (S,) bool; None without a history
    users: list[DistinctUsers]  # (G,) of each territory
    positive_users: list[DistinctUsers]  # (G,) those with a positive
    title_users: list[DistinctUsers]  # (S,) those with a positive of the title

    def rows(self, metric: str) -> np.ndarray:
        return self.title_pr_auc if metric == "title_pr_auc" else self.metrics[metric]


class EvaluationState:
    """One model, one day, one cohort: counts of any number of users. Picklable.

    Without `day_titles`, which are not pickled, there is no popularity bias.
    """

    def __init__(self, settings: EvaluationSettings, day_titles: DayTitles | None = None) -> None:
        self.settings = s = settings
        self.day_titles = day_titles
        shape = (s.num_territories, 1 + s.num_bootstrap, len(RANKING_METRICS) + 1)
        self.num_users, self.num_outside = np.zeros((2, s.num_territories), dtype=np.int64)
        self.scores = [ScoreCounts(GRID, s.num_bootstrap) for _ in range(s.num_territories)]
        self.ranking = np.zeros(shape)  # of `ranking_sums`
        self.exposure = np.zeros((s.num_territories, 2, s.num_titles), dtype=np.int64)  # of `exposure_counts`
        self.bias = np.zeros((s.num_territories + 1, 1 + s.num_bootstrap, len(BIAS_COUNTS)))  # of `bias_sums`
        self.users = [DistinctUsers() for _ in range(s.num_territories)]
        self.positive_users = [DistinctUsers() for _ in range(s.num_territories)]
        self.title_users = {title: DistinctUsers() for title in s.titles}
        self.title_scores = {title: ScoreCounts(GRID, s.num_bootstrap) for title in s.titles}

    def add(
        self,
        territory_index: int,
        user_keys: np.ndarray,
        logits: np.ndarray,
        labels: np.ndarray,
        candidates: np.ndarray,
        title_index: np.ndarray,
    ) -> None:
        """Count one chunk of users of one territory; any split of the users gives the same state.

        (U,) uint64 keys from `mtrec_ray.hashing.user_keys`; (U, T) float32 scores, bool labels and candidates (titles
        offered to the user; other positives enter no metric); (T,) distinct dense title indices of the columns.
        UserError for a NaN among the candidates' scores.
        """
        s = self.settings
        weights = poisson_weights(user_keys, s.num_bootstrap)
        count_scores(self.scores[territory_index], logits, labels, candidates, weights)  # first, as it checks for NaN
        self.ranking[territory_index] += ranking_sums(logits, labels, candidates, weights)
        self.num_users[territory_index] += len(user_keys)
        self.num_outside[territory_index] += np.count_nonzero(labels & ~candidates)
        self.users[territory_index].add(user_keys)
        self.positive_users[territory_index].add(user_keys[(labels & candidates).any(axis=1)])
        if s.title_territory in (None, territory_index):
            count_title_scores(self.title_scores, logits, labels, candidates, title_index, weights)
            for column in np.flatnonzero(np.isin(title_index, s.titles)):
                positive = labels[:, column] & candidates[:, column]
                self.title_users[int(title_index[column])].add(user_keys[positive])
        if self.day_titles is not None:
            shown = top_titles(logits, candidates, LIST_LENGTH)
            self.exposure[territory_index] += exposure_counts(shown, candidates, title_index, s.num_titles)
            rows = [territory_index, s.num_territories]
            self.bias[rows] += bias_sums(shown, labels, candidates, title_index, self.day_titles, rows, weights)

    def merge(self, other: "EvaluationState") -> None:
        """Add another state of the same settings; order does not matter."""
        for own, more in zip(self._counts(), other._counts(), strict=True):
            own += more  # in place

    def _counts(self) -> list[Any]:
        arrays = [self.num_users, self.num_outside, self.ranking, self.exposure, self.bias]
        users = [*self.users, *self.positive_users, *self.title_users.values()]
        return [*arrays, *users, *self.scores, *self.title_scores.values()]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"day_titles": None}  # large, and whoever merges has it

    def summarise(self) -> EvaluationResult:
        """Reduce the counts to metrics."""
        s, pooled, rows = self.settings, ScoreCounts(GRID, self.settings.num_bootstrap), []
        for counts in self.scores:
            pooled += counts
        for counts in (*self.scores, pooled):
            fine = counts.fine_histogram()
            rows.append((counts.pr_auc(), average_precision_bounds(*fine), fine.sum(axis=1)))
        pr_auc, bounds, totals = (np.array(column) for column in zip(*rows, strict=True))
        counts = (_with_total(self.num_users), totals.sum(axis=1), totals[:, 1], _with_total(self.num_outside))
        ranking = ranking_means(_with_total(self.ranking))  # (G + 1, R, M)
        metrics = {"pr_auc": pr_auc} | {name: ranking[:, :, m] for m, name in enumerate(RANKING_METRICS)}
        metrics |= {name: bounds[:, side, None] for side, name in enumerate(PR_AUC_BOUNDS)}
        if self.day_titles is not None:
            metrics |= bias_metrics(self.bias, _with_total(self.exposure), self.day_titles)
        titles = list(self.title_scores.values())
        histograms = np.array([one.histogram()[0] for one in titles], dtype=np.int64)
        histograms = histograms.reshape(len(titles), 2, GRID.num_bins)
        return EvaluationResult(
            counts=dict(zip(COUNTS, counts, strict=True)) | {"title_positives": histograms[:, 1].sum(axis=-1)},
            metrics=metrics,
            title_pr_auc=np.array([one.pr_auc() for one in titles]).reshape(len(titles), 1 + s.num_bootstrap),
            title_histograms=histograms,
            title_is_local=None if self.day_titles is None else self.day_titles.is_local[list(s.titles)],
            users=self.users,
            positive_users=self.positive_users,
            title_users=list(self.title_users.values()),
        )


def _with_total(of_territory: np.ndarray) -> np.ndarray:
    """(G, ...) counts and their sum: (G + 1, ...)."""
    return np.concatenate([of_territory, of_territory.sum(axis=0, keepdims=True)])

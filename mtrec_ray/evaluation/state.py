"""Counts of one model on one day and cohort: filled in shards, merged, then summarised.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates, G territories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS, TitleHistory, bias_metrics, exposure_counts
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


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of a model on one day and cohort; row G of a territory axis is all users."""

    counts: dict[str, np.ndarray]  # `COUNTS` -> (G + 1,), and `title_positives` (S,)
    metrics: dict[str, np.ndarray]  # name -> (G + 1, R), NaN without positives; R = 1 for bounds and bias metrics
    title_pr_auc: np.ndarray  # (S, R) of `settings.titles`
    title_histograms: np.ndarray  # (S, 2, num_bins) users by score, negatives and positives
    title_is_local: np.ndarray | None  # (S,) bool; None without a history

    def rows(self, metric: str) -> np.ndarray:
        return self.title_pr_auc if metric == "title_pr_auc" else self.metrics[metric]


class EvaluationState:
    """One model, one day, one cohort: counts of any number of users. Picklable."""

    def __init__(self, settings: EvaluationSettings) -> None:
        self.settings = s = settings
        shape = (s.num_territories, 1 + s.num_bootstrap, len(RANKING_METRICS) + 1)
        self.num_users, self.num_outside = np.zeros((2, s.num_territories), dtype=np.int64)
        self.scores = [ScoreCounts(GRID, s.num_bootstrap) for _ in range(s.num_territories)]
        self.ranking = np.zeros(shape)  # of `ranking_sums`
        self.exposure = np.zeros((s.num_territories, 4, s.num_titles), dtype=np.int64)  # of `exposure_counts`
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
        count_title_scores(self.title_scores, logits, labels, candidates, title_index, weights)
        self.ranking[territory_index] += ranking_sums(logits, labels, candidates, weights)
        shown = exposure_counts(logits, labels, candidates, title_index, s.num_titles, LIST_LENGTH)
        self.exposure[territory_index] += shown
        self.num_users[territory_index] += len(user_keys)
        self.num_outside[territory_index] += np.count_nonzero(labels & ~candidates)

    def merge(self, other: "EvaluationState") -> None:
        """Add another state of the same settings; order does not matter."""
        for own, more in zip(self._counts(), other._counts(), strict=True):
            own += more  # in place

    def _counts(self) -> list[Any]:
        arrays = [self.num_users, self.num_outside, self.ranking, self.exposure]
        return [*arrays, *self.scores, *self.title_scores.values()]

    def summarise(self, history: TitleHistory | None = None) -> EvaluationResult:
        """Reduce the counts to metrics. Without a history there is no popularity bias."""
        s, pooled, rows = self.settings, ScoreCounts(GRID, self.settings.num_bootstrap), []
        for counts in self.scores:
            pooled += counts
        for counts in (*self.scores, pooled):
            fine = counts.fine_histogram()
            rows.append((counts.pr_auc(), average_precision_bounds(*fine), fine.sum(axis=1)))
        pr_auc, bounds, totals = (np.array(column) for column in zip(*rows, strict=True))
        num_users = _with_total(self.num_users)
        counts = (num_users, totals.sum(axis=1), totals[:, 1], _with_total(self.num_outside))
        ranking = ranking_means(_with_total(self.ranking))  # (G + 1, R, M)
        metrics = {"pr_auc": pr_auc} | {name: ranking[:, :, m] for m, name in enumerate(RANKING_METRICS)}
        metrics |= {name: bounds[:, side, None] for side, name in enumerate(PR_AUC_BOUNDS)}
        if history is not None:
            rows = zip(_with_total(self.exposure), num_users, _with_total(history.popularity), strict=True)
            bias = [bias_metrics(*row, history.is_local) for row in rows]
            metrics |= {name: np.array([[of_territory[name]] for of_territory in bias]) for name in BIAS_METRICS}
        titles = list(self.title_scores.values())
        histograms = np.array([one.histogram()[0] for one in titles], dtype=np.int64)
        histograms = histograms.reshape(len(titles), 2, GRID.num_bins)
        return EvaluationResult(
            counts=dict(zip(COUNTS, counts, strict=True)) | {"title_positives": histograms[:, 1].sum(axis=-1)},
            metrics=metrics,
            title_pr_auc=np.array([one.pr_auc() for one in titles]).reshape(len(titles), 1 + s.num_bootstrap),
            title_histograms=histograms,
            title_is_local=None if history is None else history.is_local[list(s.titles)],
        )


def _with_total(of_territory: np.ndarray) -> np.ndarray:
    """(G, ...) counts and their sum: (G + 1, ...)."""
    return np.concatenate([of_territory, of_territory.sum(axis=0, keepdims=True)])

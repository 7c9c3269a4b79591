"""Counts of one model on one day and cohort: filled in shards, merged, then summarised.

Legend: U users of a chunk, T titles, R = 1 + num_bootstrap replicates, G territories.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

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

    settings: EvaluationSettings
    counts: dict[str, np.ndarray]  # `COUNTS` -> (G + 1,)
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
        new_scores = partial(ScoreCounts, GRID, s.num_bootstrap)
        new_sums = partial(np.zeros, (1 + s.num_bootstrap, len(RANKING_METRICS) + 1))
        self.num_users, self.num_outside = np.zeros((2, s.num_territories), dtype=np.int64)
        self.scores: defaultdict[int, ScoreCounts] = defaultdict(
            new_scores
        )  # of territories with users, as the next two
        self.ranking: defaultdict[int, np.ndarray] = defaultdict(new_sums)
        self.exposure: defaultdict[int, np.ndarray] = defaultdict(partial(np.zeros, (4, s.num_titles), np.int64))
        self.title_scores = {title: new_scores() for title in s.titles}

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
        self.num_users += other.num_users
        self.num_outside += other.num_outside
        for name in ("scores", "ranking", "exposure", "title_scores"):
            own = getattr(self, name)
            for key, counts in getattr(other, name).items():
                own[key] += counts

    def summarise(self, history: TitleHistory | None = None) -> EvaluationResult:
        """Reduce the counts to metrics. Without a history there is no popularity bias."""
        s, num = self.settings, self.settings.num_territories
        pooled = ScoreCounts(GRID, s.num_bootstrap)
        for counts in self.scores.values():
            pooled += counts
        pr_auc = np.full((num + 1, 1 + s.num_bootstrap), np.nan)
        bounds, totals = np.full((num + 1, 2), np.nan), np.zeros((num + 1, 2), dtype=np.int64)
        for row, counts in [*self.scores.items(), (num, pooled)]:
            fine = counts.fine_histogram()
            pr_auc[row], bounds[row], totals[row] = counts.pr_auc(), average_precision_bounds(*fine), fine.sum(axis=1)
        counts = (_append_sum(self.num_users), totals.sum(axis=1), totals[:, 1], _append_sum(self.num_outside))
        ranking = np.stack([ranking_means(sums) for sums in _with_total(self.ranking, num)])  # (G + 1, R, M)
        metrics = {"pr_auc": pr_auc} | {name: ranking[:, :, m] for m, name in enumerate(RANKING_METRICS)}
        metrics |= {name: bounds[:, side, None] for side, name in enumerate(PR_AUC_BOUNDS)}
        if history is not None:
            popularity = np.vstack([history.popularity, history.popularity.sum(axis=0)])
            rows = zip(_with_total(self.exposure, num), _append_sum(self.num_users), popularity, strict=True)
            bias = [bias_metrics(*row, history.is_local) for row in rows]
            metrics |= {name: np.array([[of_territory[name]] for of_territory in bias]) for name in BIAS_METRICS}
        titles = list(self.title_scores.values())
        histograms = np.array([one.histogram()[0] for one in titles], dtype=np.int64)
        return EvaluationResult(
            settings=s,
            counts=dict(zip(COUNTS, counts, strict=True)),
            metrics=metrics,
            title_pr_auc=np.array([one.pr_auc() for one in titles]).reshape(len(titles), 1 + s.num_bootstrap),
            title_histograms=histograms.reshape(len(titles), 2, GRID.num_bins),
            title_is_local=None if history is None else history.is_local[list(s.titles)],
        )


def _append_sum(counts: np.ndarray) -> np.ndarray:
    return np.append(counts, counts.sum())


def _with_total(of_territory: defaultdict[int, np.ndarray], num_territories: int) -> list[np.ndarray]:
    """The arrays of all territories, zeros for those without users, and their sum."""
    assert of_territory.default_factory is not None
    zeros = of_territory.default_factory()
    found = [of_territory.get(territory, zeros) for territory in range(num_territories)]
    return [*found, sum(of_territory.values(), zeros)]

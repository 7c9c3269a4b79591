"""Metrics of runs by cohort, day, variant and territory, with intervals and gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.distinct_users import MIN_USERS, DistinctUsers
from mtrec_ray.evaluation.intervals import Interval, interval, mean_over_seeds, nan_mean, relative_gain
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.state import EvaluationResult

POOLED, MACRO = "all", "mean"  # rows after the territories: users pooled, mean over territories with a value
LOCAL, GLOBAL = "local_mean", "global_mean"  # rows after the titles


def row_labels(names: Sequence[str], kind: str = "territory", taken: Sequence[str] = (POOLED, MACRO)) -> list[str]:
    """Names as rows of a report: one that a mean has too becomes `all (territory)`."""
    labels, used = [], {*taken, *names}
    for name in names:
        label = name
        while label in taken or (label != name and label in used):
            label += f" ({kind})"
        labels.append(label)
        used.add(label)
    return labels


@dataclass(frozen=True)
class EvaluatedRun:
    """One trained model's results; `results[day, cohort]`, days from 1."""

    variant: str  # what is compared: runs of one variant differ in the seed alone
    results: Mapping[tuple[int, str], EvaluationResult]
    seed: int = 0
    name: str = ""
    weights_hash: str | None = None  # of the weights that were scored; None for references


class EvaluationReport:
    """Metrics on the same users, means over seeds, and gains over each of the `baselines`.

    All runs have the same days, cohorts and settings, all variants the same seeds. The first cohort is the default.
    Without baselines, gains are over the first variant. Titles are of the users of `title_territory`; `notes` are said
    under the gains. `references` are variants without a model.
    """

    def __init__(
        self,
        runs: Sequence[EvaluatedRun],
        territory_names: list[str],
        title_names: list[str],
        baselines: Sequence[str] = (),
        title_territory: int | None = None,
        notes: Sequence[str] = (),
        references: Sequence[str] = (),
    ) -> None:
        self.runs, self.notes, self.references = list(runs), list(notes), list(references)
        self.variants = list(dict.fromkeys(run.variant for run in runs))
        self._runs = {v: sorted((r for r in runs if r.variant == v), key=lambda run: run.seed) for v in self.variants}
        self.baselines = list(baselines) or self.variants[:1]
        self.territories = row_labels(territory_names)
        self.titles = row_labels(title_names, "title", (LOCAL, GLOBAL))
        self.title_territory = None if title_territory is None else self.territories[title_territory]
        self.cohorts = list(dict.fromkeys(cohort for _, cohort in runs[0].results))
        self._first = runs[0].results
        self._num_users: dict[tuple[str, str, int | None], dict[str, int]] = {}
        first = next(iter(self._first.values()))
        assert first.title_is_local is not None, "results to be reported need a history"
        self.metric_names, self.title_is_local = list(first.metrics), first.title_is_local

    @property
    def columns(self) -> list[str]:
        """Variants that tables with a column for each show: all but references after the first."""
        return [variant for variant in self.variants if variant not in self.references[1:]]

    def row_names(self, metric: str) -> list[str]:
        """Territories or titles of a metric, and its means."""
        return [*self.titles, LOCAL, GLOBAL] if metric == "title_pr_auc" else [*self.territories, POOLED, MACRO]

    def days(self, cohort: str | None = None) -> list[int]:
        """Days on which a cohort was evaluated."""
        return sorted(d for d, c in self._first if c == (cohort or self.cohorts[0]))

    def counts(self, what: str, cohort: str | None = None, day: int | None = None) -> np.ndarray:
        """One of `COUNTS` by territory, or `title_positives` by title, summed over days."""
        return np.sum([result.counts[what] for result in self._results(cohort, day)], axis=0)

    def num_users(self, metric: str, cohort: str | None = None, day: int | None = None) -> dict[str, int]:
        """Distinct users behind each row of a metric, at most `MIN_USERS`.

        Those with a positive, unless the metric is of lists alone.
        """
        any_user = metric in BIAS_METRICS and metric != "pop_reo"
        kind = "title_users" if metric == "title_pr_auc" else "users" if any_user else "positive_users"
        key = kind, cohort or self.cohorts[0], day
        if key not in self._num_users:
            of_days = [getattr(result, kind) for result in self._results(cohort, day)]
            rows = [DistinctUsers.union(parts) for parts in zip(*of_days, strict=True)]
            means = [rows, rows]
            if kind == "title_users":
                local = self.title_is_local.tolist()
                means = [[row for row, own in zip(rows, local, strict=True) if own == of] for of in (True, False)]
            found = [len(users) for users in [*rows, *map(DistinctUsers.union, means)]]
            self._num_users[key] = dict(zip(self.row_names(metric), found, strict=True))
        return self._num_users[key]

    def intervals(
        self, metric: str, variant: str, cohort: str | None = None, day: int | None = None, over: str | None = None
    ) -> dict[str, Interval]:
        """One metric of one variant by row, on one day or (None) the mean over days with a value.

        With `over`, its gain over that variant, paired by user and by seed: relative in percent, or the difference if
        the metric is one of popularity bias; the mean over days, territories or titles is the mean of their gains, as
        in paper A's table 2. Fewer than `MIN_USERS` users have no interval.
        """
        cohort, per_seed = cohort or self.cohorts[0], []
        compare = np.subtract if metric in BIAS_METRICS else relative_gain
        for run, base in zip(self._runs[variant], self._runs[over or variant], strict=True):
            days = []
            for d in self.days(cohort) if day is None else [day]:
                rows, base_rows = (one.results[d, cohort].rows(metric) for one in (run, base))
                days.append(compare(rows, base_rows) if over else rows)
            per_seed.append(nan_mean(np.stack([self._with_means(metric, rows) for rows in days])))
        found = zip(self.num_users(metric, cohort, day).items(), mean_over_seeds(per_seed), strict=True)
        return {name: interval(row if count >= MIN_USERS else row[:1]) for (name, count), row in found}

    def empty_days(self, cohort: str | None = None) -> dict[str, list[int]]:
        """Days without a positive, of each territory that has positives on other days."""
        days, found = self.days(cohort), {}
        of_days = np.array([self.counts("num_positives", cohort, day)[:-1] for day in days])  # (days, territories)
        for name, column in zip(self.territories, of_days.T, strict=True):
            if column.any() and not column.all():
                found[name] = [day for day, count in zip(days, column, strict=True) if count == 0]
        return found

    def _results(self, cohort: str | None, day: int | None) -> list[EvaluationResult]:
        return [r for (d, c), r in self._first.items() if c == (cohort or self.cohorts[0]) and day in (None, d)]

    def _with_means(self, metric: str, rows: np.ndarray) -> np.ndarray:
        """(rows, R) followed by the rows of means."""
        if metric == "title_pr_auc":
            return np.vstack([rows, nan_mean(rows[self.title_is_local]), nan_mean(rows[~self.title_is_local])])
        return np.vstack([rows, nan_mean(rows[:-1])])

"""Metrics of runs by cohort, day, variant and territory, with intervals and gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.intervals import Interval, interval, mean_over_seeds, nan_mean, relative_gain
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
    """Metrics on the same users, means over seeds; gains are over the first variant.

    All runs have the same days, cohorts and settings, all variants the same seeds. The first cohort is the default.
    """

    def __init__(self, runs: Sequence[EvaluatedRun], territory_names: list[str], title_names: list[str]) -> None:
        self.runs = list(runs)
        self.variants = list(dict.fromkeys(run.variant for run in runs))
        self._runs = {v: sorted((r for r in runs if r.variant == v), key=lambda run: run.seed) for v in self.variants}
        self.first_variant, self.territories = self.variants[0], row_labels(territory_names)
        self.titles = row_labels(title_names, "title", (LOCAL, GLOBAL))
        self.cohorts = list(dict.fromkeys(cohort for _, cohort in runs[0].results))
        self._first = self._runs[self.first_variant][0].results
        first = next(iter(self._first.values()))
        assert first.title_is_local is not None, "results to be reported need a history"
        self.metric_names, self.title_is_local = list(first.metrics), first.title_is_local

    def row_names(self, metric: str) -> list[str]:
        """Territories or titles of a metric, and its means."""
        return [*self.titles, LOCAL, GLOBAL] if metric == "title_pr_auc" else [*self.territories, POOLED, MACRO]

    def days(self, cohort: str | None = None) -> list[int]:
        """Days on which a cohort was evaluated."""
        return sorted(d for d, c in self._first if c == (cohort or self.cohorts[0]))

    def counts(self, what: str, cohort: str | None = None, day: int | None = None) -> np.ndarray:
        """One of `COUNTS` by territory, or `title_positives` by title, summed over days."""
        wanted = [r for (d, c), r in self._first.items() if c == (cohort or self.cohorts[0]) and day in (None, d)]
        return np.sum([result.counts[what] for result in wanted], axis=0)

    def intervals(
        self, metric: str, variant: str, cohort: str | None = None, day: int | None = None, gain: bool = False
    ) -> dict[str, Interval]:
        """One metric of one variant by row, on one day or (None) the mean over days with a value.

        `gain`: relative gain over the first variant in percent, paired by user and by seed; the mean over days,
        territories or titles is the mean of their gains, as in paper A's table 2.
        """
        cohort, per_seed = cohort or self.cohorts[0], []
        for run, base in zip(self._runs[variant], self._runs[self.first_variant], strict=True):
            days = []
            for d in self.days(cohort) if day is None else [day]:
                rows, base_rows = (one.results[d, cohort].rows(metric) for one in (run, base))
                days.append(relative_gain(rows, base_rows) if gain else rows)
            per_seed.append(nan_mean(np.stack([self._with_means(metric, rows) for rows in days])))
        found = zip(self.row_names(metric), mean_over_seeds(per_seed), strict=True)
        return {name: interval(row) for name, row in found}

    def _with_means(self, metric: str, rows: np.ndarray) -> np.ndarray:
        """(rows, R) followed by the rows of means."""
        if metric == "title_pr_auc":
            return np.vstack([rows, nan_mean(rows[self.title_is_local]), nan_mean(rows[~self.title_is_local])])
        return np.vstack([rows, nan_mean(rows[:-1])])

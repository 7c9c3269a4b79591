"""From evaluated runs to figures: every metric by cohort, day, run and territory, with intervals, gains and notes.

The first run is the baseline of all gains. Runs of one variant differ in the seed and are reported as their mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.intervals import Interval, interval, mean_over_seeds, nan_mean, relative_gain
from mtrec_ray.evaluation.state import EvaluationResult

POOLED, MACRO = "all", "mean"
"""Names of the two rows after the territories: all users pooled, and the mean over territories with a value."""
LOCAL, GLOBAL = "local_mean", "global_mean"
PR_AUC_BOUNDS = ("pr_auc_low", "pr_auc_high")
"""What PR-AUC lies between where scores share a bin."""
NO_POSITIVES = "no positives"
NO_INTERVAL = "too few positives for an interval"


@dataclass(frozen=True)
class EvaluatedRun:
    """One trained model's results; `results[day, cohort]`, days from 1."""

    variant: str
    """What is compared: runs of one variant differ in the seed alone."""
    results: Mapping[tuple[int, str], EvaluationResult]
    seed: int = 0


class EvaluationReport:
    """Figures of one or more runs on the same test users."""

    def __init__(
        self,
        runs: Sequence[EvaluatedRun],
        territory_names: Sequence[str],
        title_names: Sequence[str] = (),
        primary_cohort: str | None = None,
    ) -> None:
        """`title_names` name `settings.titles`; the primary cohort (default: the first) gives keys without prefix.

        Raises:
            ValueError: no run, runs that were evaluated differently, a name that is used twice or reserved, or
                variants whose seeds differ (their gains could not be paired).
        """
        if not runs:
            raise ValueError("a report needs at least one evaluated run")
        keys, settings = set(runs[0].results), next(iter(runs[0].results.values())).settings
        for run in runs:
            if set(run.results) != keys:
                raise ValueError(f"run {run.variant!r} covers {sorted(run.results)}, the first one {sorted(keys)}")
            if any(result.settings != settings for result in run.results.values()):
                raise ValueError(f"run {run.variant!r} was evaluated with other settings: evaluate all alike")
        self.variants = list(dict.fromkeys(run.variant for run in runs))
        self._runs = {v: sorted((r for r in runs if r.variant == v), key=_seed) for v in self.variants}
        self.seeds = [run.seed for run in self._runs[self.variants[0]]]
        for variant, own in self._runs.items():
            if len({run.seed for run in own}) != len(own) or [run.seed for run in own] != self.seeds:
                raise ValueError(
                    f"variant {variant!r} has seeds {[run.seed for run in own]}, {self.variants[0]!r} has "
                    f"{self.seeds}: gains are paired by seed, give each variant the same distinct seeds"
                )
        self.settings = settings
        self.days = sorted({day for day, _ in keys})
        self.cohorts = list(dict.fromkeys(cohort for _, cohort in runs[0].results))
        if primary_cohort is not None and primary_cohort not in self.cohorts:
            raise ValueError(f"primary cohort {primary_cohort!r} is not among {self.cohorts}")
        self.primary_cohort = primary_cohort or self.cohorts[0]
        self.territories = _distinct(territory_names, settings.num_territories, "territory", (POOLED, MACRO))
        self.titles = _distinct(title_names, len(settings.titles), "title", (LOCAL, GLOBAL))

    @property
    def baseline(self) -> str:
        return self.variants[0]

    @property
    def metric_names(self) -> list[str]:
        """Metrics by territory that have intervals."""
        return ["pr_auc", *self._any_result().ranking]

    @property
    def bias_names(self) -> list[str]:
        """Metrics by territory that have none."""
        return list(self._any_result().bias)

    def row_names(self, metric: str) -> list[str]:
        """What the rows of a metric stand for."""
        if metric != "title_pr_auc":
            return [*self.territories, POOLED, MACRO]
        return [*self.titles, LOCAL, GLOBAL] if self.title_is_local is not None else list(self.titles)

    @property
    def title_is_local(self) -> np.ndarray | None:
        """(S,) bool, or None when no history was given."""
        return self._any_result().title_is_local

    def cohort_days(self, cohort: str | None = None) -> list[int]:
        """Days on which a cohort was evaluated."""
        wanted = cohort or self.primary_cohort
        return sorted(d for d, c in self._runs[self.baseline][0].results if c == wanted)

    def counts(self, what: str, cohort: str | None = None, day: int | None = None) -> np.ndarray:
        """`num_users`, `num_candidates`, `num_positives`, `num_outside` or `title_positives`, summed over days."""
        results = self._runs[self.baseline][0].results
        wanted = [r for (d, c), r in results.items() if c == (cohort or self.primary_cohort) and day in (None, d)]
        return np.sum([getattr(result, what) for result in wanted], axis=0)

    def intervals(
        self, metric: str, variant: str, cohort: str | None = None, day: int | None = None, gain: bool = False
    ) -> dict[str, Interval]:
        """One metric of one variant by row, on one day or (None) the mean over days that have a value.

        `gain`: relative gain over the first variant in percent, paired by user and by seed; the mean over days,
        territories or titles is the mean of their gains, as in paper A's table 2.
        """
        per_seed = []
        for run, base in zip(self._runs[variant], self._runs[self.baseline], strict=True):
            days = [
                self._replicates(metric, run, base if gain else None, cohort or self.primary_cohort, d)
                for d in (self.cohort_days(cohort) if day is None else [day])
            ]
            per_seed.append(nan_mean(np.stack(days)))
        rows = mean_over_seeds(per_seed)
        return {name: interval(row) for name, row in zip(self.row_names(metric), rows, strict=True)}

    def flat_metrics(self) -> dict[str, float | int | str | None]:
        """All figures under flat keys, for `--json`; a missing value is None and has a `_note` beside it.

        `[<variant>/][<cohort>/][day<N>/]<metric>/<row>` with `_low` and `_high`, and
        `[<cohort>/][day<N>/]gain/<variant>/<row>` (PR-AUC), `.../title_gain/<variant>/<title>`. Keys without a variant
        are the first one's, without a cohort the primary one's, without a day the mean over days.
        """
        flat: dict[str, float | int | str | None] = {}
        for cohort in self.cohorts:
            for day in [None, *self.cohort_days(cohort)]:
                where = ("" if cohort == self.primary_cohort else f"{cohort}/") + (f"day{day}/" if day else "")
                self._add_counts(flat, where, cohort, day)
                self._add_metrics(flat, where, self.baseline, cohort, day)
                for variant in self.variants if len(self.variants) > 1 else []:
                    self._add_metrics(flat, f"{variant}/{where}", variant, cohort, day)
                for variant in self.variants[1:]:
                    self._add_gains(flat, where, variant, cohort, day)
        return flat

    def _add_counts(self, flat: dict, where: str, cohort: str, day: int | None) -> None:
        for what in ("num_users", "num_candidates", "num_positives", "num_outside"):
            names = [*self.territories, POOLED]
            flat |= {f"{where}{what}/{n}": int(c) for n, c in zip(names, self.counts(what, cohort, day), strict=True)}

    def _add_metrics(self, flat: dict, prefix: str, variant: str, cohort: str, day: int | None) -> None:
        for metric in [*self.metric_names, *(["title_pr_auc"] if self.titles else [])]:
            _add_intervals(flat, f"{prefix}{metric}", self.intervals(metric, variant, cohort, day))
        for metric, side in zip(PR_AUC_BOUNDS, ("bound_low", "bound_high"), strict=True):
            for name, bound in self.intervals(metric, variant, cohort, day).items():
                flat[f"{prefix}pr_auc/{name}_{side}"] = _none_if_nan(bound.value)
        for metric in self.bias_names:
            for name, found in self.intervals(metric, variant, cohort, day).items():
                flat[f"{prefix}{metric}/{name}"] = _none_if_nan(found.value)

    def _add_gains(self, flat: dict, where: str, variant: str, cohort: str, day: int | None) -> None:
        for metric, name in (("pr_auc", "gain"), *([("title_pr_auc", "title_gain")] if self.titles else [])):
            gains = self.intervals(metric, variant, cohort, day, gain=True)
            _add_intervals(flat, f"{where}{name}/{variant}", gains)

    def _replicates(
        self, metric: str, run: EvaluatedRun, base: EvaluatedRun | None, cohort: str, day: int
    ) -> np.ndarray:
        """(rows, R) of one run on one day, or its gain over `base`, the rows of means appended."""
        rows = _raw(run.results[day, cohort], metric)
        if base is not None:
            rows = relative_gain(rows, _raw(base.results[day, cohort], metric))
        if metric != "title_pr_auc":
            return np.vstack([rows, nan_mean(rows[:-1])])
        if self.title_is_local is None:
            return rows
        return np.vstack([rows, nan_mean(rows[self.title_is_local]), nan_mean(rows[~self.title_is_local])])

    def _any_result(self) -> EvaluationResult:
        return next(iter(self._runs[self.baseline][0].results.values()))


def _raw(result: EvaluationResult, metric: str) -> np.ndarray:
    """(rows, R) replicates of a metric; R = 1 for those without a bootstrap."""
    if metric == "pr_auc":
        return result.pr_auc
    if metric == "title_pr_auc":
        return result.title_pr_auc
    if metric in PR_AUC_BOUNDS:
        return result.pr_auc_bounds[:, PR_AUC_BOUNDS.index(metric), None]
    if metric in result.ranking:
        return result.ranking[metric]
    if metric in result.bias:
        return result.bias[metric][:, None]
    raise ValueError(f"unknown metric {metric!r}: choose from pr_auc, {', '.join([*result.ranking, *result.bias])}")


def _add_intervals(flat: dict, prefix: str, intervals: dict[str, Interval]) -> None:
    for name, found in intervals.items():
        key = f"{prefix}/{name}"
        flat |= {key: _none_if_nan(found.value)}
        flat |= {f"{key}_low": _none_if_nan(found.low), f"{key}_high": _none_if_nan(found.high)}
        if np.isnan(found.value):
            flat[f"{key}_note"] = NO_POSITIVES
        elif np.isnan(found.low):
            flat[f"{key}_note"] = NO_INTERVAL


def _none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else value


def _seed(run: EvaluatedRun) -> int:
    return run.seed


def _distinct(names: Sequence[str], count: int, what: str, reserved: tuple[str, ...]) -> list[str]:
    found = list(names)
    if len(found) != count or len(set(found)) != count or set(found) & set(reserved):
        raise ValueError(
            f"need {count} distinct {what} names other than {' and '.join(reserved)}, got {len(found)}: {found[:5]}"
        )
    return found

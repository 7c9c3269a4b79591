"""An evaluation report as tidy tables, one row an observation; the CSV files and the JSON document hold the same.

territory_metrics.csv   PR-AUC, ranking metrics and gains (percent over the first variant) by territory
title_metrics.csv       PR-AUC and gain of single titles, and their means over local and over global titles
popularity_bias.csv     popularity-bias metrics of top-k lists by territory
territory_counts.csv    users, scored pairs (candidates), positives, and positives that were no candidates

A day is its number or `average`; a territory may also be `all` (users pooled) or `mean` (over territories).
"""

from collections.abc import Iterator, Mapping
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.report import POOLED, EvaluationReport
from mtrec_ray.evaluation.state import COUNTS, PR_AUC_BOUNDS
from mtrec_ray.evaluation.tidy import nested

if TYPE_CHECKING:
    import pandas as pd

AVERAGE = "average"
"""The mean over days."""
GAIN = "_gain"
"""Ending of a relative gain over the first variant, in percent."""
NO_POSITIVES = "no positives"
NO_INTERVAL = "too few positives for an interval"
TABLE_KEYS = {
    "territory_metrics": ("cohort", "variant", "day", "territory", "metric"),
    "title_metrics": ("cohort", "variant", "day", "title", "metric"),
    "popularity_bias": ("cohort", "variant", "day", "territory", "metric"),
    "territory_counts": ("cohort", "day", "territory"),
}
"""Columns that identify a row, in the order in which the JSON document nests them."""


def evaluation_tables(report: EvaluationReport) -> "dict[str, pd.DataFrame]":
    """All tables by name, those with rows."""
    import pandas as pd

    metrics = [f"pr_auc{GAIN}", *(name for name in report.metric_names if name not in BIAS_METRICS)]
    rows = {
        "territory_metrics": list(_metric_rows(report, "territory", metrics)),
        "title_metrics": list(_title_rows(report)),
        "popularity_bias": list(_metric_rows(report, "territory", list(BIAS_METRICS))),
        "territory_counts": list(_count_rows(report)),
    }
    return {name: pd.DataFrame(found).dropna(axis=1, how="all") for name, found in rows.items() if found}


def evaluation_document(tables: "Mapping[str, pd.DataFrame]") -> dict[str, Any]:
    """Each table nested by its `TABLE_KEYS`: document[table][cohort][variant][day][territory][metric]["value"]."""
    return {name: nested(table, TABLE_KEYS[name]) for name, table in tables.items()}


def _metric_rows(report: EvaluationReport, column: str, metrics: list[str]) -> Iterator[dict[str, Any]]:
    """One row per cohort, variant, day, metric, and territory or title (`column`)."""
    without_interval = {*PR_AUC_BOUNDS, *BIAS_METRICS}
    for cohort in report.cohorts:
        for variant in report.variants:
            for day in [*report.days(cohort), None]:
                key = {"cohort": cohort, "variant": variant, "day": str(day or AVERAGE)}
                for metric in metrics:
                    gain = metric.endswith(GAIN)
                    if gain and variant == report.baseline:
                        continue
                    found = report.intervals(metric.removesuffix(GAIN), variant, cohort, day, gain)
                    for name, one in found.items():
                        row = key | {column: name, "metric": metric.removeprefix("title_"), **one._asdict()}
                        if metric not in without_interval:
                            row["note"] = NO_POSITIVES if isnan(one.value) else NO_INTERVAL if isnan(one.low) else None
                        yield row


def _title_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    if not report.titles:
        return
    facts = {cohort: _title_facts(report, cohort) for cohort in report.cohorts}
    for row in _metric_rows(report, "title", ["title_pr_auc", f"title_pr_auc{GAIN}"]):
        yield row | facts[row["cohort"]][row["title"]]


def _title_facts(report: EvaluationReport, cohort: str) -> dict[str, dict[str, Any]]:
    """Scope, and positives over all days, of titles and their means."""
    positives, is_local = report.counts("title_positives", cohort), report.title_is_local
    scopes = [*np.where(is_local, "local", "global").tolist(), "local", "global"]
    counts = [*positives.tolist(), int(positives[is_local].sum()), int(positives[~is_local].sum())]
    facts = zip(report.row_names("title_pr_auc"), scopes, counts, strict=True)
    return {name: {"scope": scope, "num_positives": count} for name, scope, count in facts}


def _count_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    for cohort in report.cohorts:
        for day in report.days(cohort):
            counts = [report.counts(name, cohort, day).tolist() for name in COUNTS]
            for territory, *of_territory in zip([*report.territories, POOLED], *counts, strict=True):
                key = {"cohort": cohort, "day": str(day), "territory": territory}
                yield key | dict(zip(COUNTS, of_territory, strict=True))

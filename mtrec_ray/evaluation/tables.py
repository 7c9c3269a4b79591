"""An evaluation report as tidy tables; the CSV files and the JSON document hold the same.

A day is its number or `average`; a territory may also be `all` (users pooled) or `mean` (over territories); gains are
in percent over the first variant.
"""

from collections.abc import Iterator, Mapping
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.report import POOLED, EvaluationReport
from mtrec_ray.evaluation.state import COUNTS, PR_AUC_BOUNDS
from mtrec_ray.files import finite, join, write_file

AVERAGE = "average"  # the mean over days
GAIN = "_gain"  # ending of a relative gain over the first variant, in percent
NO_POSITIVES, NO_INTERVAL = "no positives", "too few positives for an interval"
TABLE_KEYS = {
    "territory_metrics": ("cohort", "variant", "day", "territory", "metric"),
    "title_metrics": ("cohort", "variant", "day", "title", "metric"),
    "popularity_bias": ("cohort", "variant", "day", "territory", "metric"),
    "territory_counts": ("cohort", "day", "territory"),
}
"""Columns that identify a row, in the order in which the JSON document nests them."""


def evaluation_tables(report: EvaluationReport) -> dict[str, pd.DataFrame]:
    """All tables by name, those with rows."""
    metrics = [f"pr_auc{GAIN}", *(name for name in report.metric_names if name not in BIAS_METRICS)]
    rows = {
        "territory_metrics": _metric_rows(report, "territory", metrics),
        "title_metrics": _title_rows(report) if report.titles else (),
        "popularity_bias": _metric_rows(report, "territory", list(BIAS_METRICS)),
        "territory_counts": _count_rows(report),
    }
    tables = {name: pd.DataFrame(found).dropna(axis=1, how="all") for name, found in rows.items()}
    return {name: table for name, table in tables.items() if len(table)}


def _metric_rows(report: EvaluationReport, column: str, metrics: list[str]) -> Iterator[dict[str, Any]]:
    """One row per cohort, variant, day, metric, and territory or title (`column`)."""
    without_interval = {*PR_AUC_BOUNDS, *BIAS_METRICS}
    for cohort in report.cohorts:
        for variant in report.variants:
            for day in [*report.days(cohort), None]:
                key = {"cohort": cohort, "variant": variant, "day": str(day or AVERAGE)}
                for metric in metrics:
                    gain = metric.endswith(GAIN)
                    if gain and variant == report.first_variant:
                        continue
                    found = report.intervals(metric.removesuffix(GAIN), variant, cohort, day, gain)
                    for name, one in found.items():
                        row = key | {column: name, "metric": metric.removeprefix("title_"), **one._asdict()}
                        if metric not in without_interval:
                            row["note"] = NO_POSITIVES if isnan(one.value) else NO_INTERVAL if isnan(one.low) else None
                        yield row


def _title_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
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
            columns = {"territory": [*report.territories, POOLED]}
            columns |= {name: report.counts(name, cohort, day).tolist() for name in COUNTS}
            for row in zip(*columns.values(), strict=True):
                yield {"cohort": cohort, "day": str(day)} | dict(zip(columns, row, strict=True))


def evaluation_document(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Each table's rows nested by its `TABLE_KEYS`; fields without a value are left out."""
    document: dict[str, Any] = {}
    for name, table in tables.items():
        for row in table.to_dict("records"):
            inner = document.setdefault(name, {})
            for key in TABLE_KEYS[name]:
                inner = inner.setdefault(str(row.pop(key)), {})
            inner |= {
                str(key): field for key, field in finite(row).items() if key == "value" or field not in (None, "")
            }
    return document


def write_csv_files(folder: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write each table to `<name>.csv`, each atomically."""
    for name, table in tables.items():
        write_file(join(folder, f"{name}.csv"), table.to_csv(index=False).encode())

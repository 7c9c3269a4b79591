"""An evaluation report as tidy tables, for CSV and JSON.

A day is its number or `average`; a territory may also be `all` (users pooled) or `mean` (over territories), and a
territory of that name is `all (territory)`. Gains are in percent over each baseline, differences of popularity bias are
absolute.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
import pandas as pd

from mtrec_ray.evaluation.distinct_users import MIN_USERS
from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS, WITHOUT_REPLICATES
from mtrec_ray.evaluation.report import POOLED, EvaluationReport
from mtrec_ray.evaluation.state import COUNTS, PR_AUC_BOUNDS
from mtrec_ray.files import finite, join, write_file

AVERAGE = "average"  # the mean over days
GAIN, DIFFERENCE = "_gain", "_difference"  # endings of what a metric gains over a baseline, in percent or absolute
GAINS = ("pr_auc", "ndcg@10")  # metrics whose gains by territory are reported
NO_POSITIVES, NO_GAIN = "no positives", "the baseline's is 0"
NO_INTERVAL = f"fewer than {MIN_USERS} users with a positive: no interval"
NO_BIAS_INTERVAL = f"fewer than {MIN_USERS} users: no interval"
TABLE_KEYS = {  # columns that identify a row, in the order in which the JSON document nests them
    "territory_metrics": ("cohort", "variant", "day", "territory", "metric", "over"),
    "title_metrics": ("cohort", "variant", "day", "title", "metric", "over"),
    "popularity_bias": ("cohort", "variant", "day", "territory", "metric", "over"),
    "territory_counts": ("cohort", "day", "territory"),
}


def evaluation_tables(report: EvaluationReport) -> dict[str, pd.DataFrame]:
    """All tables by name, those with rows."""
    metrics = [name for name in report.metric_names if name not in BIAS_METRICS]
    compared = [name for name in BIAS_METRICS if name not in WITHOUT_REPLICATES or name == "gini"]
    rows = {
        "territory_metrics": _metric_rows(report, "territory", metrics, GAINS, GAIN),
        "title_metrics": _title_rows(report) if report.titles else (),
        "popularity_bias": _metric_rows(report, "territory", BIAS_METRICS, compared, DIFFERENCE),
        "territory_counts": _count_rows(report),
    }
    tables = {name: pd.DataFrame(found).dropna(axis=1, how="all") for name, found in rows.items()}
    return {name: table for name, table in tables.items() if len(table)}


def _metric_rows(
    report: EvaluationReport, column: str, metrics: Sequence[str], compared: Sequence[str], ending: str
) -> Iterator[dict[str, Any]]:
    """One row per cohort, variant, day, metric, baseline, and territory or title (`column`)."""
    for cohort in report.cohorts:
        empty_days = report.empty_days(cohort)
        for variant in report.variants:
            comparisons = [(metric, over) for over in report.baselines if over != variant for metric in compared]
            for day in [*report.days(cohort), None]:
                for metric, over in [*comparisons, *((metric, None) for metric in metrics)]:
                    num_users = report.num_users(metric, cohort, day)
                    for name, one in report.intervals(metric, variant, cohort, day, over).items():
                        note = _note(metric, one, num_users[name])
                        if note is None and day is None and column == "territory" and metric not in BIAS_METRICS:
                            note = _without_days(empty_days.get(name, ()))
                        yield {
                            "cohort": cohort,
                            "variant": variant,
                            "day": str(day or AVERAGE),
                            column: name,
                            "metric": metric.removeprefix("title_") + (ending if over else ""),
                            "over": over,
                            **one._asdict(),
                            "note": note,
                        }


def _note(metric: str, found: Interval, num_users: int) -> str | None:
    """Why a value or its interval is missing."""
    if metric in BIAS_METRICS and metric != "pop_reo":
        few = num_users < MIN_USERS and metric not in WITHOUT_REPLICATES and not isnan(found.value)
        return NO_BIAS_INTERVAL if few else None
    if num_users == 0:
        return NO_POSITIVES
    if isnan(found.value):
        return None if metric in BIAS_METRICS else NO_GAIN
    return NO_INTERVAL if isnan(found.low) and metric not in PR_AUC_BOUNDS else None


def _without_days(days: Sequence[int]) -> str | None:
    return f"mean over the other days: {NO_POSITIVES} on day {', '.join(map(str, days))}" if days else None


def _title_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    """With the title's scope, and its positives over all days."""
    local, facts = report.title_is_local, {}
    scopes = [*np.where(local, "local", "global").tolist(), "local", "global"]
    for cohort in report.cohorts:
        positives = report.counts("title_positives", cohort)
        counts = [*positives.tolist(), int(positives[local].sum()), int(positives[~local].sum())]
        for name, scope, count in zip(report.row_names("title_pr_auc"), scopes, counts, strict=True):
            facts[cohort, name] = {"scope": scope, "num_positives": count}
    for row in _metric_rows(report, "title", ["title_pr_auc"], ["title_pr_auc"], GAIN):
        yield row | facts[row["cohort"], row["title"]]


def _count_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    for cohort in report.cohorts:
        for day in report.days(cohort):
            counts = [report.counts(name, cohort, day).tolist() for name in COUNTS]
            for territory, *row in zip([*report.territories, POOLED], *counts, strict=True):
                yield {"cohort": cohort, "day": str(day), "territory": territory} | dict(zip(COUNTS, row, strict=True))


def evaluation_document(tables: Mapping[str, pd.DataFrame], baseline: str) -> dict[str, Any]:
    """Each table's rows nested by its `TABLE_KEYS`; fields without a value are left out.

    `pr_auc_gain` is over `baseline`, `pr_auc_gain/NAME` over another one.
    """
    document: dict[str, Any] = {}
    for name, table in tables.items():
        for row in table.to_dict("records"):
            over = row.pop("over", None)
            if isinstance(over, str) and over != baseline:
                row["metric"] += f"/{over}"
            inner = document.setdefault(name, {})
            for key in TABLE_KEYS[name]:
                if key != "over":  # in the metric's name
                    inner = inner.setdefault(str(row.pop(key)), {})
            inner |= {k: field for k, field in finite(row).items() if k == "value" or field not in (None, "")}
    return document


def write_csv_files(folder: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write each table to `<name>.csv`, each atomically."""
    for name, table in tables.items():
        write_file(join(folder, f"{name}.csv"), table.to_csv(index=False).encode())

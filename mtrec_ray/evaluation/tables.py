"""The report as tables: paper A's tables 2 and 3 as data frames, CSV and JSON files."""

from typing import Any

import pandas as pd

from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.report import EvaluationReport
from mtrec_ray.files import join, write_file, write_json

AVERAGE = "Average"


def gain_table(report: EvaluationReport, cohort: str | None = None, part: str = "value") -> pd.DataFrame:
    """Paper A's table 2: PR-AUC gain in percent over the first variant.

    Rows (comparison, test set) for each further variant and day, then the average over days; columns the territories,
    `all` and `mean`. `part` is `value`, `low` or `high`.
    """
    rows = _gain_rows(report, cohort)
    index = pd.MultiIndex.from_tuples(list(rows), names=["comparison", "test set"])
    columns = report.row_names("pr_auc")
    return pd.DataFrame([[getattr(row[c], part) for c in columns] for row in rows.values()], index, columns)


def metric_table(
    report: EvaluationReport, metric: str = "pr_auc", cohort: str | None = None, part: str = "value"
) -> pd.DataFrame:
    """Any metric by (run, test set) x territory, `all` and `mean`."""
    rows = _metric_rows(report, metric, cohort)
    index = pd.MultiIndex.from_tuples(list(rows), names=["run", "test set"])
    columns = report.row_names(metric)
    return pd.DataFrame([[getattr(row[c], part) for c in columns] for row in rows.values()], index, columns)


def title_table(report: EvaluationReport, cohort: str | None = None) -> pd.DataFrame:
    """Paper A's table 3: titles x (scope, positives, PR-AUC of the first variant, gain of each other with bounds)."""
    names = report.row_names("title_pr_auc")
    table = pd.DataFrame(index=pd.Index(names, name="title"))
    if report.title_is_local is not None:
        scopes = ["local" if local else "global" for local in report.title_is_local]
        table["scope"] = [*scopes, "local", "global"]
    positives = report.counts("title_positives", cohort).tolist()
    table["positives"] = pd.array([*positives, *([None] * (len(names) - len(positives)))], dtype="Int64")
    first = report.intervals("title_pr_auc", report.baseline, cohort)
    table[f"pr_auc {report.baseline}"] = [first[name].value for name in names]
    for variant in report.variants[1:]:
        gains = report.intervals("title_pr_auc", variant, cohort, gain=True)
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            table[f"{variant} vs {report.baseline}{suffix}"] = [getattr(gains[name], part) for name in names]
    return table


def write_tables(report: EvaluationReport, folder: str, measured: dict[str, Any] | None = None) -> list[str]:
    """Write metrics.json and, per cohort, CSV tables to a local folder or `pyarrow.fs` URI; each whole or not at all.

    `measured` stands in metrics.json beside the report's figures: what they are of.

    The primary cohort's tables are pr_auc.csv, gain.csv and titles.csv, another's end in -<cohort>. Beside a
    territory's column stand `<territory>_low` and `<territory>_high`. Returns the names written.
    """
    files: list[str] = []
    for cohort in report.cohorts:
        tables = {"pr_auc": _wide(metric_table, report, cohort=cohort)}
        if len(report.variants) > 1:
            tables["gain"] = _wide(gain_table, report, cohort=cohort)
        if report.titles:
            tables["titles"] = title_table(report, cohort)
        for name, table in tables.items():
            file = f"{name}.csv" if cohort == report.primary_cohort else f"{name}-{cohort}.csv"
            write_file(join(folder, file), table.to_csv(float_format="%.8g").encode())
            files.append(file)
    write_json(join(folder, "metrics.json"), report.flat_metrics() | (measured or {}))
    return [*files, "metrics.json"]


def _gain_rows(report: EvaluationReport, cohort: str | None) -> dict[tuple[str, str], dict[str, Interval]]:
    return {
        (f"{variant} vs {report.baseline}", test_set): report.intervals("pr_auc", variant, cohort, day, gain=True)
        for variant in report.variants[1:]
        for test_set, day in test_days(report, cohort)
    }


def _metric_rows(report: EvaluationReport, metric: str, cohort: str | None) -> dict[tuple[str, str], dict]:
    return {
        (variant, test_set): report.intervals(metric, variant, cohort, day)
        for variant in report.variants
        for test_set, day in test_days(report, cohort)
    }


def test_days(report: EvaluationReport, cohort: str | None) -> list[tuple[str, int | None]]:
    """Label and day of each test set, the average last."""
    days = report.cohort_days(cohort)
    return [*((f"Day {day}", day) for day in days), (AVERAGE, None)]


def _wide(build, report: EvaluationReport, cohort: str) -> pd.DataFrame:
    """A table with each column's bounds beside it."""
    parts = {part: build(report, cohort=cohort, part=part) for part in ("value", "low", "high")}
    ordered = {}
    for column in parts["value"].columns:
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            ordered[f"{column}{suffix}"] = parts[part][column]
    return pd.DataFrame(ordered)

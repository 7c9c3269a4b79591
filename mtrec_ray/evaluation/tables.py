"""The report as tables: paper A's tables 2 and 3 as data frames, CSV and JSON files, and for the terminal."""

import pandas as pd
from rich.table import Table
from rich.text import Text

from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.report import GLOBAL, LOCAL, MACRO, NO_POSITIVES, POOLED, EvaluationReport
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


def write_tables(report: EvaluationReport, folder: str) -> list[str]:
    """Write metrics.json and, per cohort, CSV tables to a local folder or `pyarrow.fs` URI; each whole or not at all.

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
    write_json(join(folder, "metrics.json"), report.flat_metrics())
    return [*files, "metrics.json"]


def gain_rich_table(report: EvaluationReport, cohort: str | None = None, max_territories: int = 12) -> Table:
    """Table 2 for the terminal: positive averages bold, gains whose interval includes 0 dim."""
    table = Table(title=f"PR-AUC gain in % over {report.baseline}{_cohort_title(report, cohort)}")
    columns = _shown_columns(report, cohort, max_territories, table)
    for header in ("comparison", "test set", *columns):
        table.add_column(header, justify="left" if header in ("comparison", "test set") else "right")
    for (comparison, test_set), row in _gain_rows(report, cohort).items():
        average = test_set == AVERAGE
        cells = [_gain_cell(row[c], average) for c in columns]
        table.add_row("" if test_set != _first_test_set(report, cohort) else comparison, test_set, *cells)
        if average:
            table.add_section()
    return table


def metric_rich_table(
    report: EvaluationReport, metric: str = "pr_auc", cohort: str | None = None, max_territories: int = 12
) -> Table:
    """A metric's mean over days of each run, with the half-width of its 95% interval, for the terminal."""
    table = Table(title=f"{metric}, mean over {len(report.days)} day(s){_cohort_title(report, cohort)}")
    columns = _shown_columns(report, cohort, max_territories, table)
    for header in ("run", *columns):
        table.add_column(header, justify="left" if header == "run" else "right")
    for variant in report.variants:
        row = report.intervals(metric, variant, cohort)
        table.add_row(variant, *[_metric_cell(row[c]) for c in columns])
    return table


def title_rich_table(report: EvaluationReport, cohort: str | None = None, max_titles: int = 20) -> Table:
    """Table 3 for the terminal: gain per title, the titles with most positives and the local and global means."""
    table = Table(title=f"PR-AUC gain in % by title{_cohort_title(report, cohort)}")
    for header in ("title", "scope", "positives", *(f"vs {report.baseline}: {v}" for v in report.variants[1:])):
        table.add_column(header, justify="left" if header in ("title", "scope") else "right")
    positives = report.counts("title_positives", cohort)
    shown = sorted(range(len(positives)), key=lambda i: -positives[i])[:max_titles]
    gains = [report.intervals("title_pr_auc", v, cohort, gain=True) for v in report.variants[1:]]
    local = report.title_is_local
    for slot in sorted(shown):
        name, scope = report.titles[slot], "" if local is None else "local" if local[slot] else "global"
        table.add_row(name, scope, str(positives[slot]), *[_gain_cell(g[name], False) for g in gains])
    if local is not None:
        table.add_section()
        for name, scope in ((LOCAL, "local"), (GLOBAL, "global")):
            table.add_row("mean", scope, "", *[_gain_cell(g[name], True) for g in gains])
    if len(shown) < len(positives):
        table.caption = f"{len(positives) - len(shown)} more titles in titles.csv"
    return table


def _gain_rows(report: EvaluationReport, cohort: str | None) -> dict[tuple[str, str], dict[str, Interval]]:
    return {
        (f"{variant} vs {report.baseline}", test_set): report.intervals("pr_auc", variant, cohort, day, gain=True)
        for variant in report.variants[1:]
        for test_set, day in _test_sets(report, cohort)
    }


def _metric_rows(report: EvaluationReport, metric: str, cohort: str | None) -> dict[tuple[str, str], dict]:
    return {
        (variant, test_set): report.intervals(metric, variant, cohort, day)
        for variant in report.variants
        for test_set, day in _test_sets(report, cohort)
    }


def _test_sets(report: EvaluationReport, cohort: str | None) -> list[tuple[str, int | None]]:
    days = report.cohort_days(cohort)
    return [*((f"Day {day}", day) for day in days), (AVERAGE, None)]


def _first_test_set(report: EvaluationReport, cohort: str | None) -> str:
    return _test_sets(report, cohort)[0][0]


def _wide(build, report: EvaluationReport, cohort: str) -> pd.DataFrame:
    """A table with each column's bounds beside it."""
    parts = {part: build(report, cohort=cohort, part=part) for part in ("value", "low", "high")}
    ordered = {}
    for column in parts["value"].columns:
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            ordered[f"{column}{suffix}"] = parts[part][column]
    return pd.DataFrame(ordered)


def _shown_columns(report: EvaluationReport, cohort: str | None, max_territories: int, table: Table) -> list[str]:
    """The territories in their order, or the largest by positives, then `all` and `mean`; says what it leaves out."""
    positives = report.counts("num_positives", cohort)[:-1]
    shown = sorted(sorted(range(len(positives)), key=lambda i: -positives[i])[:max_territories])
    if len(shown) < len(positives):
        table.caption = f"{len(shown)} largest of {len(positives)} territories; the CSV has the rest"
    return [*(report.territories[i] for i in shown), POOLED, MACRO]


def _cohort_title(report: EvaluationReport, cohort: str | None) -> str:
    return "" if cohort in (None, report.primary_cohort) else f" ({cohort})"


def _gain_cell(gain: Interval, average: bool) -> Text:
    if gain.value != gain.value:
        return Text(NO_POSITIVES, style="dim italic")
    style = "" if gain.significant else "dim"
    return Text(f"{gain.value:+.2f}", style=f"bold {style}".strip() if average and gain.value > 0 else style)


def _metric_cell(found: Interval) -> Text:
    if found.value != found.value:
        return Text(NO_POSITIVES, style="dim italic")
    half = (found.high - found.low) / 2
    return Text(f"{found.value:.4f}" + ("" if half != half else f" ±{half:.4f}"))

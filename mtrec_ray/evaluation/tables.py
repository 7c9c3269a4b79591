"""An evaluation report as tables: tidy ones for CSV and JSON, others for the terminal.

A day is its number or `average`; a territory may also be `all` (users pooled) or `mean` (over territories), and a
territory of that name is `all (territory)`; gains are in percent over the first variant. The terminal shows variants as
columns, 80 characters wide.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.report import GLOBAL, LOCAL, MACRO, POOLED, EvaluationReport
from mtrec_ray.evaluation.state import COUNTS, PR_AUC_BOUNDS
from mtrec_ray.files import finite, join, write_file

AVERAGE = "average"  # the mean over days
GAIN = "_gain"  # ending of a relative gain over the first variant, in percent
NO_POSITIVES, NO_INTERVAL = "no positives", "too few positives for an interval"
MAX_TERRITORIES, MAX_TITLES = 12, 20  # shown on the terminal
LEGEND = f"{POOLED}: users of all territories; {MACRO}: mean over territories; ±: half of the 95% interval"
TABLE_KEYS = {  # columns that identify a row, in the order in which the JSON document nests them
    "territory_metrics": ("cohort", "variant", "day", "territory", "metric"),
    "title_metrics": ("cohort", "variant", "day", "title", "metric"),
    "popularity_bias": ("cohort", "variant", "day", "territory", "metric"),
    "territory_counts": ("cohort", "day", "territory"),
}


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
    """With the title's scope, and its positives over all days."""
    local, facts = report.title_is_local, {}
    scopes = [*np.where(local, "local", "global").tolist(), "local", "global"]
    for cohort in report.cohorts:
        positives = report.counts("title_positives", cohort)
        counts = [*positives.tolist(), int(positives[local].sum()), int(positives[~local].sum())]
        for name, scope, count in zip(report.row_names("title_pr_auc"), scopes, counts, strict=True):
            facts[cohort, name] = {"scope": scope, "num_positives": count}
    for row in _metric_rows(report, "title", ["title_pr_auc", f"title_pr_auc{GAIN}"]):
        yield row | facts[row["cohort"], row["title"]]


def _count_rows(report: EvaluationReport) -> Iterator[dict[str, Any]]:
    for cohort in report.cohorts:
        for day in report.days(cohort):
            counts = [report.counts(name, cohort, day).tolist() for name in COUNTS]
            for territory, *row in zip([*report.territories, POOLED], *counts, strict=True):
                yield {"cohort": cohort, "day": str(day), "territory": territory} | dict(zip(COUNTS, row, strict=True))


def evaluation_document(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Each table's rows nested by its `TABLE_KEYS`; fields without a value are left out."""
    document: dict[str, Any] = {}
    for name, table in tables.items():
        for row in table.to_dict("records"):
            inner = document.setdefault(name, {})
            for key in TABLE_KEYS[name]:
                inner = inner.setdefault(str(row.pop(key)), {})
            inner |= {k: field for k, field in finite(row).items() if k == "value" or field not in (None, "")}
    return document


def write_csv_files(folder: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write each table to `<name>.csv`, each atomically."""
    for name, table in tables.items():
        write_file(join(folder, f"{name}.csv"), table.to_csv(index=False).encode())


def rich_tables(report: EvaluationReport, with_candidates: bool) -> list[RenderableType]:
    """Gains by territory, NDCG@10 where the lake fixes candidates, and gains by title."""
    shown: list[RenderableType] = []
    for cohort in report.cohorts:
        shown.append(gain_rich_table(report, cohort))
        if with_candidates:
            shown.append(metric_rich_table(report, "ndcg@10", cohort))
    if report.titles and len(report.variants) > 1:
        shown.append(title_rich_table(report))
    return shown


def gain_rich_table(report: EvaluationReport, cohort: str | None = None) -> Table:
    """Paper A's table 2, transposed: PR-AUC of the first variant and gains over it in percent.

    Positive averages are bold, gains whose 95% interval includes 0 dim; averages show the interval's half-width.
    """
    title = f"PR-AUC, and gain in % over {report.first_variant}{_cohort_title(report, cohort)}"
    table = numbers_table(title, ("territory", "day"), ("positives", report.first_variant, *report.variants[1:]))
    names = _shown_rows(report, cohort, table)
    days = report.days(cohort)
    for day in [*(days if len(days) > 1 else []), None]:
        first = report.intervals("pr_auc", report.first_variant, cohort, day)
        gains = [report.intervals("pr_auc", v, cohort, day, gain=True) for v in report.variants[1:]]
        positives = dict(zip([*report.territories, POOLED], report.counts("num_positives", cohort, day), strict=True))
        for name in names:
            count = f"{positives[name]:,}" if name in positives else ""
            cells = [_gain_cell(gain[name], average=day is None) for gain in gains]
            table.add_row(name, str(day or AVERAGE), count, _metric_cell(first[name]), *cells)
        table.add_section()
    return table


def metric_rich_table(report: EvaluationReport, metric: str = "pr_auc", cohort: str | None = None) -> Table:
    """A metric's mean over days for each variant, with the half-width of its 95% interval."""
    title = f"{metric}, mean over {len(report.days(cohort))} day(s){_cohort_title(report, cohort)}"
    table = numbers_table(title, ("territory",), tuple(report.variants))
    found = [report.intervals(metric, variant, cohort) for variant in report.variants]
    for name in _shown_rows(report, cohort, table):
        table.add_row(name, *[_metric_cell(row[name]) for row in found])
    return table


def title_rich_table(report: EvaluationReport, cohort: str | None = None) -> Table:
    """Paper A's table 3: gains of the titles with most positives, local and global means."""
    title = f"PR-AUC gain in % over {report.first_variant} by title{_cohort_title(report, cohort)}"
    table = numbers_table(title, ("title", "scope"), ("positives", *report.variants[1:]))
    positives, local = report.counts("title_positives", cohort), report.title_is_local
    shown = sorted(range(len(positives)), key=lambda i: -positives[i])[:MAX_TITLES]
    gains = [report.intervals("title_pr_auc", v, cohort, gain=True) for v in report.variants[1:]]
    for slot in sorted(shown, key=lambda i: (not local[i], -positives[i])):
        name, scope = report.titles[slot], "local" if local[slot] else "global"
        table.add_row(name, scope, str(positives[slot]), *[_gain_cell(g[name], average=False) for g in gains])
    table.add_section()
    for name, scope in ((LOCAL, "local"), (GLOBAL, "global")):
        table.add_row("mean", scope, "", *[_gain_cell(g[name], average=True) for g in gains])
    if len(shown) < len(positives):
        table.caption = f"{len(positives) - len(shown)} more titles in title_metrics.csv"
    return table


def numbers_table(title: str, texts: Sequence[str], numbers: Iterable[str], caption: str | None = None) -> Table:
    """An empty table with columns of text, then of right-aligned numbers."""
    columns = [Column(header.replace("+", " + "), justify="right", overflow="fold") for header in numbers]
    return Table(*texts, *columns, title=title, caption=caption)


def _shown_rows(report: EvaluationReport, cohort: str | None, table: Table) -> list[str]:
    """The largest territories, then `all` and `mean`; the caption explains them."""
    positives = report.counts("num_positives", cohort)[:-1]
    shown = sorted(sorted(np.flatnonzero(positives), key=lambda i: -positives[i])[:MAX_TERRITORIES])
    empty = [name for name, count in zip(report.territories, positives, strict=True) if count == 0]
    notes = [LEGEND, *([f"{NO_POSITIVES}: {', '.join(empty)}"] if empty else [])]
    if len(shown) < len(positives) - len(empty):
        notes.append(f"{len(shown)} largest of {len(positives)} territories; territory_metrics.csv has the rest")
    table.caption = "\n".join(notes)
    return [*(report.territories[i] for i in shown), POOLED, MACRO]


def _cohort_title(report: EvaluationReport, cohort: str | None) -> str:
    return f", {cohort or report.cohorts[0]} users" if len(report.cohorts) > 1 else ""


def _gain_cell(gain: Interval, *, average: bool) -> Text:
    bold, dim = average and gain.value > 0, not gain.significant
    return _metric_cell(gain, "+.1f", average, style=" ".join(["bold"] * bold + ["dim"] * dim))


def _metric_cell(found: Interval, form: str = ".4f", average: bool = True, style: str = "") -> Text:
    if isnan(found.value):
        return Text("-", style="dim")
    half = (found.high - found.low) / 2
    bounds = f" ±{half:{form.lstrip('+')}}" if average and not isnan(half) else ""
    return Text(f"{found.value:{form}}{bounds}", style=style)

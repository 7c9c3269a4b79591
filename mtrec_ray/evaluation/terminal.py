"""The evaluation report for the terminal: variants as columns, 80 characters wide."""

from collections.abc import Iterable, Sequence
from math import isnan

import numpy as np
from rich.table import Column, Table
from rich.text import Text

from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.report import GLOBAL, LOCAL, MACRO, POOLED, EvaluationReport
from mtrec_ray.evaluation.tables import AVERAGE, NO_POSITIVES

MAX_TERRITORIES, MAX_TITLES = 12, 20
LEGEND = f"{POOLED}: users of all territories; {MACRO}: mean over territories; ±: half of the 95% interval"


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
    if isnan(gain.value):
        return Text("-", style="dim")
    style = "" if gain.significant else "dim"
    half = (gain.high - gain.low) / 2
    text = f"{gain.value:+.1f}" + (f" ±{half:.1f}" if average and not isnan(half) else "")
    return Text(text, style=f"bold {style}".strip() if average and gain.value > 0 else style)


def _metric_cell(found: Interval) -> Text:
    if isnan(found.value):
        return Text("-", style="dim")
    half = (found.high - found.low) / 2
    return Text(f"{found.value:.4f}" + ("" if isnan(half) else f" ±{half:.4f}"))

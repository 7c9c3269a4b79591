"""An evaluation report for the terminal: variants as columns, 80 characters wide."""

from collections.abc import Iterable, Sequence
from math import isnan

import numpy as np
from rich.console import RenderableType
from rich.table import Column, Table
from rich.text import Text

from mtrec_ray.evaluation.distinct_users import MIN_USERS
from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.popularity_bias import BIAS_METRICS
from mtrec_ray.evaluation.report import GLOBAL, LOCAL, MACRO, POOLED, EvaluationReport
from mtrec_ray.evaluation.state import LIST_LENGTH
from mtrec_ray.evaluation.tables import AVERAGE, NO_INTERVAL, NO_POSITIVES

MAX_TERRITORIES, MAX_TITLES = 12, 20  # shown on the terminal
LEGEND = (
    f"{POOLED}: users of all territories; {MACRO}: mean over territories with a value;\n±: half of the 95% interval"
)
BIAS_LEGEND = (
    f"lists of {LIST_LENGTH}; arp: mean popularity of a listed title, lift: relative to watched\n"
    "ones; novelty: rarity in bits; aplt, aclt: titles outside\n"
    "the short head, fraction and number in a list; pop rsp, pop reo: 0 = head and\n"
    "tail are shown, or found, at equal rates; local fraction: titles of one\n"
    "territory (history: in training), local js: distance of the two; gini: 0 = all\n"
    "titles alike, without interval"
)


def rich_tables(report: EvaluationReport, with_candidates: bool) -> list[RenderableType]:
    """Gains over each baseline, popularity bias, and gains by title.

    NDCG@10 too where the lake fixes candidates; bias and titles for the first cohort.
    """
    shown: list[RenderableType] = []
    for cohort in report.cohorts:
        shown += [gain_rich_table(report, cohort, over) for over in report.baselines]
        if len(report.references) > 1:
            shown.append(reference_rich_table(report, cohort))
        if with_candidates:
            shown.append(metric_rich_table(report, "ndcg@10", cohort))
    shown.append(bias_rich_table(report))
    if report.titles and len(report.variants) > 1:
        shown += [title_rich_table(report, over=over) for over in report.baselines]
    return shown


def average_gain_table(report: EvaluationReport) -> Table:
    """`gain_rich_table` of the first baseline, averages alone."""
    over = report.baselines[0]
    others = [variant for variant in report.columns if variant != over]
    table = numbers_table(f"PR-AUC, and gain in % over {over}", ("territory",), (over, *others))
    names = _shown_rows(report, None, table)
    first = report.intervals("pr_auc", over)
    gains = [report.intervals("pr_auc", variant, over=over) for variant in others]
    for name in names:
        table.add_row(name, _metric_cell(first[name]), *[_gain_cell(gain[name], average=True) for gain in gains])
    return table


def gain_rich_table(report: EvaluationReport, cohort: str | None = None, over: str | None = None) -> Table:
    """Paper A's table 2, transposed: PR-AUC of a baseline and gains over it in percent.

    Positive averages with an interval are bold, gains without one or whose interval includes 0 dim; averages show the
    interval's half-width.
    """
    over = over or report.baselines[0]
    others = [variant for variant in report.columns if variant != over]
    title = f"PR-AUC, and gain in % over {over}{_cohort_title(report, cohort)}"
    table = numbers_table(title, ("territory", "day"), ("positives", over, *others))
    names = _shown_rows(report, cohort, table)
    table.caption = "\n".join([str(table.caption), *report.notes])
    days = report.days(cohort)
    for day in [*(days if len(days) > 1 else []), None]:
        first = report.intervals("pr_auc", over, cohort, day)
        gains = [report.intervals("pr_auc", variant, cohort, day, over) for variant in others]
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
    table = numbers_table(title, ("territory",), tuple(report.columns))
    found = [report.intervals(metric, variant, cohort) for variant in report.columns]
    for name in _shown_rows(report, cohort, table):
        table.add_row(name, *[_metric_cell(row[name]) for row in found])
    return table


def reference_rich_table(report: EvaluationReport, cohort: str | None = None) -> Table:
    """Each variant's metrics as mean over territories and days; the best are bold."""
    metrics = ("pr_auc", "ndcg@10")
    found = {v: [report.intervals(metric, v, cohort)[MACRO] for metric in metrics] for v in report.variants}
    best = [max((row[i].value for row in found.values() if not isnan(row[i].value)), default=0.0) for i in (0, 1)]
    title = f"Runs and references, {MACRO} over territories{_cohort_title(report, cohort)}"
    notes = (
        "popularity-30d: of the last 30 days; item-knn, ease and ials have chosen\nsettings, which metrics.json names"
    )
    table = numbers_table(title, ("variant",), metrics, notes)
    for variant, row in found.items():
        if variant == report.references[0]:
            table.add_section()
        styles = ["bold" if one.value == top else "" for one, top in zip(row, best, strict=True)]
        table.add_row(variant, *[_metric_cell(one, style=style) for one, style in zip(row, styles, strict=True)])
    return table


def bias_rich_table(report: EvaluationReport, cohort: str | None = None) -> Table:
    """Popularity bias of the first baseline's lists, and the others' differences from it."""
    over = report.baselines[0]
    others = [variant for variant in report.columns if variant != over]
    title = f"Popularity bias, and difference from {over}{_cohort_title(report, cohort)}"
    table = numbers_table(title, ("metric", "territory"), (over, *others), BIAS_LEGEND)
    for metric in BIAS_METRICS:
        first = report.intervals(metric, over, cohort)
        compared = [] if metric == "local_fraction_history" else others  # the same for all
        found = [report.intervals(metric, variant, cohort, over=over) for variant in compared]
        for name in (POOLED, MACRO):
            form = ".1f" if abs(first[name].value) >= 100 else ".4f"
            styles = ["dim" if not isnan(one[name].low) and not one[name].significant else "" for one in found]
            cells = [_metric_cell(one[name], f"+{form}", style=style) for one, style in zip(found, styles, strict=True)]
            table.add_row(metric.replace("_", " "), name, _metric_cell(first[name], form), *cells)
    return table


def title_rich_table(report: EvaluationReport, cohort: str | None = None, over: str | None = None) -> Table:
    """Paper A's table 3: gains of comparable local and global titles of one territory."""
    over = over or report.baselines[0]
    others = [variant for variant in report.columns if variant != over]
    place = f", users of {report.title_territory}" if report.title_territory else ""
    title = f"PR-AUC gain in % over {over} by title{place}{_cohort_title(report, cohort)}"
    table = numbers_table(title, ("title", "scope"), ("positives", *others))
    positives, local = report.counts("title_positives", cohort), report.title_is_local
    shown = sorted(range(len(positives)), key=lambda i: -positives[i])[:MAX_TITLES]
    gains = [report.intervals("title_pr_auc", variant, cohort, over=over) for variant in others]
    for slot in sorted(shown, key=lambda i: (not local[i], -positives[i])):
        name, scope = report.titles[slot], "local" if local[slot] else "global"
        table.add_row(name, scope, str(positives[slot]), *[_gain_cell(g[name], average=False) for g in gains])
    table.add_section()
    for name, scope in ((LOCAL, "local"), (GLOBAL, "global")):
        table.add_row("mean", scope, "", *[_gain_cell(g[name], average=True) for g in gains])
    notes = ["for each local title, the global one whose positives in the territory are nearest"]
    if len(shown) < len(positives):
        notes.append(f"{len(positives) - len(shown)} more titles in title_metrics.csv")
    table.caption = "\n".join(notes)
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
    num_users = report.num_users("pr_auc", cohort)
    few = [name for name in report.territories if 0 < num_users[name] < MIN_USERS]
    of_days = {name: ", ".join(map(str, days)) for name, days in report.empty_days(cohort).items()}
    notes = [LEGEND]
    notes += [f"{NO_POSITIVES}: {_listed(empty)}"] if empty else []
    notes += [f"{NO_INTERVAL}, but part of {MACRO}: {_listed(few)}"] if few else []
    notes += [
        f"{NO_POSITIVES} on day {days}: {_listed([n for n in of_days if of_days[n] == days])}"
        for days in dict.fromkeys(of_days.values())
    ]
    if len(shown) < len(positives) - len(empty):
        notes.append(f"{len(shown)} largest of {len(positives)} territories; territory_metrics.csv has the rest")
    table.caption = "\n".join(notes)
    return [*(report.territories[i] for i in shown), POOLED, MACRO]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - MAX_TERRITORIES} more" if len(names) > MAX_TERRITORIES else ""
    return ", ".join(names[:MAX_TERRITORIES]) + rest


def _cohort_title(report: EvaluationReport, cohort: str | None) -> str:
    return f", {cohort or report.cohorts[0]} users" if len(report.cohorts) > 1 else ""


def _gain_cell(gain: Interval, *, average: bool) -> Text:
    bold, dim = average and gain.value > 0 and not isnan(gain.low), not gain.significant
    return _metric_cell(gain, "+.1f", average, style=" ".join(["bold"] * bold + ["dim"] * dim))


def _metric_cell(found: Interval, form: str = ".4f", average: bool = True, style: str = "") -> Text:
    if isnan(found.value):
        return Text("-", style="dim")
    half = (found.high - found.low) / 2
    bounds = f" ±{half:{form.lstrip('+')}}" if average and not isnan(half) else ""
    return Text(f"{found.value:{form}}{bounds}", style=style)

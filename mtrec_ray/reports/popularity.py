"""Popularity bias of top-10 lists: what paper A illustrates, with formulas and intervals."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# the stubs of pandas know no columns of rows, and few results of selections

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import Chart, Section, canvas
from mtrec_ray.reports.inputs import Folder, Inputs
from mtrec_ray.reports.marks import interval_rows, name_rows
from mtrec_ray.reports.territories import AVERAGE, POOLED, cohort_of, models_of

METRICS = {  # name -> (heading, what is better, formula and source)
    "arp": (
        "Average popularity (ARP)",
        "lower: less popular titles",
        "mean number of training interactions of a listed title (Yin et al. 2012)",
    ),
    "popularity_lift": (
        "Popularity lift",
        "0: as popular as what users watch",
        "ARP / mean popularity of a training interaction - 1 (Abdollahpouri et al. 2020)",
    ),
    "novelty": (
        "Novelty, bits",
        "higher: rarer titles",
        "mean of -log2(share of the training interactions) of a listed title (Zhou et al. 2010)",
    ),
    "aplt": (
        "Long-tail share (APLT)",
        "higher: more of the long tail",
        "fraction of listed titles outside the short head, the fewest titles with 80% of the interactions "
        "(Abdollahpouri, Burke & Mobasher 2019)",
    ),
    "aclt": (
        "Long-tail titles a list (ACLT)",
        "higher: more of the long tail",
        "mean number of such titles in a list (same source)",
    ),
    "pop_rsp": (
        "Unequal exposure (PopRSP)",
        "0: head and tail alike",
        "std / mean of the rates at which head and tail titles are listed (Zhu, Wang & Caverlee 2020)",
    ),
    "pop_reo": (
        "Unequal recall (PopREO)",
        "0: head and tail alike",
        "std / mean of the rates at which positives of head and tail are found (same source)",
    ),
    "gini": (
        "Gini of exposure",
        "0: all titles alike",
        "Gini coefficient of how often each title is listed; without interval",
    ),
    "local_js": (
        "Local share against history",
        "0: as local as the history",
        "Jensen-Shannon divergence, in bits, of the share of local titles in lists and in training (Lin 1991)",
    ),
}
LOWER_IS_LESS_BIASED = ("arp", "popularity_lift", "pop_rsp", "pop_reo", "gini", "local_js")


def popularity_section(inputs: Inputs) -> Section:
    """The panel of the first evaluation, and the share of local titles."""
    section = Section("popularity", "Popularity bias")
    evaluations = inputs.of("evaluation")
    if not evaluations:
        section.notes.append("No evaluation was given, and popularity bias is part of one.")
        return section
    bias = evaluations[0].table("popularity_bias")
    if bias is None:
        section.notes.append(f"{evaluations[0].uri} has no popularity_bias.csv: no user had a list.")
        return section
    rows = bias_rows(evaluations[0], bias)
    section.charts += [bias_chart(evaluations[0], rows), local_chart(rows)]
    return section


def bias_rows(evaluation: Folder, bias: pd.DataFrame) -> pd.DataFrame:
    """Means over days of all users' lists: variant, metric, over, value, low, high."""
    variants = models_of(evaluation) + (["popularity"] if "popularity" in set(bias["variant"]) else [])
    chosen = bias[(bias["cohort"] == cohort_of(evaluation)) & (bias["day"] == AVERAGE)]
    chosen = chosen[(chosen["territory"] == POOLED) & chosen["variant"].isin(variants)]
    return chosen.reindex(columns=["variant", "metric", "over", "value", "low", "high"]).reset_index(drop=True)


def values_of(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One metric by variant, in the order of the report."""
    return rows[(rows["metric"] == metric) & rows["over"].isna()].set_index("variant")[["value", "low", "high"]]


def bias_sentence(rows: pd.DataFrame, baseline: str) -> str:
    """Of each other model, in which metrics its lists are less biased, beyond the interval."""
    parts = []
    for variant in dict.fromkeys(rows["variant"]):
        if variant in (baseline, "popularity"):
            continue
        better, worse = [], []
        for metric, (heading, *_) in METRICS.items():
            found = rows[
                (rows["variant"] == variant) & (rows["metric"] == f"{metric}_difference") & (rows["over"] == baseline)
            ]
            for row in found.itertuples():
                sign = -1 if metric in LOWER_IS_LESS_BIASED else 1
                if row.low > 0 or row.high < 0:
                    (better if sign * row.value > 0 else worse).append(heading.split(",")[0])
        words = [f"less biased than {baseline} by {', '.join(better)}"] if better else []
        words += [f"more biased by {', '.join(worse)}"] if worse else []
        verdict = f"{' and '.join(words)}, beyond the 95% interval" if words else "as biased within the 95% interval"
        parts.append(f"Lists of {variant} are {verdict}.")
    return " ".join(parts) or "One model alone was evaluated."


def bias_chart(evaluation: Folder, rows: pd.DataFrame) -> Chart:
    """A panel a metric, a row a variant."""
    variants = list(dict.fromkeys(rows["variant"]))
    shown = [metric for metric in METRICS if len(values_of(rows, metric))]

    def draw() -> Figure:
        lines = -(-len(shown) // 3)
        figure, axes = canvas(lines * (0.75 + 0.22 * len(variants)), 3, lines, sharey=True)
        for axis, metric in zip(axes, shown, strict=False):
            found = values_of(rows, metric).reindex(variants)
            for index, variant in enumerate(variants):
                row = found.loc[[variant]]
                columns = (row[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
                interval_rows(axis, *columns, series=index, shift=index)
            name_rows(axis, variants)
            axis.set_title(METRICS[metric][0], fontsize=8.5)
            axis.set_xlabel(METRICS[metric][1], fontsize=7.5)
            axis.margins(x=0.12)
            axis.locator_params(axis="x", nbins=4)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        return figure

    formulas = pd.DataFrame(
        [
            {"metric": METRICS[metric][0], "formula and source": METRICS[metric][2]}
            | {variant: _text(found.loc[variant]) if variant in found.index else "" for variant in variants}
            for metric in shown
            for found in (values_of(rows, metric),)
        ]
    )
    return Chart(
        "popularity_bias",
        "Popularity bias of top-10 lists",
        bias_sentence(rows, evaluation.document["baseline"]),
        rows,
        draw,
        formulas,
        "Means over days of the lists of all territories' test users, with 95% intervals by bootstrap over users.",
    )


def local_chart(rows: pd.DataFrame) -> Chart:
    """The share of local titles in lists, beside that in the history."""
    variants, share = list(dict.fromkeys(rows["variant"])), values_of(rows, "local_fraction")
    history = values_of(rows, "local_fraction_history")["value"].dropna()
    known = float(history.iloc[0]) if len(history) else float("nan")
    words = [f"{share.loc[variant, 'value']:.1%} by {variant}" for variant in variants if variant in share.index]
    before = f"{known:.1%} of what was watched in training was local; " if np.isfinite(known) else ""

    def draw() -> Figure:
        figure, axes = canvas(0.6 + 0.26 * len(variants))
        found = share.reindex(variants)
        for index, variant in enumerate(variants):
            row = found.loc[[variant]]
            interval_rows(axes[0], *(100 * row[name].to_numpy(dtype=float) for name in row), series=index, shift=index)
        name_rows(axes[0], variants)
        if np.isfinite(known):
            axes[0].axvline(100 * known, linestyle="--", color="#6a6a75", linewidth=1, label="in the history")
            axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        axes[0].set_xlabel("local titles among those listed, %")
        return figure

    return Chart(
        "local_share",
        "Local titles in the lists",
        f"{before}lists have {', '.join(words)}.".capitalize()
        if not before
        else f"{before}lists have {', '.join(words)}.",
        rows[rows["metric"].isin(["local_fraction", "local_fraction_history"])],
        draw,
        how="Local: offered or watched in one territory only. The nearer to the dashed line, the better do lists keep "
        "the proportion that users chose themselves.",
    )


def _text(row: pd.Series) -> str:
    form = ".1f" if abs(row["value"]) >= 100 else ".3f"
    bounds = f" ({row['low']:{form}} to {row['high']:{form}})" if np.isfinite(row["low"]) else ""
    return f"{row['value']:{form}}{bounds}"

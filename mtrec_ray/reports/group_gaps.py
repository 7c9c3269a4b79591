"""How evenly each combination serves the values of an attribute."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# the stubs of pandas know no columns of rows, and few results of selections

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import Chart, canvas
from mtrec_ray.reports.marks import interval_rows, name_rows, zero_line

NONE = "none"
COLUMNS = ["combination", "attribute", "ratio", "ratio_low", "ratio_high", "value", "null_high", "worst", "best"]
STATES = ("larger than by chance", "could be chance")


def label(name: str) -> str:
    """A combination as people read it."""
    return "nothing: the backbone" if name == NONE else name


def gap_rows(document: Mapping[str, Any]) -> pd.DataFrame:
    """Ratio of each attribute's worst NDCG@10 to the best: `COLUMNS`, and `beyond` chance."""
    rows = pd.DataFrame(
        [
            {"combination": name, "attribute": attribute} | found["full_ndcg@10"]
            for name, of in document["combinations"].items()
            for attribute, found in of["ndcg_gaps"].items()
            if found.get("full_ndcg@10")
        ]
    ).reindex(columns=COLUMNS)
    numbers = COLUMNS[2:7]
    rows[numbers] = rows[numbers].astype(float)
    return rows.assign(beyond=rows["value"] > rows["null_high"])


def gap_chart(document: Mapping[str, Any]) -> Chart:
    """NDCG@10 of the worst value of each attribute relative to the best."""
    rows = gap_rows(document)
    if rows.empty:
        return Chart("group_gaps", "Groups", "No value of an attribute has enough users to compare.", rows)
    backbone = rows[rows["combination"] == NONE]
    words = [f"{row.ratio:.2f} for {row.attribute}" for row in backbone.itertuples()]
    return Chart(
        "group_gaps",
        "Whom lists serve worst",
        f"Of the backbone, the worst value of an attribute has this fraction of the best one's NDCG@10: "
        f"{', '.join(words)}. {int(rows['beyond'].sum())} of {len(rows)} gaps are larger than chance makes them.",
        rows,
        lambda: draw_gaps(rows),
        how="NDCG@10 over all titles of the worst value / of the best, 95% intervals by bootstrap over users; 1: all "
        "alike. Filled: larger than the null's 95% interval of permuted values.",
    )


def draw_gaps(rows: pd.DataFrame) -> Figure:
    """A panel an attribute, a row a combination; filled where larger than by chance."""
    order, attributes = list(dict.fromkeys(rows["combination"])), list(dict.fromkeys(rows["attribute"]))
    many = len(order) > 40
    figure, axes = canvas(1.0 + (0.15 if many else 0.24) * len(order), len(attributes), sharey=True, sharex=True)
    for axis, attribute in zip(axes, attributes, strict=True):
        found = rows[rows["attribute"] == attribute].set_index("combination").reindex(order)
        for series, state in enumerate(STATES):
            kept = found[["ratio", "ratio_low", "ratio_high"]].where(found["beyond"].eq(series == 0))
            columns = (kept[name].to_numpy(dtype=float) for name in kept)
            interval_rows(axis, *columns, series=1 - series, label=state, hollow=series == 1)
        name_rows(axis, [label(name) for name in order])
        axis.set_title(attribute, fontsize=9 if len(attributes) <= 4 else 6.5)
        axis.locator_params(axis="x", nbins=4 if len(attributes) <= 4 else 2)
        axis.tick_params(labelsize=6.5 if many else 8.5)
        axis.margins(x=0.1)
        zero_line(axis, 1.0)
    figure.supxlabel("NDCG@10 of the worst value / of the best", fontsize=8.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, fontsize=7.5)
    return figure

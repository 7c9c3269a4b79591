"""What attackers read from one vector, many vectors of a person, and top-10 lists."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# the stubs of pandas know no columns of rows, and few results of selections

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import Chart, canvas
from mtrec_ray.reports.group_gaps import NONE
from mtrec_ray.reports.marks import interval_rows, name_rows, zero_line

KINDS = {
    "vectors": "user vectors",
    "vectors_of_histories": "many vectors a person",
    "lists_watched_kept": "top-10 lists, watched kept",
    "lists_watched_left_out": "top-10 lists, watched left out",
}


def kind_chart(leakage: pd.DataFrame) -> Chart:
    """The same attributes, read from other things than one vector."""
    rows = leakage[leakage["to_hide"] | leakage["combination"].isin([NONE, "popularity"])]
    means = rows.assign(
        state=np.where(
            rows["to_hide"], "to be hidden", np.where(rows["combination"] == NONE, "backbone", "popular titles alone")
        )
    )
    table = means.groupby(["inputs", "attribute", "state"], sort=False)[["value", "null_high"]].mean().reset_index()
    kinds = [kind for kind in KINDS if kind in set(table["inputs"])]
    attributes = list(dict.fromkeys(table["attribute"]))
    parts = []
    for kind in kinds:
        found = table[(table["inputs"] == kind) & (table["state"] == "to be hidden")]
        words = [f"{row.attribute} {row.value:.2f}" for row in found.itertuples()]
        if words:
            parts.append(f"{KINDS[kind]}: {', '.join(words)}")

    def draw() -> Figure:
        figure, axes = canvas(0.9 + 0.32 * len(kinds), len(attributes), sharey=True, sharex=True)
        for axis, attribute in zip(axes, attributes, strict=True):
            for series, state in enumerate(("backbone", "to be hidden", "popular titles alone")):
                of = table[(table["attribute"] == attribute) & (table["state"] == state)].set_index("inputs")
                found = of.reindex(kinds)["value"].to_numpy()
                nan = np.full(len(found), np.nan)
                interval_rows(axis, found, nan, nan, series=series, label=state)
            name_rows(axis, [KINDS[kind] for kind in kinds])
            axis.set_title(attribute, fontsize=9 if len(attributes) <= 4 else 6.5)
            axis.locator_params(axis="x", nbins=3 if len(attributes) <= 4 else 1)
            axis.margins(x=0.1)
            zero_line(axis, 0.5)
        figure.supxlabel("AUC; 0.5: nothing can be read", fontsize=8.5)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=7.5)
        return figure

    return Chart(
        "leakage_by_input",
        "Read from vectors, histories and lists",
        f"Mean AUC of what is to be hidden, from {'; from '.join(parts)}.",
        table,
        draw,
        how="Means over the combinations that hide the attribute. Lists without watched titles tell by what they leave "
        "out: popular titles alone, the same order for everybody, show how much.",
    )

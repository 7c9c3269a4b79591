"""What an audit found: leakage by combination and attribute, its cost, groups, lists."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false
# the stubs of pandas know no columns of rows, and few results of selections

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtrec_ray.reports.chart import INK, SERIES, Chart, Section, canvas
from mtrec_ray.reports.inputs import Inputs
from mtrec_ray.reports.marks import interval_rows, name_rows, percent_axis, zero_line

NONE = "none"
KINDS = {
    "vectors": "user vectors",
    "vectors_of_histories": "vectors, attacker with many of each person",
    "lists_watched_kept": "top-10 lists, watched titles kept",
    "lists_watched_left_out": "top-10 lists without watched titles",
}
FULL_SHADE = 0.2  # AUC above chance at which a cell is darkest
Document = Mapping[str, Any]


def fairness_section(inputs: Inputs) -> Section:
    """All charts of the first audit."""
    audits, section = inputs.of("audit"), Section("fairness", "Fairness")
    if not audits:
        section.notes.append("No audit was given: `mtrec audit RUN --out FOLDER` makes one; add `--audit FOLDER`.")
        return section
    document = audits[0].document
    leakage = leakage_rows(document)
    section.charts += [leakage_chart(document, leakage), cost_chart(document), gap_chart(document)]
    if leakage["inputs"].nunique() > 1:
        section.charts.append(kind_chart(leakage))
    section.charts.append(method_chart(document))
    tested = document["not_tested"]
    section.notes += [f"{name} was not attacked: {reason}." for name, reason in tested["attributes"].items()]
    section.notes.append(f"Not tested: {'; '.join(tested['attacks'])}.")
    return section


def label(name: str) -> str:
    """A combination as people read it."""
    return "nothing: the backbone" if name == NONE else name


def leakage_rows(document: Document) -> pd.DataFrame:
    """AUC of each combination, kind of input and attribute.

    Columns: combination, inputs, attribute, to_hide, value, low, high, null_high, written, outside.
    """
    rows = []
    for name, of in (document["combinations"] | document["references"]).items():
        for kind, found in of["leakage"].items():
            for attribute, result in found.items():
                auc = result["auc"]
                row = {"combination": name, "inputs": kind, "attribute": attribute}
                row |= {"to_hide": attribute in of["hides"], "value": auc["value"], "low": auc["low"]}
                row |= {"high": auc["high"], "null_high": auc["null_high"]}
                written = of.get("written", {}).get(attribute, {}).get("writes_value", False)
                rows.append(row | {"written": bool(written) and kind == "vectors_of_histories"})
    table = pd.DataFrame(rows)
    numbers = ["value", "low", "high", "null_high"]
    table[numbers] = table[numbers].astype(float)
    table = table.dropna(subset=["value", "null_high"])  # too few users to attack
    return table.assign(outside=table["value"] > table["null_high"])


def leakage_chart(document: Document, leakage: pd.DataFrame) -> Chart:
    """Combination by attribute: how far above chance, and whether outside the null."""
    rows = leakage[(leakage["inputs"] == "vectors") & leakage["combination"].isin(document["combinations"])]
    hidden = rows[rows["to_hide"]]
    inside = int((~hidden["outside"]).sum())
    left = hidden[hidden["outside"]]
    worst = left.sort_values("value", ascending=False, kind="stable").head(1)
    more = [
        f"Most is read of {row.attribute} when {row.combination} is ignored ({row.value:.3f})."
        for row in worst.itertuples()
    ]
    written = leakage[leakage["written"] & leakage["to_hide"]]["combination"].nunique()
    warn = [
        f"In {written} combinations an attacker with many vectors of each person reads a value that the model writes."
    ]
    sentence = (
        f"{inside} of {len(hidden)} hidden figures lie inside their null: attackers read no more there than from "
        "labels drawn at random."
    )
    table = rows.assign(cell=[_cell(row) for row in rows.itertuples()]).pivot(
        index="combination", columns="attribute", values="cell"
    )
    order, attributes = list(dict.fromkeys(rows["combination"])), list(dict.fromkeys(rows["attribute"]))
    table = table.reindex(index=order, columns=attributes).reset_index()
    table["combination"] = table["combination"].map(label)
    return Chart(
        "leakage",
        "What attackers read from user vectors",
        " ".join([sentence, *more, *(warn if written else [])]),
        leakage,
        lambda: draw_leakage(rows, order, attributes),
        table.rename(columns={"combination": "ignoring"}),
        f"Largest macro AUC of the attackers on {document['num_audit_users']:,} users that no eliminator saw; 0.5 is "
        "chance. A frame marks what is to be hidden, a triangle what lies outside the null's 95% interval; shades show "
        "the distance from chance. What was not asked for should stay readable.",
    )


def draw_leakage(rows: pd.DataFrame, order: list[str], attributes: list[str]) -> Figure:
    """Rows of combinations; many of them get smaller."""
    height = 0.25 if len(order) <= 40 else 0.16
    size = 8.5 if len(order) <= 40 else 6.5
    figure, axes = canvas(0.6 + height * len(order))
    axis, cells = axes[0], {(row.combination, row.attribute): row for row in rows.itertuples()}
    for y, combination in enumerate(order):
        for x, attribute in enumerate(attributes):
            row = cells.get((combination, attribute))
            if row is None:
                continue
            shade = float(np.clip((row.value - 0.5) / FULL_SHADE, 0, 1)) * 0.75
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[1], alpha=shade, linewidth=0))
            if row.to_hide:
                axis.add_patch(Rectangle((x - 0.47, y - 0.42), 0.94, 0.84, fill=False, edgecolor=INK, linewidth=1.1))
            text = f"{row.value:.3f}{' ▲' if row.outside else ''}"
            weight = "bold" if row.to_hide else "normal"
            axis.text(x, y, text, ha="center", va="center", fontsize=size, color=INK, fontweight=weight)
    axis.set_xlim(-0.5, len(attributes) - 0.5)
    axis.set_xticks(range(len(attributes)), attributes)
    axis.xaxis.tick_top()
    axis.tick_params(axis="both", length=0, labelsize=size)
    name_rows(axis, [label(name) for name in order])
    axis.set_ylim(len(order) - 0.5, -0.5)
    axis.grid(visible=False)
    axis.set_ylabel("ignoring")
    return figure


def cost_chart(document: Document) -> Chart:
    """What each combination costs in NDCG@10."""
    rows = pd.DataFrame(
        {"combination": name, "candidates": candidates} | of["accuracy"][key]
        for name, of in document["combinations"].items()
        if name != NONE
        for candidates, key in (("all titles", "full_ndcg_change"), ("99 negatives", "ndcg_change"))
    )
    rows[["value", "low", "high"]] = rows[["value", "low", "high"]].astype(float)
    order = list(dict.fromkeys(rows["combination"]))
    full = rows[rows["candidates"] == "all titles"].set_index("combination")
    dearest, cheapest = full["value"].idxmin(), full["value"].idxmax()
    noise = int(((full["low"] <= 0) & (full["high"] >= 0)).sum())
    sentence = (
        f"Ignoring {cheapest} changes NDCG@10 over all titles by {full.loc[cheapest, 'value']:+.1f}%, ignoring "
        f"{dearest} by {full.loc[dearest, 'value']:+.1f}%; {noise} of {len(full)} changes cannot be told from none."
    )

    def draw() -> Figure:
        height = 0.24 if len(order) <= 40 else 0.15
        figure, axes = canvas(0.8 + height * len(order))
        for series, candidates in enumerate(("all titles", "99 negatives")):
            of = rows[rows["candidates"] == candidates].set_index("combination").loc[order]
            columns = (of[name].to_numpy() for name in ("value", "low", "high"))
            interval_rows(axes[0], *columns, series, 0.16 * (2 * series - 1), candidates, hollow=series == 1)
        name_rows(axes[0], order)
        axes[0].tick_params(axis="y", labelsize=8.5 if len(order) <= 40 else 6.5)
        zero_line(axes[0])
        percent_axis(axes[0])
        axes[0].set_xlabel("change of NDCG@10")
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    return Chart(
        "cost",
        "What each combination costs",
        sentence,
        rows,
        draw,
        how=f"Change of NDCG@10 of {document['num_users']:,} users' next title, paired with the backbone; 95% "
        "intervals by bootstrap over users. 99 sampled negatives understate costs.",
    )


def gap_chart(document: Document) -> Chart:
    """NDCG@10 of the worst value of each attribute relative to the best."""
    rows = pd.DataFrame(
        {"combination": name, "attribute": attribute} | found["full_ndcg@10"]
        for name, of in document["combinations"].items()
        for attribute, found in of["ndcg_gaps"].items()
        if found.get("full_ndcg@10")
    )
    if rows.empty:
        return Chart("group_gaps", "Groups", "No value of an attribute has enough users to compare.", rows)
    rows["ratio"] = rows["ratio"].astype(float)
    order, attributes = list(dict.fromkeys(rows["combination"])), list(dict.fromkeys(rows["attribute"]))
    backbone = rows[rows["combination"] == NONE].set_index("attribute")["ratio"]
    words = [f"{backbone[name]:.2f} for {name}" for name in attributes if name in backbone.index]
    beyond = int((rows["value"].astype(float) > rows["null_high"].astype(float)).sum())

    def draw() -> Figure:
        height = 0.24 if len(order) <= 40 else 0.15
        figure, axes = canvas(0.8 + height * len(order))
        for series, attribute in enumerate(attributes):
            found = rows[rows["attribute"] == attribute].set_index("combination").reindex(order)["ratio"].to_numpy()
            nan = np.full(len(found), np.nan)
            interval_rows(axes[0], found, nan, nan, series=series, label=attribute)
        name_rows(axes[0], [label(name) for name in order])
        zero_line(axes[0], 1.0)
        axes[0].set_xlabel("NDCG@10 of the worst value / of the best")
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    return Chart(
        "group_gaps",
        "Whom lists serve worst",
        f"Of the backbone, the worst value of an attribute has this fraction of the best one's NDCG@10: "
        f"{', '.join(words)}. {beyond} of {len(rows)} gaps are larger than chance makes them.",
        rows,
        draw,
        how="NDCG@10 over all titles by value of the attribute; 1: all alike. The null permutes values.",
    )


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
        figure, axes = canvas(0.7 + 0.32 * len(kinds), len(attributes), sharey=True)
        for axis, attribute in zip(axes, attributes, strict=True):
            for series, state in enumerate(("backbone", "to be hidden", "popular titles alone")):
                of = table[(table["attribute"] == attribute) & (table["state"] == state)].set_index("inputs")
                found = of.reindex(kinds)["value"].to_numpy()
                nan = np.full(len(found), np.nan)
                interval_rows(axis, found, nan, nan, series=series, label=state)
            name_rows(axis, [KINDS[kind] for kind in kinds])
            axis.set_title(attribute)
            axis.set_xlabel("AUC")
            zero_line(axis, 0.5)
        axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5)
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


def method_chart(document: Document) -> Chart:
    """How the audit was done."""
    settings, data = document["settings"], document["data"]
    facts = {
        "run": document["run"],
        "hash of the weights": document["weights_hash"][:16],
        "hash of the data": data["lake_hash"][:16],
        "events": f"{data['events']['first'][:10]} to {data['events']['last'][:10]}",
        "users": f"{document['num_users']:,}, of which attacked {document['num_audit_users']:,}",
        "folds, repeated": f"{settings['num_folds']}, {settings['num_repeats']} x",
        "trainings on permuted labels": settings["num_permutations"],
        "bootstrap replicates": settings["num_bootstrap"],
    }
    for name, of in document["attributes"].items():
        counts = [f"{cell['value']} {cell['num_users']:,}" for cell in [*of["values"], of["unknown"]]]
        facts[f"users by {name}"] = ", ".join(counts)
    rows = pd.DataFrame({"": list(facts), " ": [str(value) for value in facts.values()]})
    return Chart(
        "audit_method",
        "How the audit was done",
        f"Attackers were trained and tested on {document['num_audit_users']:,} users in {settings['num_folds']} folds, "
        f"and {settings['num_permutations']} times on permuted labels for the null.",
        rows.set_axis(["fact", "value"], axis=1),
        table=rows,
    )


def _cell(row: Any) -> str:
    mark = "*" * bool(row.to_hide) + "!" * bool(row.outside)
    return f"{mark}{row.value:.3f} ({row.low:.3f} to {row.high:.3f}; null to {row.null_high:.3f})"

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
from mtrec_ray.reports.group_gaps import NONE, gap_chart, label
from mtrec_ray.reports.inputs import Inputs
from mtrec_ray.reports.leakage_by_input import kind_chart
from mtrec_ray.reports.marks import interval_rows, name_rows, percent_axis, zero_line

INSIDE, OUTSIDE, UNKNOWN = "inside the null", "outside the null", "too few users to tell"
MARKS = {INSIDE: "", OUTSIDE: " ▲", UNKNOWN: " ?"}
FULL_SHADE = 0.2  # AUC above chance at which a cell is darkest
LEAKAGE_COLUMNS = ["combination", "inputs", "attribute", "to_hide", "value", "low", "high", "null_high"]
LEAKAGE_COLUMNS += ["verdict", "written"]
LEAKAGE_GOAL = "leakage/mean"  # of a search of eliminators
Document = Mapping[str, Any]


def fairness_section(inputs: Inputs) -> Section:
    """All charts of the first audit."""
    audits, section = inputs.of("audit"), Section("fairness", "Fairness")
    section.notes += inputs.unread.get("audit", [])
    if not audits:
        section.notes.append("No audit was given: `mtrec audit RUN --out FOLDER` makes one; add `--audit FOLDER`.")
        return section
    document = audits[0].document
    leakage = leakage_rows(document)
    if leakage.empty:
        section.notes.append(f"No attribute was attacked in audit {audits[0].name}, so nothing is known of leakage.")
    else:
        section.charts.append(leakage_chart(document, leakage))
    section.charts += [cost_chart(document), gap_chart(document)]
    if leakage["inputs"].nunique() > 1:
        section.charts.append(kind_chart(leakage))
    section.charts.append(method_chart(document))
    tested = document["not_tested"]
    front = [search.name for search in inputs.of("search") if LEAKAGE_GOAL in (search.document.get("goals") or {})]
    section.notes += [f"What hiding more costs: the front of search {name}, under Searches." for name in front]
    section.notes += [f"{name} was not attacked: {reason}." for name, reason in tested["attributes"].items()]
    section.notes.append(f"Not tested: {'; '.join(tested['attacks'])}.")
    return section


def null_verdict(result: Document) -> str:
    """Where an attribute's AUC lies: outside the null, inside it, or too few users to tell."""
    value, null_high = result["auc"]["value"], result["auc"]["null_high"]
    if value is None or null_high is None:
        return UNKNOWN
    if value > null_high:
        return OUTSIDE
    return INSIDE if null_high < 1 and result.get("hidden", True) is not None else UNKNOWN


def written_values(document: Document) -> list[tuple[str, str]]:
    """(combination, attribute it hides) of values that the model nevertheless writes."""
    return [
        (name, attribute)
        for name, of in document["combinations"].items()
        for attribute, found in of.get("written", {}).items()
        if found["writes_value"] and attribute in of["hides"]
    ]


def leakage_rows(document: Document) -> pd.DataFrame:
    """AUC of each combination, kind of input and attribute.

    Columns: combination, inputs, attribute, to_hide, value, low, high, null_high, verdict, written.
    """
    rows, written = [], set(written_values(document))
    for name, of in (document["combinations"] | document["references"]).items():
        for kind, found in of["leakage"].items():
            for attribute, result in found.items():
                auc = result["auc"]
                row = {"combination": name, "inputs": kind, "attribute": attribute}
                row |= {"to_hide": attribute in of["hides"], "value": auc["value"], "low": auc["low"]}
                row |= {"high": auc["high"], "null_high": auc["null_high"]}
                rows.append(row | {"verdict": null_verdict(result), "written": (name, attribute) in written})
    table = pd.DataFrame(rows, columns=LEAKAGE_COLUMNS)
    numbers = ["value", "low", "high", "null_high"]
    table[numbers] = table[numbers].astype(float)
    return table.dropna(subset=["value"])  # too few users to attack


def leakage_chart(document: Document, leakage: pd.DataFrame) -> Chart:
    """Combination by attribute: how far above chance, and whether outside the null."""
    rows = leakage[(leakage["inputs"] == "vectors") & leakage["combination"].isin(document["combinations"])]
    hidden = rows[rows["to_hide"]]
    inside, unknown = (int((hidden["verdict"] == of).sum()) for of in (INSIDE, UNKNOWN))
    left = hidden[hidden["verdict"] == OUTSIDE]
    worst = left.sort_values("value", ascending=False, kind="stable").head(1)
    more = [
        f"Most is read of {row.attribute} when {row.combination} is ignored ({row.value:.3f})."
        for row in worst.itertuples()
    ]
    if unknown:
        more.append(f"Of {unknown} too few users were attacked to tell.")
    if written := int(hidden["written"].sum()):
        more.append(
            f"{written} of the {len(hidden)} (W) are read by an attacker with many vectors of each person: the model "
            "writes the value."
        )
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
        " ".join([sentence, *more]),
        leakage,
        lambda: draw_leakage(rows, order, attributes),
        table.rename(columns={"combination": "ignoring"}),
        f"Largest macro AUC of the attackers on {document['num_audit_users']:,} users that no eliminator saw; 0.5 is "
        "chance. A frame marks what is to be hidden, a triangle what lies outside the null's 95% interval; shades show "
        "the distance from chance. W: the model writes a value, and attackers with many vectors of a person read it; "
        "?: too few users to tell. What was not asked for should stay readable.",
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
            if row is None or np.isnan(row.value):
                continue
            shade = float(np.clip((row.value - 0.5) / FULL_SHADE, 0, 1)) * 0.75
            axis.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=SERIES[1], alpha=shade, linewidth=0))
            if row.to_hide:
                axis.add_patch(Rectangle((x - 0.47, y - 0.42), 0.94, 0.84, fill=False, edgecolor=INK, linewidth=1.1))
            text = f"{row.value:.3f}{MARKS[row.verdict]}{' W' if row.written else ''}"
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


def method_chart(document: Document) -> Chart:
    """How the audit was done."""
    settings, data = document["settings"], document["data"]
    facts = {
        "run": document["run"],
        "hash of the weights": document["weights_hash"][:16],
        "hash of the data": data["lake_hash"][:16],
        "events": span(data["events"]),
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


def span(window: Mapping[str, str | None]) -> str:
    """First and last day of some events."""
    first, last = window["first"], window["last"]
    return f"{first[:10]} to {last[:10]}" if first and last else "no event"


def _cell(row: Any) -> str:
    mark = "*" * bool(row.to_hide) + "!" * (row.verdict == OUTSIDE) + "?" * (row.verdict == UNKNOWN)
    return f"{mark}{row.value:.3f} ({row.low:.3f} to {row.high:.3f}; null to {row.null_high:.3f})"

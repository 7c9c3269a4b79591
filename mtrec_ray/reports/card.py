"""An audit card: one dated page for auditors, from the audit's JSON alone."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from mtrec_ray.files import write_file
from mtrec_ray.reports.fairness import KINDS, NONE, label
from mtrec_ray.reports.page import render

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One attribute's figure under one combination."""

    text: str
    interval: str = ""
    hide: bool = False  # whether the combination is to hide it
    verdict: str = ""


def write_card(uri: str, document: Document) -> None:
    """Write the page of an audit's document."""
    write_file(uri, card_page(document).encode())


def card_page(document: Document) -> str:
    """The page as HTML."""
    kinds = [kind for kind in KINDS if kind in document["combinations"][NONE]["leakage"]]
    return render(
        "card.html",
        document=document,
        attributes=list(document["attributes"]),
        leakage={KINDS[kind]: list(leakage_cells(document, kind)) for kind in kinds},
        costs=list(cost_cells(document)),
        gaps=list(gap_cells(document)),
        groups=list(group_rows(document)),
        summary=summary(document),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def summary(document: Document) -> str:
    """The verdict in one sentence."""
    hidden = [
        of["leakage"]["vectors"][attribute]["auc"]
        for of in document["combinations"].values()
        for attribute in of["hides"]
        if attribute in of["leakage"]["vectors"]
    ]
    hidden = [auc for auc in hidden if None not in (auc["value"], auc["null_high"])]
    inside = sum(auc["value"] <= auc["null_high"] for auc in hidden)
    written = [
        f"{attribute} (ignoring {name})"
        for name, of in document["combinations"].items()
        for attribute, found in of["written"].items()
        if found["writes_value"] and attribute in of["hides"]
    ]
    sentence = f"{inside} of {len(hidden)} attributes to be hidden lie inside their null, read from user vectors."
    if written:
        sentence += f" Who has many vectors of each person reads what is written into them: {', '.join(written)}."
    return sentence


def leakage_cells(document: Document, kind: str) -> Iterator[tuple[str, list[Cell]]]:
    """Combination -> a cell an attribute."""
    for name, of in chain(document["combinations"].items(), document["references"].items()):
        if kind in of["leakage"]:
            found = of["leakage"][kind]
            yield label(name), [_leakage_cell(found.get(name), name in of["hides"]) for name in document["attributes"]]


def cost_cells(document: Document) -> Iterator[tuple[str, list[Cell]]]:
    """Combination -> NDCG@10 over all titles, its change, and that against 99 negatives."""
    for name, of in document["combinations"].items():
        accuracy = of["accuracy"]
        cells = [Cell(f"{accuracy['full_ndcg@10']['value']:.4f}")]
        for key in ("full_ndcg_change", "ndcg_change"):
            change = accuracy[key]
            shown = f"{change['low']:+.1f} to {change['high']:+.1f}"
            cells.append(Cell("") if name == NONE else Cell(f"{change['value']:+.1f}%", shown))
        yield label(name), cells


def gap_cells(document: Document) -> Iterator[tuple[str, list[Cell]]]:
    """Combination -> NDCG@10 of the worst value relative to the best, an attribute each."""
    for name, of in document["combinations"].items():
        cells = []
        for attribute in document["attributes"]:
            gap = of["ndcg_gaps"].get(attribute, {}).get("full_ndcg@10")
            beyond = gap and gap["null_high"] is not None and gap["value"] > gap["null_high"]
            verdict = "larger than by chance" if beyond else ""
            cells.append(Cell(f"{gap['ratio']:.2f}", verdict=verdict) if gap else Cell("too few users"))
        yield label(name), cells


def group_rows(document: Document) -> Iterator[tuple[str, str, int, str]]:
    """Intersections of the backbone: attributes, values, users, NDCG@10 over all titles."""
    for attributes, cells in document["combinations"][NONE]["ndcg_of_groups"].items():
        for cell in cells:
            found = cell["full_ndcg@10"]
            bounds = f" ({found['low']:.3f} to {found['high']:.3f})" if found.get("low") is not None else ""
            value = "too few users" if found["value"] is None else f"{found['value']:.3f}{bounds}"
            yield attributes, " x ".join(cell["values"]), cell["num_users"], value


def _leakage_cell(result: Document | None, hide: bool) -> Cell:
    if result is None or None in (result["auc"]["value"], result["auc"]["null_high"]):
        return Cell("too few users", hide=hide)
    auc = result["auc"]
    verdict = "" if not hide else "inside the null" if auc["value"] <= auc["null_high"] else "OUTSIDE THE NULL"
    interval = f"{auc['low']:.3f} to {auc['high']:.3f}; null to {auc['null_high']:.3f}"
    return Cell(f"{auc['value']:.3f}", interval, hide, verdict)

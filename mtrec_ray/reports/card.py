"""An audit card: one dated page for auditors, from the audit's JSON alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from mtrec_ray.files import write_file
from mtrec_ray.reports.fairness import INSIDE, OUTSIDE, UNKNOWN, null_verdict, span, written_values
from mtrec_ray.reports.group_gaps import NONE, STATES, gap_rows, label
from mtrec_ray.reports.leakage_by_input import KINDS
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
        values=list(value_rows(document)),
        intersections=list(intersection_rows(document)),
        span=span,
        summary=summary(document),
        date=f"{datetime.now(UTC):%Y-%m-%d}",
    )


def summary(document: Document) -> str:
    """The verdict in one sentence."""
    hidden = [
        of["leakage"]["vectors"][attribute]
        for of in document["combinations"].values()
        for attribute in of["hides"]
        if attribute in of["leakage"].get("vectors", {})
    ]
    inside, unknown = (sum(null_verdict(result) == of for result in hidden) for of in (INSIDE, UNKNOWN))
    written = Counter(attribute for _, attribute in written_values(document))
    hiding = Counter(attribute for of in document["combinations"].values() for attribute in of["hides"])
    words = [f"{name} in {written[name]} of {hiding[name]} combinations" for name in hiding if written[name]]
    sentence = f"{inside} of {len(hidden)} attributes to be hidden lie inside their null, read from user vectors."
    if unknown:
        sentence += f" Of {unknown} too few users were attacked to tell."
    if words:
        sentence += f" Attackers with many vectors of each person read what the model writes: {', '.join(words)}."
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
    rows = gap_rows(document).set_index(["combination", "attribute"])
    for name in document["combinations"]:
        cells = []
        for attribute in document["attributes"]:
            if (name, attribute) not in rows.index:
                cells.append(Cell("too few users"))
                continue
            found = rows.loc[(name, attribute)]
            interval = f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}"
            cells.append(Cell(f"{found['ratio']:.2f}", interval, verdict=STATES[0] if found["beyond"] else ""))
        yield label(name), cells


def value_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Every value of every attribute, and the unknown.

    Attribute, value, users, attacked, NDCG@10 of the backbone, its ratio to the best value's.
    """
    for name, of in document["attributes"].items():
        groups = _groups(document).get(name, [])
        means = {cell["values"][0]: cell["full_ndcg@10"] for cell in groups}
        best = max((mean["value"] for mean in means.values()), default=0.0)
        for cell in [*of["values"], of["unknown"]]:
            counts = (f"{cell['num_users']:,}", f"{cell['num_audit_users']:,}")
            if cell["value"] not in means:
                yield name, cell["value"], *counts, "" if cell is of["unknown"] else "too few users", ""
                continue
            mean = means[cell["value"]]
            yield name, cell["value"], *counts, _bounds(mean), f"{mean['value'] / best:.2f}" if best else ""


def intersection_rows(document: Document) -> Iterator[tuple[str, ...]]:
    """Two attributes at once, by the backbone.

    Pair, groups compared, groups too small, served best, served worst.
    """
    small = document["not_tested"].get("small_groups", {})
    for name, groups in _groups(document).items():
        if name in document["attributes"]:
            continue
        if not groups:
            yield name, "0", str(len(small.get(name, []))), "too few users", "too few users"
            continue
        ends = [of(groups, key=lambda cell: cell["full_ndcg@10"]["value"]) for of in (max, min)]
        texts = [f"{' x '.join(of['values'])} ({of['num_users']:,}): {_bounds(of['full_ndcg@10'])}" for of in ends]
        yield name, str(len(groups)), str(len(small.get(name, []))), *texts


def _groups(document: Document) -> dict[str, list[Document]]:
    """Groups of the backbone that have a figure."""
    found = document["combinations"][NONE]["ndcg_of_groups"]
    return {
        name: [cell for cell in cells if cell["full_ndcg@10"]["value"] is not None] for name, cells in found.items()
    }


def _bounds(mean: Document) -> str:
    bounds = "" if mean.get("low") is None else f" ({mean['low']:.3f} to {mean['high']:.3f})"
    return f"{mean['value']:.3f}{bounds}"


def _leakage_cell(result: Document | None, hide: bool) -> Cell:
    if result is None:
        return Cell("not attacked", hide=hide)
    auc, found = result["auc"], null_verdict(result)
    if auc["value"] is None or auc["null_high"] is None:
        return Cell(UNKNOWN, hide=hide)
    says = {OUTSIDE: OUTSIDE.upper() if hide else "", INSIDE: INSIDE if hide else ""}.get(found, found)
    return Cell(
        f"{auc['value']:.3f}", f"{auc['low']:.3f} to {auc['high']:.3f}; null to {auc['null_high']:.3f}", hide, says
    )

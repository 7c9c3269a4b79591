"""Tables of an audit's document: for the terminal, and as CSV files."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mtrec_ray.combinations import NONE
from mtrec_ray.evaluation.audit_metrics import ABOUT, LEAKAGE_METRICS
from mtrec_ray.evaluation.terminal_tables import numbers_table

VECTORS, HISTORIES = "vectors", "vectors_of_histories"
LISTS_KEPT, LISTS_LEFT_OUT = "lists_watched_kept", "lists_watched_left_out"
POPULARITY = "popularity"  # the reference of lists without watched titles: the same order of titles for everybody
INPUTS = {
    VECTORS: "user vectors",
    HISTORIES: "user vectors, to an attacker with {per_user} histories of each labelled person",
    LISTS_KEPT: "top-10 lists, watched titles kept in: what the ranking says",
    LISTS_LEFT_OUT: "top-10 lists without watched titles: leaving out tells too",
}
LABELS = {NONE: "backbone", POPULARITY: "popular titles, the same for all"}
NDCG_LABELS = {"full_ndcg@10": "whole catalogue", "ndcg@10": "99 negatives"}
WRITTEN = (
    "W: written, read more easily than from the backbone's vectors (95% interval of the difference; one in forty by\n"
    "chance): the model moves vectors by the user's own value, and whoever has many vectors of few people can read it"
)
MARKS = "*: to be hidden; ! leaks more than the null allows (one in twenty does by chance); ? too few users"
Document = Mapping[str, Any]


def audit_rich_tables(document: Document) -> list[RenderableType]:
    """Leakage of each kind of input, paper B's F1, accuracy, gaps, parameters and notes."""
    kinds = [kind for kind in INPUTS if kind in document["combinations"][NONE]["leakage"]]
    tables = {kind: _leakage_table(document, kind) for kind in kinds}
    vectors = [tables.pop(kind) for kind in (VECTORS, HISTORIES) if kind in tables]
    others = _f1_table(document), _accuracy_table(document), *tables.values(), _gap_table(document)
    return [*vectors, *others, _parameter_table(document), Text("\n".join(audit_notes(document)))]


def audit_csv_tables(document: Document) -> dict[str, pd.DataFrame]:
    """Tidy tables by file name."""
    leakage, attackers, written, accuracy, gaps, groups = [], [], [], [], [], []
    for name, of in document["combinations"].items():
        key = {"combination": name}
        accuracy += (key | {"metric": metric} | found for metric, found in of["accuracy"].items())
        for attribute, found in of["written"].items():
            written.append(key | {"attribute": attribute, "to_hide": attribute in of["hides"]} | found)
        for attribute, of_metric in of["ndcg_gaps"].items():
            gaps += (key | {"attribute": attribute, "metric": m} | found for m, found in of_metric.items())
        for attributes, cells in of["ndcg_of_groups"].items():
            for cell in cells:
                of_cell = {
                    "attributes": attributes,
                    "values": " x ".join(cell["values"]),
                    "num_users": cell["num_users"],
                }
                groups += (key | of_cell | {"metric": metric} | cell[metric] for metric in NDCG_LABELS)
    for name, of in (document["combinations"] | document["references"]).items():
        for kind, attribute in ((kind, attribute) for kind, found in of["leakage"].items() for attribute in found):
            found, to_hide = of["leakage"][kind][attribute], attribute in of["hides"]
            key = {"combination": name, "inputs": kind, "attribute": attribute, "to_hide": to_hide}
            about = {field: found[field] for field in ABOUT}
            leakage += (key | {"metric": metric} | found[metric] | about for metric in LEAKAGE_METRICS)
            for attacker, of_attacker in found["attackers"].items():
                attackers += (key | {"attacker": attacker, "metric": m, "value": v} for m, v in of_attacker.items())
    users = [
        {"attribute": attribute} | cell
        for attribute, of in document["attributes"].items()
        for cell in [*of["values"], of["unknown"]]
    ]
    rows = {"leakage": leakage, "attackers": attackers, "accuracy": accuracy, "ndcg_gaps": gaps}
    rows |= {"written": written, "ndcg_of_groups": groups, "users": users}
    return {f"audit_{name}": pd.DataFrame(found) for name, found in rows.items() if found}


def audit_notes(document: Document) -> list[str]:
    """What models write, and what was attacked with too little data, or not at all."""
    notes = [
        f"Ignoring {name}, vectors write {attribute}: an attacker with {document['histories']['per_user']} histories "
        f"of each labelled person reads it with AUC {of['leakage'][HISTORIES][attribute]['auc']['value']:.3f}, "
        f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f}) above the backbone's"
        for name, of in document["combinations"].items()
        for attribute, found in of["written"].items()
        if found["writes_value"]
    ]
    notes += [f"{name}: {note}" for name, of in document["attributes"].items() for note in of["notes"]]
    not_tested = document["not_tested"]
    notes += [f"{name} was not attacked: {reason}" for name, reason in not_tested["attributes"].items()]
    return [*notes, f"Not tested: {'; '.join(not_tested['attacks'])}."]


def _leakage_table(document: Document, kind: str) -> Table:
    attributes, first = _attacked(document), document["combinations"][NONE]["leakage"][kind]
    num_attackers = len(next(iter(first.values()))["attackers"])
    largest = f"largest AUC and balanced accuracy of {num_attackers} attackers, "
    num_users = document["num_audit_users"]
    if kind == HISTORIES:
        largest, num_users = "AUC and balanced accuracy, ", max(of["num_users"] for of in first.values())
    table = numbers_table(
        f"Leakage of {INPUTS[kind].format(**document['histories'])}\n{largest}{num_users:,} users "
        "(end of the null's 95% interval)",
        ["combination", ""],
        attributes,
        f"{MARKS}\n{WRITTEN}" if kind == HISTORIES else MARKS,
    )
    for name, of in (document["combinations"] | document["references"]).items():
        found = of["leakage"].get(kind)
        for number, (metric, label) in enumerate((("auc", "AUC"), ("balanced_accuracy", "balanced"))):
            if found:
                written = of.get("written", {}) if kind == HISTORIES and metric == "auc" else {}
                cells = [
                    _leakage_cell(found.get(attribute), metric, attribute in of["hides"], written.get(attribute))
                    for attribute in attributes
                ]
                table.add_row("" if number else LABELS.get(name, name), label, *cells, end_section=number == 1)
    return table


def _leakage_cell(of: Document | None, metric: str, to_hide: bool, written: Document | None) -> Text:
    if of is None:
        return Text("too few users")
    value, null_high = of[metric]["value"], of[metric]["null_high"]
    leaks = value is not None and null_high is not None and value > null_high
    mark = "!" if leaks else "?" if of["hidden"] is None else ""
    mark += "W" if written and written["writes_value"] else ""
    text = f"{_number(value)}{mark} ({_number(null_high)})"
    return Text(f"*{text}" if to_hide else text, style="bold" if to_hide else "")


def _f1_table(document: Document) -> Table:
    attributes, combinations = _attacked(document), document["combinations"]
    table = numbers_table(
        "Paper B's micro-F1 of its own attacker on user vectors",
        ["combination"],
        attributes,
        "an F1 at the majority's rate is a constant guess, not fairness: read the AUC",
    )
    backbone = combinations[NONE]["leakage"][VECTORS]
    table.add_row("majority", *(_number(backbone[attribute]["micro_f1"]["chance"]) for attribute in attributes))
    table.add_section()
    for name, of in combinations.items():
        found = (of["leakage"][VECTORS][attribute]["micro_f1"]["value"] for attribute in attributes)
        table.add_row(LABELS.get(name, name), *map(_number, found))
    return table


def _accuracy_table(document: Document) -> Table:
    columns = [column for label in NDCG_LABELS.values() for column in (label, "change")]
    title = f"NDCG@10 of {document['num_users']:,} users, change in % with its 95% interval"
    table = numbers_table(title, ["combination"], columns)
    for name, of in document["combinations"].items():
        cells = []
        for metric in NDCG_LABELS:
            change = of["accuracy"][metric.replace("@10", "_change")]
            bounds = f"{_number(change['value'], '+.1f')} ({_number(change['low'], '+.1f')} to "
            cells += [
                _number(of["accuracy"][metric]["value"], ".4f"),
                "" if name == NONE else f"{bounds}{_number(change['high'], '+.1f')})",
            ]
        table.add_row(LABELS.get(name, name), *cells)
    return table


def _gap_table(document: Document) -> Table:
    title = (
        "NDCG@10 over the whole catalogue, worst value of an attribute / best;\n"
        "their difference (95% of the null below)"
    )
    attributes = list(document["attributes"])
    table = numbers_table(title, ["combination"], attributes)
    for name, of in document["combinations"].items():
        cells = []
        for attribute in attributes:
            gap = of["ndcg_gaps"].get(attribute, {}).get("full_ndcg@10")
            words = gap and f"{_number(gap['ratio'], '.2f')}; {_number(gap['value'])} ({_number(gap['null_high'])})"
            cells.append(words or "too few users")
        table.add_row(LABELS.get(name, name), *cells)
    return table


def _parameter_table(document: Document) -> Table:
    table = numbers_table("Parameters", ["model"], ["count", "of the backbone"])
    backbone = document["num_parameters"]["backbone"]
    for name, count in document["num_parameters"].items():
        label = name if name == "backbone" else f"{name}, a combination"
        table.add_row(label, f"{count:,}", f"{count / backbone:.2%}")
    return table


def _attacked(document: Document) -> list[str]:
    return [name for name, of in document["attributes"].items() if of["attacked"]]


def _number(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)

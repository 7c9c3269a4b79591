"""What the quickstart says: each stage before it, and the results in words at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Column, Table

from mtrec_ray.combinations import NONE
from mtrec_ray.evaluation.intervals import Interval
from mtrec_ray.evaluation.report import MACRO, POOLED, EvaluationReport
from mtrec_ray.jobs.audit_tables import LABELS, VECTORS

Document = Mapping[str, Any]
CAPTION = (
    "largest AUC of four attackers (end of the null's 95% interval);\n"
    "0.5: nothing can be read; *: to be hidden; !: outside the null;\n"
    "NDCG@10 over all titles, change in %"
)
LEGEND = (
    "baseline: one model for all territories; upsampling: active users are added to\n"
    "the sample (control: random ones); mtl: a block of weights per territory group\n"
    "(mtl-slow: learning slowly, mtl-hierarchical: and a vector per territory);\n"
    "popularity: most watched in the territory\n"
)


class Stages:
    """Prints a line on stderr before each of `number` stages: what is done, and why."""

    def __init__(self, number: int) -> None:
        self.number, self.done = number, 0

    def __call__(self, line: str) -> None:
        self.done += 1
        say(f"[{self.done}/{self.number}] {line}")


def say(line: str) -> None:
    """Print one line on stderr."""
    Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True).print(line)


def gain_sentences(report: EvaluationReport, about: str) -> list[str]:
    """One sentence a variant: what PR-AUC gains over the baseline. `about`: what the data is."""
    over, sentences = report.baselines[0], []
    for variant in report.variants:
        if variant != over and variant not in report.references:
            gains = report.intervals("pr_auc", variant, over=over)
            sentences.append(
                f"{variant}: PR-AUC {_change(gains[POOLED])} over users of all territories, "
                f"{_change(gains[MACRO])} in the mean of territories, compared with {over} ({about})."
            )
    return sentences


def audit_sentences(document: Document, about: str) -> list[str]:
    """One sentence an attribute: how well it is read before and after it is hidden alone."""
    combinations, sentences = document["combinations"], []
    for attribute, before in combinations[NONE]["leakage"][VECTORS].items():
        after = combinations.get(attribute, {}).get("leakage", {}).get(VECTORS, {}).get(attribute)
        if after is None or None in (before["auc"]["value"], after["auc"]["value"], after["auc"]["null_high"]):
            continue
        change, auc = combinations[attribute]["accuracy"]["full_ndcg_change"], after["auc"]
        sentences.append(
            f"{attribute}: attackers read it with AUC {before['auc']['value']:.2f} from the backbone, with "
            f"{auc['value']:.2f} when it is ignored ({_verdict(before['auc'], auc)}: labels drawn at random reach "
            f"{auc['null_high']:.2f}), for {change['value']:+.1f}% of NDCG@10 ({change['low']:+.1f} to "
            f"{change['high']:+.1f}; {about})."
        )
    return sentences


def leakage_table(document: Document) -> Table:
    """A row for each combination: AUC of each attribute, and what accuracy changes by."""
    combinations = document["combinations"]
    attributes = list(combinations[NONE]["leakage"][VECTORS])
    title = f"What attackers read from vectors of {document['num_audit_users']:,} users that no eliminator saw"
    table = Table(Column("ignoring", overflow="fold"), title=title, caption=CAPTION)
    for name in (*attributes, "NDCG@10"):
        table.add_column(name, justify="right", overflow="fold")
    for name, of in combinations.items():
        cells = []
        for attribute, found in of["leakage"][VECTORS].items():
            auc = found["auc"]
            if None in (auc["value"], auc["null_high"]):
                cells.append("too few users")
                continue
            marks = "*" * (attribute in of["hides"]) + "!" * (auc["value"] > auc["null_high"])
            cells.append(f"{marks}{_decimals(auc['value'])} ({_decimals(auc['null_high'])})")
        change = f"{of['accuracy']['full_ndcg_change']['value']:+.1f}" if of["hides"] else ""
        table.add_row(LABELS.get(name, name), *cells, change)
    return table


def next_steps(bundle: str | None, report: str, planted: bool) -> list[str]:
    """Where the results are, and the commands that follow."""
    lines = [f"The report: {report}"]
    if bundle:
        lines.append(f"Serve it:   mtrec serve {bundle}   (then open http://127.0.0.1:8000)")
    if planted:
        return [*lines, "Your data:  mtrec lake init DIR; mtrec quickstart parquet --config lake.yaml"]
    return [*lines, "More seeds: the same command with --seeds 3 and another --out, for steadier figures"]


def paragraph(heading: str, sentences: Sequence[str]) -> list[RenderableType]:
    """A heading, and indented below it the sentences."""
    return [heading, *(Padding(sentence, (0, 0, 0, 2)) for sentence in sentences)]


def _change(gain: Interval) -> str:
    """A gain in words, e.g. `+45.7% (27.2 to 78.5)`."""
    if gain.value != gain.value:
        return "has no value"
    if gain.low != gain.low:
        return f"{gain.value:+.1f}% (too few users for an interval)"
    noise = "" if gain.significant else ", which is noise"
    return f"{gain.value:+.1f}% ({gain.low:+.1f} to {gain.high:+.1f}{noise})"


def _decimals(value: float) -> str:
    """0.5213 -> `.521`."""
    return f"{value:.3f}".removeprefix("0")


def _verdict(before: Document, after: Document) -> str:
    if after["value"] > after["null_high"]:
        return "not hidden"
    leaked = before["null_high"] is None or before["value"] > before["null_high"]
    return "hidden" if leaked else "not told from chance before either"

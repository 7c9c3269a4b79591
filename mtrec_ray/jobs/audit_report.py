"""An audit as tables for a person and flat keys for a machine."""

from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.combinations import NONE
from mtrec_ray.evaluation.audit_metrics import GroupGaps, group_gaps
from mtrec_ray.evaluation.bootstrap import poisson_weights
from mtrec_ray.evaluation.intervals import Interval, interval
from mtrec_ray.files import join, write_file, write_json
from mtrec_ray.jobs.audit import Audit
from mtrec_ray.training.eliminators_run import eliminators_hash

ACCURACY = {
    "ndcg@10": "ndcg",
    "hit@10": "hit",
    "auc": "auc",
    "full_ndcg@10": "full_ndcg",
    "full_hit@10": "full_hit",
}
"""Flat key -> field of `NextTitleMetrics`."""


def show_audit(
    audit: Audit, out: str | None, num_bootstrap: int, seed: int
) -> tuple[dict[str, Any], list[RenderableType]]:
    """Flat figures and terminal tables; also written to `out` as CSV and JSON."""
    weights = poisson_weights(audit.users.keys, num_bootstrap, seed).astype(np.float64)
    accuracy = {name: _accuracy(audit, name, weights) for name in audit.represented}
    gaps = {name: _gaps(audit, name, num_bootstrap, seed) for name in audit.represented}
    flat = _flat(audit, accuracy, gaps)
    tables: list[RenderableType] = [_leak_table(audit, accuracy, audit.from_vectors, "user vectors")]
    if audit.from_lists:
        tables.append(_leak_table(audit, accuracy, audit.from_lists, "top-10 lists"))
    tables += [_gap_table(audit, gaps), _parameter_table(audit)]
    if out:
        frame = pd.DataFrame(_rows(audit, accuracy, gaps))
        write_file(join(out, "audit.csv"), frame.to_csv(index=False).encode())
        write_json(join(out, "audit.json"), flat)
    return flat, tables


def _accuracy(audit: Audit, name: str, weights: np.ndarray) -> dict[str, Interval]:
    """Means over users with paired bootstrap intervals, and the relative loss of NDCG@10 against the backbone in %."""

    def replicates(of: str, field: str) -> np.ndarray:
        return weights @ getattr(audit.represented[of].metrics, field) / weights.sum(axis=1)

    found = {key: interval(replicates(name, field)) for key, field in ACCURACY.items()}
    change = 100 * (replicates(name, "ndcg") / replicates(NONE, "ndcg") - 1)
    return found | {"ndcg_change": interval(change)}


def _gaps(audit: Audit, name: str, num_bootstrap: int, seed: int) -> dict[str, GroupGaps | None]:
    """Differences of NDCG@10 between the values of each attribute; None where fewer than two have enough users."""
    found: dict[str, GroupGaps | None] = {}
    ndcg = audit.represented[name].metrics.ndcg
    for a, (attribute, values) in enumerate(audit.record.attributes.items()):
        index = audit.users.attribute_index[:, a]
        counts = np.bincount(index[index >= 0], minlength=len(values))
        found[attribute] = None
        if (counts >= 10).sum() >= 2:
            found[attribute] = group_gaps(ndcg, index, len(values), audit.users.keys, num_bootstrap, seed=seed)
    return found


def _flat(
    audit: Audit, accuracy: dict[str, dict[str, Interval]], gaps: dict[str, dict[str, GroupGaps | None]]
) -> dict[str, Any]:
    flat: dict[str, Any] = {"run": audit.record.uri, "weights_hash": eliminators_hash(audit.record)}
    flat |= {"num_users": len(audit.users), "num_audit_users": int(audit.users.audit_split.sum())}
    for prefix, results in (("audit", audit.from_vectors), ("list_audit", audit.from_lists)):
        for (name, attribute), result in results.items():
            flat |= {f"{prefix}/{name}/{attribute}/{key}": value for key, value in result.flat().items()}
            flat[f"{prefix}/{name}/{attribute}/hidden"] = result.hidden
    for name, found in accuracy.items():
        for key, of in found.items():
            flat |= {f"{key}/{name}": of.value, f"{key}/{name}_low": of.low, f"{key}/{name}_high": of.high}
    for name, by_attribute in gaps.items():
        for attribute, gap in by_attribute.items():
            if gap is not None:
                key = f"ndcg_gap/{name}/{attribute}"
                flat |= {key: gap.gap.value, f"{key}_low": gap.gap.low, f"{key}_high": gap.gap.high}
                flat[f"{key}/null_high"] = gap.gap_null_high
    return flat | {f"num_parameters/{name}": count for name, count in audit.num_parameters.items()}


def _leak_table(audit: Audit, accuracy: dict[str, dict[str, Interval]], results: dict, what: str) -> Table:
    table = Table(
        title=f"Best attacker's balanced accuracy on {what}, {audit.users.audit_split.sum():,} users (95% of the null)",
        caption="*: to be hidden; ! reads more than the null allows (one in twenty does by chance); ? too few users",
    )
    table.add_column("combination")
    for attribute in audit.attributes:
        table.add_column(attribute, justify="right")
    table.add_column("NDCG@10", justify="right")
    table.add_column("change", justify="right")
    for name, one in audit.represented.items():
        cells = []
        for attribute in audit.attributes:
            result = results[name, attribute]
            mark = "!" if result.readable else "?" if result.hidden is None else ""
            text = f"{result.balanced_accuracy.value:.3f}{mark} ({result.null[0]:.2f}-{result.null[1]:.2f})"
            cells.append(f"[bold]*{text}[/bold]" if attribute in one.hidden else text)
        found = accuracy[name]
        change = f"{found['ndcg_change'].value:+.1f}%" if name != NONE else ""
        table.add_row("backbone" if name == NONE else name, *cells, f"{found['ndcg@10'].value:.4f}", change)
    return table


def _gap_table(audit: Audit, gaps: dict[str, dict[str, GroupGaps | None]]) -> Table:
    table = Table(title="Largest difference of NDCG@10 between the values of an attribute (what chance alone reaches)")
    table.add_column("combination")
    for attribute in audit.record.attributes:
        table.add_column(attribute, justify="right")
    for name, by_attribute in gaps.items():
        cells = [
            "too few users" if gap is None else f"{gap.gap.value:.3f} ({gap.gap_null_high:.3f})"
            for gap in by_attribute.values()
        ]
        table.add_row("backbone" if name == NONE else name, *cells)
    return table


def _parameter_table(audit: Audit) -> Table:
    table = Table(title="Parameters")
    table.add_column("model")
    table.add_column("count", justify="right")
    table.add_column("of the backbone", justify="right")
    backbone = audit.num_parameters["backbone"]
    for name, count in audit.num_parameters.items():
        label = name if name == "backbone" else f"{name}, a combination"
        table.add_row(label, f"{count:,}", f"{count / backbone:.2%}")
    return table


def _rows(
    audit: Audit, accuracy: dict[str, dict[str, Interval]], gaps: dict[str, dict[str, GroupGaps | None]]
) -> list[dict[str, Any]]:
    """One row for each representation, attribute and kind of attack."""
    rows = []
    for kind, results in (("vectors", audit.from_vectors), ("lists", audit.from_lists)):
        for (name, attribute), result in results.items():
            gap = gaps[name][attribute]
            selected = attribute in audit.represented[name].hidden
            row = {"attack": kind, "combination": name, "attribute": attribute, "selected": selected}
            row |= result.flat()
            row |= {"recommender_auc" if key == "auc" else key: of.value for key, of in accuracy[name].items()}
            rows.append(row | {"ndcg_gap": None if gap is None else gap.gap.value})
    return rows

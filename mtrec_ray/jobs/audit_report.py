"""Result of `mtrec audit`: tables, JSON document and CSV files.

A combination is named `gender+age`, `none` is the backbone; those of compared runs are `RUN/gender+age`.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mtrec_ray.combinations import NONE
from mtrec_ray.evaluation.audit import AuditSettings
from mtrec_ray.evaluation.audit_metrics import ABOUT, LEAKAGE_METRICS, AuditResult, largest_ndcg_gap
from mtrec_ray.evaluation.intervals import interval, poisson_weights
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.evaluation.tables import write_csv_files
from mtrec_ray.evaluation.terminal_tables import numbers_table
from mtrec_ray.files import finite, join, write_json
from mtrec_ray.streams.sequences import HeldOutUsers
from mtrec_ray.training.eliminators_run import EliminatorsRecord

AUDIT_FILE, AUDIT_VERSION = "audit.json", 2
INPUTS = {"vectors": "user vectors", "lists": "top-10 lists"}
LABELS = {NONE: "backbone"}


@dataclass(frozen=True)
class UserRepresentations:
    """Users' vectors and recommendations under one model."""

    hidden: tuple[str, ...]  # attributes that the model is to hide
    vectors: np.ndarray  # (U, d) float32
    lists: np.ndarray  # (U, 10) int64 unwatched titles of their territory, best first, -1 where no more are left
    metrics: NextTitleMetrics


@dataclass(frozen=True)
class Audit:
    """A `JobResult`: leakage and accuracy of each combination."""

    record: EliminatorsRecord
    users: HeldOutUsers
    representations: dict[str, UserRepresentations]  # by combination, see above
    attributes: list[str]  # those that could be attacked
    leakage: dict[tuple[str, str, str], AuditResult]  # (`vectors` or `lists`, combination, attribute) -> result
    num_parameters: dict[str, int]  # of the backbone and of one combination of each run
    settings: AuditSettings

    def document(self) -> dict[str, Any]:
        return {
            "version": AUDIT_VERSION,
            "run": self.record.uri,
            "weights_hash": self.record.weights_hash(),
            "num_users": len(self.users),
            "num_audit_users": int(self.users.audit_split.sum()),
            "num_parameters": self.num_parameters,
            "combinations": self.combinations,
        }

    @cached_property
    def combinations(self) -> dict[str, dict[str, Any]]:
        """Combination -> its part of the document."""
        kinds = dict.fromkeys(kind for kind, _, _ in self.leakage)
        found = {
            name: {
                "hides": list(one.hidden),
                "accuracy": self._accuracy(one.metrics),
                "ndcg_gaps": self._ndcg_gaps(one.metrics),
                "leakage": {k: {a: self.leakage[k, name, a].document() for a in self.attributes} for k in kinds},
            }
            for name, one in self.representations.items()
        }
        return finite(found)

    def _accuracy(self, metrics: NextTitleMetrics) -> dict[str, Any]:
        """Means over users with bootstrap intervals, paired for `ndcg_change`."""
        weights = poisson_weights(self.users.keys, self.settings.num_bootstrap, self.settings.seed).astype(np.float64)
        total, backbone = weights.sum(axis=1), self.representations[NONE].metrics
        found = {
            name: interval(weights @ getattr(metrics, field) / total) for name, field in metrics.reported().items()
        }
        change = 100 * ((weights @ metrics.ndcg / total) / (weights @ backbone.ndcg / total) - 1)
        return {name: one._asdict() for name, one in (found | {"ndcg_change": interval(change)}).items()}

    def _ndcg_gaps(self, metrics: NextTitleMetrics) -> dict[str, Any]:
        """By attribute with enough users."""
        num_bootstrap, seed = self.settings.num_bootstrap, self.settings.seed
        found = {}
        for a, (attribute, values) in enumerate(self.record.attributes.items()):
            index, keys = self.users.attribute_index[:, a], self.users.keys
            gap = largest_ndcg_gap(metrics.ndcg, index, len(values), keys, num_bootstrap, seed)
            if gap is not None:
                extremes = {"best": values[gap.best], "worst": values[gap.worst]}
                found[attribute] = gap.gap._asdict() | {"null_high": gap.null_high, **extremes}
        return found

    @cached_property
    def csv_tables(self) -> dict[str, pd.DataFrame]:
        leakage, attackers, accuracy, gaps = [], [], [], []
        for name, of in self.combinations.items():
            accuracy += ({"combination": name, "metric": metric} | found for metric, found in of["accuracy"].items())
            gaps += ({"combination": name, "attribute": a} | found for a, found in of["ndcg_gaps"].items())
            for kind, attribute in product(of["leakage"], self.attributes):
                found = of["leakage"][kind][attribute]
                key = {"combination": name, "inputs": kind, "attribute": attribute, "to_hide": attribute in of["hides"]}
                about = {field: found[field] for field in ABOUT}
                leakage += (key | {"metric": metric} | found[metric] | about for metric in LEAKAGE_METRICS)
                for attacker, of_attacker in found["attackers"].items():
                    attackers += (key | {"attacker": attacker, "metric": m, "value": v} for m, v in of_attacker.items())
        rows = {"leakage": leakage, "attackers": attackers, "accuracy": accuracy, "ndcg_gaps": gaps}
        return {f"audit_{name}": pd.DataFrame(found) for name, found in rows.items() if found}

    @property
    def metrics(self) -> pd.DataFrame:
        """The content of audit_leakage.csv."""
        return self.csv_tables["audit_leakage"]

    def write(self, folder: str) -> None:
        write_csv_files(folder, self.csv_tables)
        write_json(join(folder, AUDIT_FILE), self.document())

    def tables(self) -> list[RenderableType]:
        kinds = dict.fromkeys(kind for kind, _, _ in self.leakage)
        return [*(self._leakage_table(kind) for kind in kinds), self._gap_table(), self._parameter_table()]

    def _leakage_table(self, kind: str) -> Table:
        table = numbers_table(
            f"Best attacker's balanced accuracy on {INPUTS[kind]}, {self.users.audit_split.sum():,} users "
            "(95% of the null)",
            ["combination"],
            [*self.attributes, "NDCG@10", "change"],
            "*: to be hidden; ! leaks more than the null allows (one in twenty does by chance); ? too few users",
        )
        for name, of in self.combinations.items():
            cells = []
            for attribute in self.attributes:
                result = self.leakage[kind, name, attribute]
                mark, of_best = "!" if result.leaks else "?" if result.hidden is None else "", result.balanced_accuracy
                text = f"{of_best.value:.3f}{mark} ({of_best.null_low:.2f}-{of_best.null_high:.2f})"
                cells.append(Text(f"*{text}", style="bold") if attribute in of["hides"] else text)
            ndcg, change = (of["accuracy"][metric]["value"] for metric in ("ndcg@10", "ndcg_change"))
            cost = "" if name == NONE or change is None else f"{change:+.1f}%"
            table.add_row(LABELS.get(name, name), *cells, f"{ndcg:.4f}", cost)
        return table

    def _gap_table(self) -> Table:
        title = "Largest difference of NDCG@10 between the values of an attribute (95% of the null below)"
        table = numbers_table(title, ["combination"], self.record.attributes)
        for name, of in self.combinations.items():
            gaps = (of["ndcg_gaps"].get(attribute) for attribute in self.record.attributes)
            cells = (f"{gap['value']:.3f} ({gap['null_high']:.3f})" if gap else "too few users" for gap in gaps)
            table.add_row(LABELS.get(name, name), *cells)
        return table

    def _parameter_table(self) -> Table:
        table = numbers_table("Parameters", ["model"], ["count", "of the backbone"])
        backbone = self.num_parameters["backbone"]
        for name, count in self.num_parameters.items():
            label = name if name == "backbone" else f"{name}, a combination"
            table.add_row(label, f"{count:,}", f"{count / backbone:.2%}")
        return table

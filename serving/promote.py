"""`mtrec promote`, if NDCG, leakage and PR-AUC pass their gates, and `mtrec rollback`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd
from rich.console import RenderableType

from mtrec_ray.bundle.manifest import Bundle, BundleManifest, Leakage, Metric, PrAuc, PropensityPart
from mtrec_ray.combinations import combination_name
from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists
from mtrec_ray.serving.config import GatesConfig, PromoteConfig, RollbackConfig
from mtrec_ray.serving.engine import Engine
from mtrec_ray.serving.pointer import Pointer, live_bundle, move_pointer, read_pointer, write_pointer

MIN_PERMUTATIONS = 8  # with fewer permutations, a null interval is too wide to decide


@dataclass(frozen=True)
class Gate:
    """One condition."""

    name: str
    passed: bool
    measured: str
    combination: str | None = None
    attribute: str | None = None

    @property
    def label(self) -> str:
        return "/".join(part for part in (self.name, self.combination, self.attribute) if part is not None)


@dataclass(frozen=True)
class PromoteResult:
    """The moved pointer, and the gates that the bundle passed; none after a rollback."""

    uri: str
    pointer: Pointer
    gates: tuple[Gate, ...] = ()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per gate."""
        return pd.DataFrame([asdict(gate) for gate in self.gates], columns=[field.name for field in fields(Gate)])

    def document(self) -> dict[str, Any]:
        live = {"bundle": self.pointer.bundle, "bundle_version": self.pointer.version}
        return {"version": 1, "pointer": self.uri, **live, "gates": [asdict(gate) for gate in self.gates]}

    def tables(self) -> list[RenderableType]:
        if not self.gates:
            return [f"bundle {self.pointer.version} ({self.pointer.bundle}) is live again: pointer {self.uri}"]
        title = f"Bundle {self.pointer.version} is live: pointer {self.uri}"
        return [facts_table(title, {gate.label: gate.measured for gate in self.gates})]


def promote(config: PromoteConfig, progress: ProgressCallback | None = None) -> PromoteResult:
    """Make a bundle the live one; UserError if it is damaged or fails a gate."""
    bundle, uri, against_live = Bundle.open(config.bundle), config.pointer, config.gates.against_live
    Engine(bundle)  # loads and checks every file
    live = None
    if against_live and exists(uri):
        pointer = read_pointer(uri)
        try:
            live = live_bundle(pointer).manifest
        except UserError as error:
            fix = "`--set gates.against_live=false` promotes without a comparison"
            raise UserError(f"the live bundle: {error}; {fix}") from error
    gates = tuple(check_gates(bundle.manifest, live, config.gates))
    failed = [f"{gate.label}: {gate.measured}" for gate in gates if not gate.passed]
    if failed:
        summary = f"bundle {bundle.manifest.version} is not promoted, {len(failed)} of {len(gates)} gates failed:"
        raise UserError("\n".join([summary, *failed]))
    return PromoteResult(uri, move_pointer(uri, bundle, overwrite_damaged=not against_live), gates)


def rollback(config: RollbackConfig, progress: ProgressCallback | None = None) -> PromoteResult:
    """Make the previous bundle live again; UserError if there is none or it cannot be loaded."""
    uri, before = config.pointer, read_pointer(config.pointer)
    if not before.previous:
        raise UserError(f"pointer {uri!r}: no bundle was live before {before.version}: nothing to roll back")
    bundle = Bundle.open(before.previous[0])
    Engine(bundle)  # loads and checks every file
    return PromoteResult(uri, write_pointer(uri, bundle, before.previous[1:]))


def check_gates(new: BundleManifest, live: BundleManifest | None, config: GatesConfig) -> Iterator[Gate]:
    """Check every condition; without a live bundle, the comparisons with it are left out."""
    if live is not None:
        yield _coverage(new, live)
        for name in new.metrics:
            if name in live.metrics:
                ndcg, before = new.metrics[name]["ndcg@10"], live.metrics[name]["ndcg@10"].value
                passed = ndcg.high >= config.ndcg_ratio * before
                yield Gate("ndcg@10", passed, f"{_interval(ndcg, 4)}, live {before:.4f}", name)
    if not new.audit:
        yield Gate("audit", not config.audit, "the bundle has no audit: `mtrec bundle --audit DIR`")
    for combination in new.combinations if new.audit else []:
        name = combination_name(combination)
        yield from (_leak(name, attribute, new.audit[name][attribute], config) for attribute in combination)
    if live is not None and live.propensity is not None and (before := live.propensity.pr_auc.get("mean")):
        yield _pr_auc(new.propensity, live.propensity, before.value, config.pr_auc_ratio)


def _coverage(new: BundleManifest, live: BundleManifest) -> Gate:
    """The new bundle must have every combination, attribute and territory of the live one."""
    combinations = {frozenset(combination) for combination in new.combinations}
    lost = [f"combination {combination_name(c)}" for c in live.combinations if frozenset(c) not in combinations]
    lost += [f"attribute {name}" for name in live.attributes if name not in new.attributes]
    lost += [f"territory {name}" for name in live.territories if name not in new.territories]
    missing = f"without {', '.join(lost)}: `--set gates.against_live=false` accepts that"
    return Gate("combinations", not lost, missing if lost else "all that the live bundle has")


def _leak(combination: str, attribute: str, leakage: Leakage, config: GatesConfig) -> Gate:
    """Metrics of the best attacker against their null intervals, as in the audit."""
    measured, passed = [], leakage.num_permutations >= MIN_PERMUTATIONS
    for name, metric, limit in (
        ("balanced accuracy", leakage.balanced_accuracy, config.max_leak),
        ("auc", leakage.auc, config.max_auc_leak),
    ):
        decided = metric.null_high < 1
        passed = passed and decided and metric.value <= metric.null_high + limit
        undecided = "" if decided else ", too few users to decide"
        measured.append(f"{name} {_interval(metric, 3)}, null up to {metric.null_high:.3f}{undecided}")
    if leakage.num_permutations < MIN_PERMUTATIONS:
        measured.append(f"only {leakage.num_permutations} permutations: `mtrec audit --set num_permutations=20`")
    return Gate("leak", passed, "; ".join(measured), combination, attribute)


def _pr_auc(part: PropensityPart | None, live: PropensityPart, before: float, ratio: float) -> Gate:
    pr_auc, passed = part and part.pr_auc.get("mean"), False
    if part is None or pr_auc is None:
        measured = "the live bundle has one: `mtrec bundle --propensity RUN --evaluation DIR`"
    elif part.protocol != live.protocol:
        measured = f"measured {part.protocol}, the live bundle's {live.protocol}: evaluate both the same way"
    elif pr_auc.low is None or pr_auc.high is None:
        measured = f"{pr_auc.value:.4f} has no interval, because positives are too few: evaluate it on more users"
    else:
        passed, measured = pr_auc.high >= ratio * before, f"{_interval(pr_auc, 4)}, live {before:.4f}"
    return Gate("pr_auc", passed, measured)


def _interval(metric: Metric | PrAuc, digits: int) -> str:
    return f"{metric.value:.{digits}f} ({metric.low:.{digits}f} to {metric.high:.{digits}f})"

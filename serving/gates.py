"""Gates: conditions on NDCG, leakage and PR-AUC that a bundle must pass before it goes live."""

from dataclasses import dataclass
from typing import Any

from mtrec_ray.bundle.manifest import BundleManifest
from mtrec_ray.combinations import combination_name
from mtrec_ray.serving.config import GatesConfig


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


def check_gates(new: BundleManifest, live: BundleManifest | None, config: GatesConfig) -> list[Gate]:
    """Check every condition; without a live bundle, the comparisons with it are left out."""
    gates = [] if live is None else [_coverage(new, live)]
    if not new.audit:
        gates.append(Gate("audit", not config.audit, "the bundle has no audit: `mtrec bundle --audit DIR`"))
    gates += [_ndcg(name, metrics, live, config) for name, metrics in new.metrics.items()]
    for combination in new.combinations if new.audit else []:
        name = combination_name(combination)
        gates += [_leak(name, attribute, new.audit[name][attribute], config) for attribute in combination]
    return gates + _pr_auc(new, live, config)


def _coverage(new: BundleManifest, live: BundleManifest) -> Gate:
    """The new bundle must have every combination, attribute and territory of the live one."""
    combinations = {frozenset(combination) for combination in new.combinations}
    lost = [f"combination {combination_name(c)}" for c in live.combinations if frozenset(c) not in combinations]
    lost += [f"attribute {name}" for name in live.attributes if name not in new.attributes]
    lost += [f"territory {name}" for name in live.territories if name not in new.territories]
    measured = (
        f"without {', '.join(lost)}: `--set gates.against_live=false` accepts that" if lost else "all of the live"
    )
    return Gate("combinations", not lost, measured)


def _ndcg(combination: str, metrics: dict[str, float], live: BundleManifest | None, config: GatesConfig) -> Gate:
    value, low, high = (metrics[f"ndcg@10{end}"] for end in ("", "_low", "_high"))
    before = live.metrics.get(combination, {}).get("ndcg@10") if live else None
    measured = f"{value:.4f} ({low:.4f} to {high:.4f})" + ("" if before is None else f", live {before:.4f}")
    passed = high >= config.ndcg_ratio * (before or 0.0) and low >= config.min_ndcg
    return Gate("ndcg@10", passed, measured, combination)


def _leak(combination: str, attribute: str, metrics: dict[str, Any], config: GatesConfig) -> Gate:
    """Balanced accuracy and AUC of the best attacker against their null intervals, as the audit judges them."""
    measured, passed = [], True
    for metric, null, limit in (
        ("balanced_accuracy", "null_high", config.max_leak),
        ("auc", "auc_null_high", config.max_auc_leak),
    ):
        value, low, high, top = (float(metrics[key]) for key in (metric, f"{metric}_low", f"{metric}_high", null))
        measured.append(f"{metric.replace('_', ' ')} {value:.3f} ({low:.3f} to {high:.3f}), null up to {top:.3f}")
        passed = passed and value <= top + limit and top < 1
        if not top < 1:
            measured.append("too few users to decide")
    if (permutations := int(metrics.get("num_permutations", 0))) < config.min_permutations:
        measured.append(f"only {permutations} permutations: `mtrec audit --set num_permutations=20`")
        passed = False
    return Gate("leak", passed, "; ".join(measured), combination, attribute)


def _pr_auc(new: BundleManifest, live: BundleManifest | None, config: GatesConfig) -> list[Gate]:
    part, old = new.propensity, live and live.propensity
    before = old.metrics.get("pr_auc/mean") if old else None
    if old is None or before is None:
        return []
    if part is None or "pr_auc/mean" not in part.metrics:
        fix = "the live bundle has one: `mtrec bundle --propensity RUN --evaluation DIR`"
        return [Gate("pr_auc", False, fix)]
    if part.protocol != old.protocol:
        fix = "evaluate both the same way, or skip the comparison with `--set gates.against_live=false`"
        return [Gate("pr_auc", False, f"measured {part.protocol}, the live bundle's {old.protocol}: {fix}")]
    value, low, high = (part.metrics.get(f"pr_auc/mean{end}") for end in ("", "_low", "_high"))
    if low is None or high is None:
        fix = "evaluate it on more users: `mtrec evaluate propensity RUN --out DIR`"
        return [Gate("pr_auc", False, f"{value:.4f} has no interval, because positives are too few: {fix}")]
    measured = f"{value:.4f} ({low:.4f} to {high:.4f}), live {before:.4f}"
    return [Gate("pr_auc", high >= config.pr_auc_ratio * before, measured)]

"""Gates: conditions on NDCG, leakage and PR-AUC that a bundle must pass before it goes live."""

from dataclasses import dataclass

from mtrec_ray.bundle.manifest import BundleManifest, Leakage, Metric
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
    missing = f"without {', '.join(lost)}: `--set gates.against_live=false` accepts that"
    return Gate("combinations", not lost, missing if lost else "all that the live bundle has")


def _ndcg(combination: str, metrics: dict[str, Metric], live: BundleManifest | None, config: GatesConfig) -> Gate:
    found = metrics["ndcg@10"]
    before = live.metrics[combination]["ndcg@10"].value if live and combination in live.metrics else None
    measured = f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
    measured += "" if before is None else f", live {before:.4f}"
    passed = found.high >= config.ndcg_ratio * (before or 0.0) and found.low >= config.min_ndcg
    return Gate("ndcg@10", passed, measured, combination)


def _leak(combination: str, attribute: str, leakage: Leakage, config: GatesConfig) -> Gate:
    """Balanced accuracy and AUC of the best attacker against their null intervals, as in the audit's `leaks`."""
    measured, passed = [], True
    for name, found, limit in (
        ("balanced accuracy", leakage.balanced_accuracy, config.max_leak),
        ("auc", leakage.auc, config.max_auc_leak),
    ):
        interval = f"({found.low:.3f} to {found.high:.3f})"
        measured.append(f"{name} {found.value:.3f} {interval}, null up to {found.null_high:.3f}")
        passed = passed and found.value <= found.null_high + limit and found.null_high < 1
        if not found.null_high < 1:
            measured.append("too few users to decide")
    if leakage.num_permutations < config.min_permutations:
        measured.append(f"only {leakage.num_permutations} permutations: `mtrec audit --set num_permutations=20`")
        passed = False
    return Gate("leak", passed, "; ".join(measured), combination, attribute)


def _pr_auc(new: BundleManifest, live: BundleManifest | None, config: GatesConfig) -> list[Gate]:
    part, old = new.propensity, live and live.propensity
    before = old.mean_pr_auc if old else None
    if old is None or before is None:
        return []
    found = part.mean_pr_auc if part else None
    if part is None or found is None:
        fix = "the live bundle has one: `mtrec bundle --propensity RUN --evaluation DIR`"
        return [Gate("pr_auc", False, fix)]
    if part.protocol != old.protocol:
        fix = "evaluate both the same way, or skip the comparison with `--set gates.against_live=false`"
        return [Gate("pr_auc", False, f"measured {part.protocol}, the live bundle's {old.protocol}: {fix}")]
    if found.low is None or found.high is None:
        fix = "evaluate it on more users: `mtrec evaluate propensity RUN --out DIR`"
        return [Gate("pr_auc", False, f"{found.value:.4f} has no interval, because positives are too few: {fix}")]
    measured = f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f}), live {before.value:.4f}"
    return [Gate("pr_auc", found.high >= config.pr_auc_ratio * before.value, measured)]

"""Gates: conditions on NDCG, leakage and PR-AUC for a bundle to go live."""

from dataclasses import dataclass

from mtrec_ray.bundle.manifest import BundleManifest, Leakage, Metric, PrAuc
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
    ndcg, before = metrics["ndcg@10"], live.metrics.get(combination) if live else None
    wanted = config.ndcg_ratio * before["ndcg@10"].value if before else 0.0
    measured = _interval(ndcg, 4) + (f", live {before['ndcg@10'].value:.4f}" if before else "")
    return Gate("ndcg@10", ndcg.high >= wanted and ndcg.low >= config.min_ndcg, measured, combination)


def _leak(combination: str, attribute: str, leakage: Leakage, config: GatesConfig) -> Gate:
    """Metrics of the best attacker against their null intervals, as in the audit."""
    measured, passed = [], leakage.num_permutations >= config.min_permutations
    for name, metric, limit in (
        ("balanced accuracy", leakage.balanced_accuracy, config.max_leak),
        ("auc", leakage.auc, config.max_auc_leak),
    ):
        measured.append(f"{name} {_interval(metric, 3)}, null up to {metric.null_high:.3f}")
        passed = passed and metric.value <= metric.null_high + limit and metric.null_high < 1
        if not metric.null_high < 1:
            measured.append("too few users to decide")
    if leakage.num_permutations < config.min_permutations:
        measured.append(f"only {leakage.num_permutations} permutations: `mtrec audit --set num_permutations=20`")
    return Gate("leak", passed, "; ".join(measured), combination, attribute)


def _pr_auc(new: BundleManifest, live: BundleManifest | None, config: GatesConfig) -> list[Gate]:
    part, old = new.propensity, live and live.propensity
    pr_auc, before = part and part.mean_pr_auc, old and old.mean_pr_auc
    if old is None or before is None:
        return []
    if part is None or pr_auc is None:
        problem = "the live bundle has one: `mtrec bundle --propensity RUN --evaluation DIR`"
    elif part.protocol != old.protocol:
        fix = "evaluate both the same way, or skip the comparison with `--set gates.against_live=false`"
        problem = f"measured {part.protocol}, the live bundle's {old.protocol}: {fix}"
    elif pr_auc.low is None or pr_auc.high is None:
        fix = "evaluate it on more users: `mtrec evaluate propensity RUN --out DIR`"
        problem = f"{pr_auc.value:.4f} has no interval, because positives are too few: {fix}"
    else:
        measured = f"{_interval(pr_auc, 4)}, live {before.value:.4f}"
        return [Gate("pr_auc", pr_auc.high >= config.pr_auc_ratio * before.value, measured)]
    return [Gate("pr_auc", False, problem)]


def _interval(metric: Metric | PrAuc, digits: int) -> str:
    return f"{metric.value:.{digits}f} ({metric.low:.{digits}f} to {metric.high:.{digits}f})"

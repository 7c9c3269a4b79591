"""What stands between a new bundle and its users: NDCG, leakage and PR-AUC, each with its interval."""

from dataclasses import dataclass
from typing import Any

from mtrec_ray.bundle.manifest import BundleManifest
from mtrec_ray.combinations import combination_name
from mtrec_ray.serving.gates_config import GatesConfig


@dataclass(frozen=True)
class Gate:
    """One condition and whether it holds."""

    name: str
    holds: bool
    found: str


def check_gates(new: BundleManifest, live: BundleManifest | None, gates: GatesConfig) -> list[Gate]:
    """All conditions; what needs a live bundle is left out where there is none."""
    found = [] if live is None else [_switches(new, live)]
    if not new.audit:
        found += [Gate("audit", not gates.audit, "the bundle was made without one: `mtrec bundle --audit DIR`")]
    found += [_ndcg(name, figures, live, gates) for name, figures in new.metrics.items()]
    for combination in new.combinations if new.audit else []:
        name = combination_name(combination)
        found += [_leak(name, attribute, new.audit[name][attribute], gates) for attribute in combination]
    return found + _pr_auc(new, live, gates)


def _switches(new: BundleManifest, live: BundleManifest) -> Gate:
    """Every combination, attribute and territory of the live bundle must be in the new one."""
    there = {frozenset(combination) for combination in new.combinations}
    lost = [f"combination {combination_name(c)}" for c in live.combinations if frozenset(c) not in there]
    lost += [f"attribute {name}" for name in live.attributes if name not in new.attributes]
    lost += [f"territory {name}" for name in live.territories if name not in new.territories]
    found = f"without {', '.join(lost)}: `--set gates.against_live=false` lets them go"
    return Gate("combinations", not lost, found if lost else "all that the live bundle has, its territories too")


def _ndcg(name: str, figures: dict[str, float], live: BundleManifest | None, gates: GatesConfig) -> Gate:
    value, low, high = (figures[f"ndcg@10{end}"] for end in ("", "_low", "_high"))
    before = live.metrics.get(name, {}).get("ndcg@10") if live else None
    wanted = 0.0 if before is None else gates.ndcg_share * before
    text = f"{value:.4f} ({low:.4f} to {high:.4f})"
    if before is not None:
        text += f", live {before:.4f}"
    return Gate(f"ndcg@10/{name}", high >= wanted and low >= gates.min_ndcg, text)


def _leak(combination: str, attribute: str, figures: dict[str, Any], gates: GatesConfig) -> Gate:
    """Balanced accuracy and AUC against their nulls, judged as in the audit's `readable`."""
    texts, holds = [], True
    for figure, null, bound in (
        ("balanced_accuracy", "null_high", gates.max_leak),
        ("auc", "auc_null_high", gates.max_auc_leak),
    ):
        value, low, high, top = (float(figures[key]) for key in (figure, f"{figure}_low", f"{figure}_high", null))
        texts.append(f"{figure.replace('_', ' ')} {value:.3f} ({low:.3f} to {high:.3f}), null up to {top:.3f}")
        holds = holds and value <= top + bound and top < 1
        if not top < 1:
            texts.append("too few users to tell")
    if (permutations := int(figures.get("num_permutations", 0))) < gates.min_permutations:
        texts.append(f"a null of {permutations} permutations: `mtrec audit --set num_permutations=20`")
        holds = False
    return Gate(f"leak/{combination}/{attribute}", holds, "; ".join(texts))


def _pr_auc(new: BundleManifest, live: BundleManifest | None, gates: GatesConfig) -> list[Gate]:
    part, old = new.propensity, live and live.propensity
    before = old.metrics.get("pr_auc/mean") if old else None
    if old is None or before is None:
        return []
    if part is None or "pr_auc/mean" not in part.metrics:
        fix = "the live bundle has one: `mtrec bundle --propensity RUN --evaluation DIR`"
        return [Gate("pr_auc", False, fix)]
    if part.protocol != old.protocol:
        fix = "evaluate the run as that one was, or `--set gates.against_live=false` compares with no live bundle"
        return [Gate("pr_auc", False, f"measured {part.protocol}, the live bundle's {old.protocol}: {fix}")]
    value, low, high = (part.metrics.get(f"pr_auc/mean{end}") for end in ("", "_low", "_high"))
    if low is None or high is None:
        fix = "evaluate it on more users: `mtrec evaluate propensity RUN --out DIR`"
        return [Gate("pr_auc", False, f"{value:.4f} has no interval, for too few positives: {fix}")]
    text = f"{value:.4f} ({low:.4f} to {high:.4f}), live {before:.4f}"
    return [Gate("pr_auc", high >= gates.pr_auc_share * before, text)]

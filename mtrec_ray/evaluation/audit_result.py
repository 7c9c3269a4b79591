"""Result of one audit: metrics with bootstrap and null intervals, from the attackers' test scores.

Legend: N test users, A attribute values, P labelings (0 is the true one, the others are permuted), R replicates.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from mtrec_ray.evaluation.audit_metrics import balanced_accuracy, macro_auc, majority_rate, micro_f1
from mtrec_ray.evaluation.intervals import LEVEL, Interval, interval
from mtrec_ray.evaluation.tidy import without_nan

METRICS = ("balanced_accuracy", "auc", "micro_f1")


@dataclass(frozen=True)
class AuditResult:
    """How well the chosen attackers predict one attribute from one representation; metrics in [0, 1]."""

    attacker: str
    """The one chosen in most folds."""
    attacker_by_fold: tuple[str, ...]
    num_users: int
    """Test users."""
    num_permutations: int
    """Draws behind each null."""
    balanced_accuracy: Interval
    auc: Interval
    micro_f1: Interval
    majority_rate: float
    """Micro-F1 of a constant prediction."""
    chance: float
    """Balanced accuracy of a constant prediction: 1 / (values that occur)."""
    null: tuple[float, float]
    """95% of the balanced accuracies without leakage."""
    auc_null: tuple[float, float]
    by_attacker: Mapping[str, Mapping[str, float]]
    """`METRICS` of each attacker on the test users, chosen or not; `paper` gives paper B's micro-F1."""

    @property
    def leaks(self) -> bool:
        """Whether the best attacker exceeds the null, in balanced accuracy or in AUC."""
        return self.balanced_accuracy.value > self.null[1] or self.auc.value > self.auc_null[1]

    @property
    def hidden(self) -> bool | None:
        """Whether nothing leaks; None if no leak could be detected, as nulls of very few users reach 1."""
        detectable = self.null[1] < 1 and self.auc_null[1] < 1  # False of NaN too
        return not self.leaks if detectable or self.leaks else None

    def document(self) -> dict[str, Any]:
        """JSON-able form; `chance` of each metric is its value without information."""
        nulls = {"balanced_accuracy": self.null, "auc": self.auc_null}
        chances = {"balanced_accuracy": self.chance, "auc": 0.5, "micro_f1": self.majority_rate}
        document: dict[str, Any] = {"attacker": self.attacker, "num_users": self.num_users}
        document |= {"num_permutations": self.num_permutations, "leaks": self.leaks, "hidden": self.hidden}
        for metric in METRICS:
            document[metric] = getattr(self, metric)._asdict() | {"chance": chances[metric]}
            if metric in nulls:
                document[metric] |= {"null_low": nulls[metric][0], "null_high": nulls[metric][1]}
        return without_nan(document | {"attackers": dict(self.by_attacker)})


def summarise_attacks(
    best: np.ndarray,
    by_attacker: Mapping[str, np.ndarray],
    labelings: np.ndarray,
    folds: np.ndarray,
    weights: np.ndarray,
    by_fold: tuple[str, ...],
    num_users: int,
) -> AuditResult:
    """Metrics from the test users' log probabilities: chosen attackers' (P, N, A), each attacker's (N, A).

    `labelings` (P, N), `folds` (N,), `weights` (R, N) with ones in row 0. A user tested several times, in other folds,
    has one row per test, all with the user's weights.
    """
    labels, plain = labelings[0], weights[:1]
    drawn = [_replicates(s, y, folds, plain)[:, 0] for s, y in zip(best[1:], labelings[1:], strict=True)]
    nulls = [prediction_interval(draws) for draws in np.stack(drawn, axis=1)]
    return AuditResult(
        **dict(zip(METRICS, map(interval, _replicates(best[0], labels, folds, weights)), strict=True)),
        attacker=Counter(by_fold).most_common(1)[0][0],
        attacker_by_fold=by_fold,
        num_users=num_users,
        num_permutations=len(labelings) - 1,
        majority_rate=majority_rate(labels),
        chance=1 / len(np.unique(labels)),
        null=nulls[0],
        auc_null=nulls[1],
        by_attacker={
            name: dict(zip(METRICS, _replicates(s, labels, folds, plain)[:, 0].tolist(), strict=True))
            for name, s in by_attacker.items()
        },
    )


def _replicates(scores: np.ndarray, labels: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`METRICS` of scores (N, A) in each replicate: (3, R)."""
    predictions, num_values = scores.argmax(axis=-1), scores.shape[-1]
    return np.stack(
        [
            balanced_accuracy(predictions, labels, weights, num_values),
            macro_auc(scores, labels, weights, folds),
            micro_f1(predictions, labels, weights),
        ]
    )


def prediction_interval(draws: np.ndarray) -> tuple[float, float]:
    """95% interval of one more draw of the same normal distribution: (B,) -> low, high within [0, 1]."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return float("nan"), float("nan")
    reach = stdtrit(len(draws) - 1, (1 + LEVEL) / 2) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    return float(max(draws.mean() - reach, 0)), float(min(draws.mean() + reach, 1))

"""Result of one audit: figures, their bootstrap intervals and the null's, from the attackers' test scores.

Legend: N test users, A attribute values, P labelings (0 is the true one, the others are permuted), R replicates.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from mtrec_ray.evaluation.audit_metrics import balanced_accuracy, macro_auc, majority_rate, micro_f1
from mtrec_ray.evaluation.intervals import LEVEL, Interval, interval


class AttackerFigures(NamedTuple):
    """One attacker on the test users, whether it was chosen or not."""

    balanced_accuracy: float
    auc: float
    micro_f1: float


@dataclass(frozen=True)
class AuditResult:
    """What the chosen attackers read of one attribute from one representation; figures in [0, 1]."""

    attacker: str
    """The one chosen in most folds."""
    attacker_by_fold: tuple[str, ...]
    num_users: int
    """Test users."""
    num_permutations: int
    """Draws behind each null: of few it is wide."""
    balanced_accuracy: Interval
    auc: Interval
    micro_f1: Interval
    majority_rate: float
    chance: float
    """Balanced accuracy of an attacker that looks at nothing: 1 / (values that occur)."""
    null: tuple[float, float]
    """95% of the balanced accuracies without leakage."""
    auc_null: tuple[float, float]
    by_attacker: Mapping[str, AttackerFigures]
    """`paper` gives paper B's micro-F1. No choice may be made from these: they are of the test users."""

    @property
    def readable(self) -> bool:
        """True if the best attacker beats the null, in balanced accuracy or in AUC."""
        return self.balanced_accuracy.value > self.null[1] or self.auc.value > self.auc_null[1]

    @property
    def hidden(self) -> bool | None:
        """Not readable; None where nothing could have been told: the nulls of very few users leave no room above."""
        told = self.null[1] < 1 and self.auc_null[1] < 1  # False of NaN too
        return not self.readable if told or self.readable else None

    def flat(self) -> dict[str, float | int | str]:
        """Flat keys for the report, each attacker's own as `<attacker>/<figure>`."""
        flat: dict[str, float | int | str] = {"attacker": self.attacker, "num_users": self.num_users}
        flat["num_permutations"] = self.num_permutations
        for name, found in (
            ("balanced_accuracy", self.balanced_accuracy),
            ("auc", self.auc),
            ("micro_f1", self.micro_f1),
        ):
            flat |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        flat |= {"majority_rate": self.majority_rate, "chance": self.chance}
        flat |= {"null_low": self.null[0], "null_high": self.null[1]}
        flat |= {"auc_null_low": self.auc_null[0], "auc_null_high": self.auc_null[1]}
        for attacker, figures in self.by_attacker.items():
            flat |= {f"{attacker}/{name}": value for name, value in figures._asdict().items()}
        return flat


def summarise(
    best: np.ndarray,
    found: Mapping[str, np.ndarray],
    labelings: np.ndarray,
    folds: np.ndarray,
    weights: np.ndarray,
    by_fold: tuple[str, ...],
    num_users: int,
) -> AuditResult:
    """Figures from the test users' log probabilities, chosen attackers' (P, N, A), each one's (N, A).

    A user that was tested several times, in other folds, has so many rows, all with the user's weights.

    `labelings` (P, N) and `folds` (N,) are theirs, `weights` (R, N) bootstrap weights with ones in row 0.
    """
    num_values, labels = best.shape[-1], labelings[0]
    plain = weights[:1]
    predictions = best.argmax(axis=-1)  # (P, N)
    drawn = [
        (balanced_accuracy(p, y, plain, num_values)[0], macro_auc(s, y, plain, folds)[0])
        for p, s, y in zip(predictions[1:], best[1:], labelings[1:], strict=True)
    ]
    nulls = [prediction_interval(np.array(figure)) for figure in zip(*drawn, strict=True)]
    by_attacker = {
        name: AttackerFigures(
            float(balanced_accuracy(s.argmax(axis=-1), labels, plain, num_values)[0]),
            float(macro_auc(s, labels, plain, folds)[0]),
            float(micro_f1(s.argmax(axis=-1), labels, plain)[0]),
        )
        for name, s in found.items()
    }
    return AuditResult(
        attacker=Counter(by_fold).most_common(1)[0][0],
        attacker_by_fold=by_fold,
        num_users=num_users,
        num_permutations=len(labelings) - 1,
        balanced_accuracy=interval(balanced_accuracy(predictions[0], labels, weights, num_values)),
        auc=interval(macro_auc(best[0], labels, weights, folds)),
        micro_f1=interval(micro_f1(predictions[0], labels, weights)),
        majority_rate=majority_rate(labels),
        chance=1 / len(np.unique(labels)),
        null=nulls[0],
        auc_null=nulls[1],
        by_attacker=by_attacker,
    )


def prediction_interval(draws: np.ndarray) -> tuple[float, float]:
    """Where one more draw of the same normal distribution falls with 95%: (B,) -> low, high within [0, 1]."""
    draws = draws[np.isfinite(draws)]
    if len(draws) < 2:
        return float("nan"), float("nan")
    reach = stdtrit(len(draws) - 1, (1 + LEVEL) / 2) * draws.std(ddof=1) * np.sqrt(1 + 1 / len(draws))
    return float(max(draws.mean() - reach, 0)), float(min(draws.mean() + reach, 1))

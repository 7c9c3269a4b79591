"""How much a linear probe reads of attributes in vectors, and in which more.

Legend: `N` vectors, maybe several a user, `d` width, `m` attributes, `A` values, `F` folds, `P` penalties, `R`
bootstrap replicates. All vectors of a user are in one fold and count together in a replicate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from mtrec_ray.evaluation.audit_metrics import macro_auc
from mtrec_ray.evaluation.intervals import poisson_weights
from mtrec_ray.hashing import mix

FOLDS = 5
RIDGES = np.logspace(-3, 2, 6)  # penalties tried, per vector and per mean variance of the vectors
NUM_BOOTSTRAP = 200
BEYOND_CHANCE = 2.5  # standard errors; of vectors that leak alike, 0.6% lie as far above


@dataclass(frozen=True)
class ProbeScores:
    """Scores of an attribute's values by probes of other folds, of users who have it."""

    scores: np.ndarray  # (N, A)
    values: np.ndarray  # (N,)
    fold: np.ndarray  # (N,)
    keys: np.ndarray  # (N,) uint64 of the user

    @property
    def auc(self) -> float:
        """Macro AUC within folds, rounded so that unlike workers agree; NaN without a pair."""
        return round(float(self._aucs(np.ones((1, len(self.values))))[0]), 6)

    def only(self, keys: np.ndarray) -> "ProbeScores":
        """Of some users; the probes were fitted on others too."""
        of = np.isin(self.keys, keys)
        return ProbeScores(self.scores[of], self.values[of], self.fold[of], self.keys[of])

    def errors_above(self, other: "ProbeScores") -> float:
        """Difference of AUC to other vectors of these users, in its standard errors.

        The error is that of a bootstrap over users, paired: both are resampled alike (Poisson weights). 0 if undefined.
        """
        weights = poisson_weights(self.keys, NUM_BOOTSTRAP)  # (R, N)
        differences = self._aucs(weights) - other._aucs(weights)
        drawn = differences[1:][np.isfinite(differences[1:])]
        error = drawn.std() if len(drawn) else 0.0
        return round(float(np.nan_to_num(differences[0] / error)), 4) if error > 0 else 0.0

    def _aucs(self, weights: np.ndarray) -> np.ndarray:
        return macro_auc(self.scores, self.values, weights, self.fold)


def probe_leakage(vectors: Tensor, values: Tensor, keys: np.ndarray, num_values: Mapping[str, int]) -> dict[str, float]:
    """2 AUC - 1 of each attribute's probe, macro over values; 0 at chance or below.

    Also 0 for too few users. (N, d) vectors of users whose values (N, m), -1 unknown, may be seen; (N,) keys, of which
    the bits count.
    """
    found = {}
    for (name, size), column in zip(num_values.items(), values.t(), strict=True):
        probed = probe_attribute(vectors, column, keys, size)
        found[name] = 0.0 if probed is None else max(0.0, round(2 * float(np.nan_to_num(probed.auc, nan=0.5)) - 1, 6))
    return found


def probe_attribute(vectors: Tensor, values: Tensor, keys: np.ndarray, num_values: int) -> ProbeScores | None:
    """Scores of one attribute by cross-fitted ridge regression; None if too few users have it.

    (N, d) vectors, (N,) values, -1 unknown, (N,) keys. A fold's probe and its penalty are fitted on the other folds.
    """
    vectors, values = vectors.cpu().double(), values.cpu()
    known = values >= 0
    vectors, values, keys = vectors[known], values[known], keys[known.numpy()].view(np.uint64)
    fold = (mix(keys, "readable") % np.uint64(FOLDS)).astype(np.int64)
    if len(np.unique(fold)) < 3 or len(values.unique()) < 2:
        return None
    scores = _cross_fitted_scores(vectors, one_hot(values, num_values).double(), torch.from_numpy(fold))
    return ProbeScores(scores.numpy(), values.numpy(), fold, keys)


def _cross_fitted_scores(vectors: Tensor, targets: Tensor, fold: Tensor) -> Tensor:
    """(N, d), (N, A), (N,) -> (N, A); every fit is of sums over some folds, made once."""
    centred = vectors - vectors.mean(0)
    rows = pad(centred, (0, 1), value=1.0)  # (N, d + 1) with the intercept, which is not penalised
    members = [(fold == number).nonzero()[:, 0] for number in fold.unique()]
    products = torch.stack([rows[own].t() @ rows[own] for own in members])  # (F, d + 1, d + 1)
    sums = torch.stack([rows[own].t() @ targets[own] for own in members])  # (F, d + 1, A)
    sizes = torch.tensor([float(len(own)) for own in members])
    scale = torch.from_numpy(RIDGES) * max(float(centred.var(0).mean()), 1e-12)  # (P,)
    diagonal = torch.diag(pad(torch.ones(vectors.shape[1], dtype=rows.dtype), (0, 1)))

    def fit(*left_out: int) -> Tensor:
        """(P, d + 1, A) coefficients of all folds but some."""
        others = [number for number in range(len(members)) if number not in left_out]
        penalty = (scale * sizes[others].sum())[:, None, None] * diagonal
        return torch.linalg.solve(products[others].sum(0) + penalty, sums[others].sum(0).expand(len(scale), -1, -1))

    errors = torch.zeros(len(members), len(scale), dtype=rows.dtype)  # of each fold's penalties, on the other folds
    for one, other in combinations(range(len(members)), 2):
        coefficients = fit(one, other)
        for outer, inner in ((one, other), (other, one)):
            own = members[inner]
            errors[outer] += (rows[own] @ coefficients - targets[own]).square().sum((1, 2))
    scores = torch.zeros_like(targets)
    for number, own in enumerate(members):
        scores[own] = rows[own] @ fit(number)[errors[number].argmin()]
    return scores

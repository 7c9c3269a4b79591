"""How much a linear probe reads of each attribute in the backbone's vectors."""

from collections.abc import Mapping

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from torch import Tensor
from torch.nn.functional import one_hot

from mtrec_ray.evaluation.audit_metrics import macro_auc
from mtrec_ray.hashing import mix

FOLDS = 5
RIDGES = np.logspace(-3, 2, 6)  # penalties tried, per user and per mean variance of the vectors


def probe_leakage(vectors: Tensor, values: Tensor, keys: np.ndarray, num_values: Mapping[str, int]) -> dict[str, float]:
    """2 AUC - 1 of cross-fitted ridge probes, macro over values; 0 at chance or below.

    (U, d) vectors of users whose values (U, m), -1 unknown, may be seen; (U,) keys, of which the bits count.
    """
    fold = (mix(keys, "readable") % np.uint64(FOLDS)).astype(np.int64)
    of_attributes = zip(num_values.items(), values.cpu().t(), strict=True)
    return {name: _attribute_leakage(vectors.cpu(), column, fold, size) for (name, size), column in of_attributes}


def _attribute_leakage(vectors: Tensor, values: Tensor, fold: np.ndarray, num_values: int) -> float:
    """Leakage of one attribute to users who have it; 0 if they are too few."""
    known = values >= 0
    vectors, values, fold = vectors[known], values[known], fold[known.numpy()]
    if len(np.unique(fold)) < 2 or len(values.unique()) < 2:
        return 0.0
    ridges = RIDGES * len(vectors) * max(float(vectors.var(0).mean()), 1e-12)
    targets = one_hot(values, num_values).double()
    cv = PredefinedSplit(fold)
    scores = np.asarray(cross_val_predict(RidgeCV(ridges), vectors.double().numpy(), targets.numpy(), cv=cv))
    auc = macro_auc(scores, values.numpy(), np.ones((1, len(values))), fold)[0]
    return max(0.0, round(2 * float(np.nan_to_num(auc, nan=0.5)) - 1, 6))  # so that unlike workers agree

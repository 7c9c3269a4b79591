"""Scores for evaluation: every user against every title."""

import torch
from torch import Tensor

from mtrec_ray.models.two_tower import TwoTower


@torch.no_grad()
def score_users(
    model: TwoTower,
    user_features: Tensor,
    group_index: Tensor,
    title_vectors: Tensor,
    *,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """Logits of a chunk of users for all titles, with the running batch-norm statistics.

    Args:
        user_features: (U, user_width) any float dtype, in any order, on the model's device; U = 0 is allowed.
        group_index: (U,) int64 territory group of each user.
        title_vectors: (T, d) from `model.title_vectors`, computed once for all chunks.

    Returns (U, T) logits; the propensity is their sigmoid.
    """
    return model.logits(model.user_vectors(user_features, group_index, compute_dtype), title_vectors, compute_dtype)

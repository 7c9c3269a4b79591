"""Both ways to score pairs equal one dot product per pair."""

import numpy as np
import pytest
import torch

from mtrec_ray.steps import pair_scores
from mtrec_ray.steps.pair_scores import pair_dots
from tests.steps.cases import D, make_batch, make_users

USERS = make_users(0, np.array([3, 0, 5, 2]), np.array([2, 0, 1, 2]))
NOBODY = make_users(0, np.zeros(2, int), np.array([0, 1]))


@pytest.mark.parametrize("cells_per_pair", [100, 0], ids=["dense", "gathered"])
@pytest.mark.parametrize("users", [USERS, NOBODY], ids=["pairs", "no pairs"])
def test_dots_and_gradients_equal_one_product_per_pair(users, cells_per_pair, monkeypatch):
    monkeypatch.setattr(pair_scores, "CELLS_PER_PAIR", cells_per_pair)
    batch = make_batch(users)
    user_vectors = torch.randn(len(batch.user_features), D, dtype=torch.float64).requires_grad_()
    title_vectors = torch.randn(len(batch.title_features), D, dtype=torch.float64).requires_grad_()
    expected = (user_vectors[batch.user_rows] * title_vectors[batch.title_rows]).sum(1)
    torch.testing.assert_close(pair_dots(user_vectors, title_vectors, batch), expected)
    if batch.num_pairs:
        assert torch.autograd.gradcheck(lambda u, t: pair_dots(u, t, batch), (user_vectors, title_vectors))

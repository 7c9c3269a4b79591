"""Both ways to score pairs equal one dot product per pair."""

import numpy as np
import pytest
import torch

from mtrec_ray.steps.pair_scores import dense_is_cheaper, pair_dots
from tests.steps.cases import D, make_batch, make_users

USERS = make_users(0, np.array([3, 0, 5, 2]), np.array([2, 0, 1, 2]))
NOBODY = make_users(0, np.zeros(2, int), np.array([0, 1]))


@pytest.mark.parametrize("dense", [True, False], ids=["dense", "gathered"])
@pytest.mark.parametrize("users", [USERS, NOBODY], ids=["pairs", "no pairs"])
def test_equals_one_product_per_pair(users, dense):
    batch = make_batch(users)
    user_vectors = torch.randn(len(batch.user_features), D, dtype=torch.float64).requires_grad_()
    title_vectors = torch.randn(len(batch.title_features), D, dtype=torch.float64).requires_grad_()
    expected = (user_vectors[batch.user_rows] * title_vectors[batch.title_rows]).sum(1)
    torch.testing.assert_close(pair_dots(user_vectors, title_vectors, batch, dense=dense), expected)
    if batch.num_pairs:
        assert torch.autograd.gradcheck(lambda u, t: pair_dots(u, t, batch, dense=dense), (user_vectors, title_vectors))


def test_dense_where_most_cells_are_pairs():
    assert dense_is_cheaper(make_batch(make_users(0, np.full(4, 8), np.zeros(4, int))))
    assert not dense_is_cheaper(make_batch(make_users(0, np.ones(9, int), np.zeros(9, int))))

"""`make_pair_batch`: pairs have their own user, title, label and prior; users sorted by group, titles distinct."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.steps.batch import make_pair_batch

CATALOGUE = torch.arange(20, dtype=torch.float16).view(10, 2)


def make(users, groups, offsets, titles, labels, **settings):
    return make_pair_batch(
        np.asarray(users, np.float16).reshape(-1, 1),
        np.asarray(groups),
        np.asarray(offsets),
        np.asarray(titles),
        np.asarray(labels),
        CATALOGUE,
        num_groups=3,
        **settings,
    )


def test_batch_equals_one_by_hand():
    batch = make([10, 11, 12], [2, 0, 2], [0, 2, 2, 3], [7, 4, 7], [1, 0, 0])
    assert batch.user_features[:, 0].tolist() == [11, 10, 12]
    assert batch.group_offsets == (0, 1, 1, 3)
    assert batch.title_features.tolist() == [[8, 9], [14, 15]]
    assert batch.user_rows.tolist() == [1, 1, 2]
    assert batch.title_rows.tolist() == [1, 0, 1]
    assert batch.labels.tolist() == [1, 0, 0]
    assert batch.user_offsets.tolist() == [0, 0, 2, 3]
    assert batch.title_order.tolist() == [1, 0, 2]
    assert batch.title_offsets.tolist() == [0, 1, 3]
    assert batch.user_features.dtype == batch.title_features.dtype == batch.labels.dtype == torch.float32


def test_batch_without_users_has_no_rows():
    batch = make([], [], [0], [], [])
    assert batch.num_pairs == 0
    assert batch.user_features.shape == (0, 1)
    assert batch.title_features.shape == (0, 2)
    assert batch.group_offsets == (0, 0, 0, 0)
    assert batch.user_offsets.tolist() == batch.title_offsets.tolist() == [0]


@given(seed=st.integers(0, 2**32 - 1), num_users=st.integers(0, 30))
def test_pairs_have_their_own_user_title_label_and_prior(seed, num_users):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], rng.integers(0, 4, num_users).cumsum()])
    groups, titles = rng.integers(0, 3, num_users), rng.integers(0, 10, offsets[-1])
    labels = rng.integers(0, 2, offsets[-1])
    prior = rng.integers(-9, 9, offsets[-1])
    batch = make(np.arange(num_users), groups, offsets, titles, labels, prior=prior)
    users = batch.user_features[batch.user_rows, 0].long().numpy()
    title = batch.title_features[batch.title_rows, 0].int().numpy() // 2
    pairs = sorted(zip(users, title, batch.labels.tolist(), batch.prior.tolist(), strict=True))
    users = np.repeat(np.arange(num_users), np.diff(offsets))
    expected = sorted(zip(users, titles, labels, prior, strict=True))
    assert pairs == expected
    assert (batch.user_rows.diff() >= 0).all()
    assert len(batch.title_features.unique(dim=0)) == len(batch.title_features)
    sorted_groups = groups[batch.user_features[:, 0].long().numpy()]
    for g in range(3):
        assert (sorted_groups[batch.group_offsets[g] : batch.group_offsets[g + 1]] == g).all()

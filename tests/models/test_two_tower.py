"""The two-tower modules: shapes, start, inference, state."""

from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig

BLOCKS = ("none", *GROUP_BLOCKS)
TERRITORY = torch.tensor([1, 0, 3, 2, 1, 1])


def make_model(group_block: Any, seed: int = 0, **settings: Any) -> TwoTower:
    num_groups = 1 if group_block == "none" else 3
    model = TwoTower(TwoTowerConfig(5, 6, 8, num_groups, (9, 0, 70, 5), group_block, **settings))
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("group_block", BLOCKS)
def test_vectors_are_float32_and_have_a_row_an_input(group_block):
    model = make_model(group_block)
    users = model.user_vectors(torch.randn(4, 5).half(), torch.zeros(4, dtype=torch.int64), TERRITORY[:4])
    titles = model.title_vectors(torch.randn(7, 6).half())
    assert users.shape == (4, 8)
    assert titles.shape == (7, 8)
    assert model.logits(users, titles).shape == (4, 7)
    assert users.dtype == titles.dtype == torch.float32
    assert model.user_vectors(torch.empty(0, 5), TERRITORY[:0], TERRITORY[:0]).shape == (0, 8)


@pytest.mark.parametrize("group_block", list(GROUP_BLOCKS))
def test_blocks_start_at_the_baseline(group_block):
    features, groups = torch.randn(6, 5), torch.tensor([2, 1, 0, 0, 1, 2])
    expected = make_model("none").user_vectors(features, groups)
    model = make_model(group_block)
    model.user_tower.load_state_dict(make_model("none").user_tower.state_dict())
    torch.testing.assert_close(model.user_vectors(features, groups, TERRITORY), expected)


def test_paper_a_literally_has_no_propensity_below_a_half():
    model = make_model("dense", paper=True)
    users, titles = model.user_vectors(torch.randn(9, 5), torch.arange(9) % 3), model.title_vectors(torch.randn(4, 6))
    assert model.bias is None
    torch.testing.assert_close(model.logits(users, titles), users @ titles.T)
    assert (model.logits(users, titles) >= 0).all()


def test_block_and_tower_parameters_are_disjoint():
    model = make_model("dense")
    assert model.group_block is not None
    both = [*model.tower_parameters(), *model.group_block.parameters()]
    assert len(both) == len(list(model.parameters()))
    assert {id(p) for p in both} == {id(p) for p in model.parameters()}


def test_aligned_towers_start_as_the_dot_product_of_the_shared_space():
    config = TwoTowerConfig(user_width=8, title_width=8, d=16, aligned_width=8, initial_bias=-2.0)
    model = TwoTower(config)
    model.init_weights(torch.Generator().manual_seed(0))
    users, titles = torch.randn(50, 8), torch.randn(60, 8)
    group = torch.zeros(50, dtype=torch.int64)
    logits = model.logits(model.user_vectors(users, group), model.title_vectors(titles))
    expected = users @ titles.T / (1 + 1e-5) / 16**0.5 - 2.0  # a fresh batch norm only divides by sqrt(1 + eps)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_alignment_leaves_the_first_title_columns_random():
    config = TwoTowerConfig(user_width=6, title_width=10, d=12, aligned_width=6)
    model = TwoTower(config)
    model.init_weights(torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.user_tower.first, model.title_tower.first[:, -6:])
    assert model.title_tower.first[:, :4].abs().min() > 0


def test_one_hot_columns_do_not_change_what_the_others_start_from():
    plain, model = make_model("hierarchical"), make_model("hierarchical", one_hot_of_territory=(0, 1, 0))
    assert model.one_hot is not None
    assert model.one_hot.shape == (2, 8)
    assert 0 < model.one_hot.abs().min() < model.one_hot.abs().max() < (5 + 2) ** -0.5
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


PRIOR: dict[str, Any] = {"prior_shape": (2, 7, 4)}


@pytest.mark.parametrize("aligned", [0, 4])
def test_prior_is_added_to_logits(aligned):
    """Where user vectors are made of watched titles, it replaces the dot product of those."""
    model, rng = make_model("none", aligned_width=aligned, initial_bias=-1.5, **PRIOR), np.random.default_rng(0)
    titles_prior, users_prior = rng.normal(size=(2, 7)), rng.normal(size=4)
    values = {"title_prior": titles_prior, "user_prior": users_prior, "seen_prior": np.array(-0.75)}
    for name, value in values.items():
        model.get_buffer(name).copy_(torch.from_numpy(value))
    logits, seen = rng.normal(size=(3, 5)), rng.random((3, 5)) < 0.4
    titles, activity = np.array([6, 0, 2, 3, 1]), np.array([3, 0, 1])
    arguments = torch.from_numpy(titles), torch.from_numpy(activity), torch.from_numpy(seen)
    found = model.with_prior(torch.from_numpy(logits), 1, *arguments)
    own = np.where(seen, -1.5, logits) if aligned else logits
    expected = own - 0.75 * seen + users_prior[activity, None] + titles_prior[1, titles]
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)
    everything = model.with_prior(torch.zeros(1, 7), 0, slice(None), None, torch.zeros(1, 7, dtype=torch.bool))
    torch.testing.assert_close(everything, torch.from_numpy(titles_prior[:1]).float())


def test_without_a_prior_logits_stay_as_they_are():
    model, logits = make_model("none"), torch.randn(2, 3)
    assert model.title_prior is model.user_prior is model.seen_prior is model.gain is None
    assert model.with_prior(logits, 0, slice(None), None, torch.ones(2, 3, dtype=torch.bool)) is logits


@pytest.mark.parametrize("block", ["none", "dense"])
def test_beside_the_prior_user_vectors_of_interactions_are_equally_long(block):
    """How active a user is, the prior knows; without it their lengths differ, as do those of other towers."""
    features, groups = torch.randn(6, 5) * torch.logspace(0, 3, 6)[:, None], torch.tensor([2, 0, 1, 1, 0, 2])
    lengths = {
        (aligned, bool(prior)): make_model(block, aligned_width=aligned, **prior)
        .user_vectors(features, groups * (block != "none"))
        .norm(dim=1)
        for aligned in (0, 4)
        for prior in ({}, PRIOR)
    }
    torch.testing.assert_close(lengths.pop((4, True)), torch.full((6,), 8**0.5), rtol=1e-3, atol=0)
    assert all(found.max() > 2 * found.min() for found in lengths.values())


def test_gain_of_aligned_towers_starts_at_the_prior_alone():
    """It scales the dot product, and has a rate of its own."""
    model = make_model("none", aligned_width=4, initial_bias=-1.5, **PRIOR)
    assert make_model("none", **PRIOR).gain is None
    assert model.gain is not None
    users, titles = torch.randn(4, 8), torch.randn(5, 8)
    assert (model.logits(users, titles) == -1.5).all()
    model.gain.data.fill_(0.5)
    torch.testing.assert_close(model.logits(users, titles), 0.5 * users @ titles.T / 8**0.5 - 1.5)
    assert all(parameter is not model.gain for parameter in model.tower_parameters())

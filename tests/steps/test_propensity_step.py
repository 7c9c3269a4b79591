"""The step equals the pair-by-pair model: loss, gradients, running statistics; scores for all titles."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray import process
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps import propensity
from mtrec_ray.steps.batch import PairBatch
from mtrec_ray.steps.propensity import loss_and_gradients, pair_dots
from tests.steps.cases import (
    BLOCKS,
    NUM_GROUPS,
    NUM_TITLES,
    ONE_HOT,
    TITLE_WIDTH,
    USER_WIDTH,
    D,
    gradients,
    make_batch,
    make_model,
    make_users,
)
from tests.steps.reference import PairByPair, deduplicated_loss, group_part

GROUPED = make_users(0, np.array([3, 0, 5, 2, 1, 0, 4, 3, 2, 6]), np.array([2, 0, 1, 2, 0, 1, 0, 2, 2, 1]))
DISTINCT = make_users(1, np.ones(12, int), np.array([2, 0, 1, 2, 0, 1, 0, 2, 2, 1, 0, 1]))
EMPTY_GROUP = make_users(2, np.array([3, 1, 5, 2]), np.array([2, 0, 0, 2]))
SEVERAL_TILES = make_users(3, np.arange(600) % 3, np.arange(600) % 2)
GAIN = {"prior_shape": (2, NUM_TITLES, 1), "aligned_width": 2}  # towers whose dot product has a learned factor
NOBODY = make_users(0, np.zeros(2, int), np.array([0, 1]))
USERS = {"grouped": GROUPED, "distinct": DISTINCT, "empty group": EMPTY_GROUP, "several tiles": SEVERAL_TILES}


def assert_equals_pair_by_pair(model: TwoTower, batch: PairBatch) -> None:
    plain = PairByPair(copy.deepcopy(model))
    expected_loss = plain(batch)
    expected_loss.backward()
    loss = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-10, atol=1e-12)
    expected = gradients(plain.model)
    smallest = 1e-12 * max(1.0, *(float(gradient.norm()) for gradient in expected.values()))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=smallest, msg=name)
    running = [buffer for name, buffer in model.named_buffers() if "running" in name]
    for buffer, expected in zip(running, plain.running_statistics(), strict=True):
        torch.testing.assert_close(buffer, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cells_per_pair", [100, 0], ids=["dense", "gathered"])
@pytest.mark.parametrize("settings", [{}, {"paper": True}, {"one_hot_of_territory": ONE_HOT}, GAIN], ids=str)
@pytest.mark.parametrize("group_block", BLOCKS)
@pytest.mark.parametrize("users", USERS)
def test_loss_and_gradients_equal_those_pair_by_pair(users, group_block, settings, cells_per_pair, monkeypatch):
    monkeypatch.setattr(propensity, "CELLS_PER_PAIR", cells_per_pair)
    assert_equals_pair_by_pair(make_model(group_block=group_block, **settings), make_batch(USERS[users]))


@pytest.mark.parametrize("cells_per_pair", [100, 0], ids=["dense", "gathered"])
@pytest.mark.parametrize("users", [GROUPED, NOBODY], ids=["pairs", "no pairs"])
def test_dots_and_gradients_equal_one_product_per_pair(users, cells_per_pair, monkeypatch):
    monkeypatch.setattr(propensity, "CELLS_PER_PAIR", cells_per_pair)
    batch = make_batch(users)
    user_vectors = torch.randn(len(batch.user_features), D, dtype=torch.float64).requires_grad_()
    title_vectors = torch.randn(len(batch.title_features), D, dtype=torch.float64).requires_grad_()
    expected = (user_vectors[batch.user_rows] * title_vectors[batch.title_rows]).sum(1)
    torch.testing.assert_close(pair_dots(user_vectors, title_vectors, batch), expected)
    if batch.num_pairs:
        assert torch.autograd.gradcheck(lambda u, t: pair_dots(u, t, batch), (user_vectors, title_vectors))


@given(data=st.data(), block=st.sampled_from(BLOCKS))
@settings(max_examples=60, deadline=None)
def test_loss_and_gradients_equal_those_pair_by_pair_for_any_shape(data, block):
    num_users = data.draw(st.integers(2, 30))
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    pairs_each = rng.integers(0, data.draw(st.integers(2, 5)), num_users)
    pairs_each[:2] += 1  # torch's batch norm needs two pairs
    users = make_users(seed, pairs_each, rng.integers(0, NUM_GROUPS, num_users))
    users["title_index"][:2] = 0, 1  # and a variance that is not zero
    assert_equals_pair_by_pair(make_model(group_block=block), make_batch(users))


def test_deduplicated_autograd_is_the_same_loss():
    model, batch = make_model(group_block="dense"), make_batch(GROUPED)
    expected = PairByPair(copy.deepcopy(model))(batch)
    for dense in (True, False):
        torch.testing.assert_close(deduplicated_loss(model, batch, dense=dense), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("group_block", BLOCKS)
def test_gradient_reaches_every_parameter(group_block):
    model = make_model(group_block=group_block, one_hot_of_territory=ONE_HOT)
    loss_and_gradients(model, make_batch(GROUPED))
    assert len(gradients(model)) == len(list(model.parameters()))
    for name, gradient in gradients(model).items():
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("group_block", BLOCKS)
def test_overfits_one_batch(group_block):
    users = make_users(3, np.ones(9, int), np.arange(9) % NUM_GROUPS)
    users["title_index"] = np.arange(9) % NUM_TITLES
    model = make_model(group_block=group_block, perturb=False, dtype=torch.float32)
    batch = make_batch(users, torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    losses = [step(model, optimizer, batch) for _ in range(300)]
    assert losses[0] > 0.4
    assert losses[-1] < 0.02


def step(model: TwoTower, optimizer: torch.optim.Optimizer, batch: PairBatch) -> float:
    loss = loss_and_gradients(model, batch).item()
    optimizer.step()
    return loss


def test_same_seed_gives_the_same_losses():
    def run() -> tuple[list[float], list[torch.Tensor]]:
        model = make_model(seed=5, group_block="dense", dtype=torch.float32)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
        batch = make_batch(GROUPED, torch.float32)
        return [step(model, optimizer, batch) for _ in range(5)], list(model.state_dict().values())

    (losses, state), (losses_again, state_again) = run(), run()
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(state, state_again, strict=True))


def test_bfloat16_products_are_close_to_float32():
    """Rounding the products' inputs moves each gradient by a few percent and leaves its type."""
    users = make_users(4, np.full(200, 4), np.arange(200) % NUM_GROUPS)
    batch = make_batch(users, torch.float32)
    exact, rounded = (make_model(d=64, group_block="dense", dtype=torch.float32) for _ in range(2))
    loss = loss_and_gradients(exact, batch)
    rounded_loss = loss_and_gradients(rounded, batch, compute_dtype=torch.bfloat16)
    assert rounded_loss.item() == pytest.approx(loss.item(), rel=5e-3)
    for name, gradient in gradients(exact).items():
        error = gradients(rounded)[name] - gradient
        assert error.dtype == torch.float32
        assert error.norm() < 0.1 * gradient.norm(), name


@pytest.fixture
def exact_matmul():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("exact_matmul")
def test_float32_is_close_to_float64_on_the_fast_path():
    taken = process.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == ("medium" if taken else "highest")
    assert process.matmul_error() <= process.MAX_RELATIVE_ERROR
    exact = make_model(group_block="dense")
    model = make_model(group_block="dense").float()
    loss = loss_and_gradients(model, make_batch(GROUPED, torch.float32))
    assert loss.item() == pytest.approx(loss_and_gradients(exact, make_batch(GROUPED)).item(), rel=1e-5)


@pytest.mark.usefixtures("exact_matmul")
@pytest.mark.parametrize(("cuda", "error"), [(False, 2e-3), (True, 0.0)], ids=["products are rounded", "cuda"])
def test_fast_path_is_not_taken(monkeypatch, cuda, error):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(process, "matmul_error", lambda: error)
    assert not process.use_fast_matmul()
    assert torch.get_float32_matmul_precision() == "highest"


GROUPS = torch.tensor([2, 0, 2, 1, 0])


def make_features() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(len(GROUPS), USER_WIDTH, generator=generator, dtype=torch.float64)
    return users, torch.randn(NUM_TITLES, TITLE_WIDTH, generator=generator, dtype=torch.float64)


def test_users_pass_through_the_part_of_their_group_and_territory():
    users, titles = make_features()
    territory = torch.tensor([3, 0, 2, 4, 0])
    for block in BLOCKS:
        model = make_model(group_block=block)
        scores = model.logits(model.user_vectors(users, GROUPS, territory), model.title_vectors(titles))
        assert scores.shape == (len(GROUPS), NUM_TITLES)
        for row, group in enumerate(GROUPS.tolist()):
            vector = model.user_tower(users[row : row + 1])
            if block != "none":
                vector = group_part(model, vector, group, territory[row : row + 1])
            expected = model.logits(vector, model.title_vectors(titles))
            torch.testing.assert_close(scores[row : row + 1], expected, rtol=1e-10, atol=1e-12)


def test_a_territory_is_a_one_hot_input_beside_the_users_vector():
    users, titles = make_features()
    model, territory = make_model(one_hot_of_territory=ONE_HOT), torch.tensor([3, 0, 2, 4, 1])
    assert model.one_hot is not None
    scores = model.logits(model.user_vectors(users, GROUPS, territory), model.title_vectors(titles))
    wider = make_model()
    wider.load_state_dict({name: value for name, value in model.state_dict().items() if name != "one_hot"})
    one_hot = torch.nn.functional.one_hot(torch.tensor(ONE_HOT)[territory], 3).to(users)  # beside the user's vector
    wider.user_tower.first = torch.nn.Parameter(torch.cat([model.user_tower.first, model.one_hot.t()], dim=1))
    wider_users = wider.user_vectors(torch.cat([users, one_hot], dim=1), GROUPS)
    torch.testing.assert_close(scores, wider.logits(wider_users, wider.title_vectors(titles)), rtol=1e-12, atol=1e-14)


def test_chunks_and_order_do_not_matter():
    users, titles = make_features()
    model = make_model(group_block="dense")
    vectors = model.title_vectors(titles)
    whole = model.logits(model.user_vectors(users, GROUPS), vectors)
    parts = [model.logits(model.user_vectors(users[rows], GROUPS[rows]), vectors) for rows in ([4, 1], [3], [])]
    torch.testing.assert_close(torch.cat(parts), whole[[4, 1, 3]], rtol=1e-12, atol=1e-14)

"""Discriminators: shapes, missing values, unknown users, weights, several workers, seeds."""

import pytest
import torch
from torch import Tensor

from mtrec_ray.combinations import Combination
from mtrec_ray.models.discriminators import Discriminators, value_weights
from mtrec_ray.workers import AllReduce
from tests.steps.cases import gradients, in_lock_step

ATTRIBUTES = {"gender": 2, "age": 3}
COMBINATIONS: list[Combination] = [("gender",), ("age",), ("gender", "age")]
PAIRS = [(0, 0), (1, 1), (2, 0), (2, 1)]
"""Combination and attribute of each discriminator."""
COUNTS = [[9, 4], [1, 16, 4]]
WEIGHTS = value_weights(COUNTS, power=0.5)
D, S = 8, 6
VALUES = torch.tensor([[0, 2], [1, -1], [-1, 1], [1, 0], [-1, -1], [0, 1]])  # (S, m)


def make_discriminators(seed: int = 0, combinations: list[Combination] = COMBINATIONS) -> Discriminators:
    discriminators = Discriminators(ATTRIBUTES, combinations, width=D, hidden=5).double()
    discriminators.init_weights(seed)
    return discriminators


def make_vectors(seed: int = 0, num: int = len(COMBINATIONS)) -> Tensor:
    return torch.randn(num, S, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13, check_dtype=False)


def test_logits_have_a_row_a_pair_and_missing_values_none():
    logits = make_discriminators()(make_vectors())  # (D, S, A)
    assert logits.shape == (len(PAIRS), S, 3)
    assert logits.dtype == torch.float64
    assert make_discriminators().float()(make_vectors().float()).dtype == torch.float32
    for pair, (_, attribute) in enumerate(PAIRS):
        size = list(ATTRIBUTES.values())[attribute]
        assert logits[pair, :, :size].isfinite().all()
        assert (logits[pair, :, size:] == -torch.inf).all()


def test_each_pair_reads_the_vectors_of_its_combination():
    discriminators, vectors = make_discriminators(), make_vectors()
    logits = discriminators(vectors)
    for k in range(len(COMBINATIONS)):
        moved = vectors.clone()
        moved[k] += 1
        changed = [not torch.equal(one, other) for one, other in zip(discriminators(moved), logits, strict=True)]
        assert changed == [combination == k for combination, _ in PAIRS]


def test_losses_are_weighted_means_over_users_of_known_value():
    """The sum written out, one user after the other."""
    discriminators, vectors = make_discriminators(), make_vectors()
    losses = discriminators.losses(vectors, VALUES, WEIGHTS)
    logits = discriminators(vectors)
    for pair, (_, attribute) in enumerate(PAIRS):
        total = weighted = 0.0
        for user in range(S):
            value = int(VALUES[user, attribute])
            if value < 0:
                continue
            weight = COUNTS[attribute][value] ** -0.5
            total += weight
            weighted -= weight * logits[pair, user].softmax(-1)[value].log().item()
        assert losses[pair].item() == pytest.approx(weighted / total, rel=1e-6)


def test_unknown_values_neither_count_nor_give_gradient():
    discriminators, vectors = make_discriminators(), make_vectors().requires_grad_()
    losses = discriminators.losses(vectors, VALUES, WEIGHTS)
    for pair, (combination, attribute) in enumerate(PAIRS):
        (gradient,) = torch.autograd.grad(losses[pair], vectors, retain_graph=True)
        reached = gradient[combination].abs().sum(-1) > 0  # (S,)
        assert reached.tolist() == (VALUES[:, attribute] >= 0).tolist()
    moved = vectors.detach().clone()
    moved[:, 4] = 1e6  # nothing is known of this user
    close(discriminators.losses(moved, VALUES, WEIGHTS), losses)
    close(discriminators.losses(moved[:, [0, 1, 2, 3, 5]], VALUES[[0, 1, 2, 3, 5]], WEIGHTS), losses)


@pytest.mark.parametrize("num", [S, 0])
def test_without_known_values_loss_and_gradient_are_zero(num):
    discriminators = make_discriminators()
    losses = discriminators.losses(make_vectors()[:, :num], torch.full((num, 2), -1), WEIGHTS)
    losses.sum().backward()
    assert losses.tolist() == [0] * len(PAIRS)
    assert all(p.grad is not None and (p.grad == 0).all() for p in discriminators.parameters())


def test_gradient_reaches_every_parameter_of_every_pair_and_no_missing_value():
    discriminators = make_discriminators()
    discriminators.losses(make_vectors(), VALUES, WEIGHTS).sum().backward()
    for name, parameter in discriminators.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad.flatten(1).abs().sum(1) > 0).all(), name
    assert discriminators.outer.grad is not None
    assert (discriminators.outer.grad[[0, 2], :, 2] == 0).all()  # gender has no third value


def test_overfits_one_batch():
    discriminators, vectors = make_discriminators(), make_vectors()
    optimizer = torch.optim.RMSprop(discriminators.parameters(), lr=0.01)
    losses = torch.zeros(0)
    for _ in range(150):
        optimizer.zero_grad()
        losses = discriminators.losses(vectors, VALUES, WEIGHTS)
        losses.sum().backward()
        optimizer.step()
    assert losses.max() < 0.01


@pytest.mark.parametrize("cut", [3, 0], ids=["halves", "a worker without users"])
def test_losses_and_gradients_of_workers_add_up(cut):
    single, vectors = make_discriminators(), make_vectors()
    expected = single.losses(vectors, VALUES, WEIGHTS)
    expected.sum().backward()

    def work(rank: int, all_reduce: AllReduce) -> tuple[Tensor, dict[str, Tensor]]:
        worker, users = make_discriminators(), (slice(0, cut), slice(cut, S))[rank]
        losses = worker.losses(vectors[:, users], VALUES[users], WEIGHTS, all_reduce)
        losses.sum().backward()
        return losses.detach(), gradients(worker)

    (losses, one), (other_losses, other) = in_lock_step(work)
    close(losses + other_losses, expected.detach())
    assert len(gradients(single)) == len(one) == len(other) == len(list(single.parameters()))
    for name, gradient in gradients(single).items():
        close(one[name] + other[name], gradient)


def test_pack_equals_its_members_which_differ():
    together, vectors = make_discriminators(), make_vectors()
    assert not torch.equal(together.inner[0], together.inner[2])  # the same attribute in two combinations
    losses = together.losses(vectors, VALUES, WEIGHTS)
    for k, combination in enumerate(COMBINATIONS):
        alone = make_discriminators(combinations=[combination])
        mine = [pair for pair, (owner, _) in enumerate(PAIRS) if owner == k]
        for name, parameter in alone.named_parameters():
            assert torch.equal(parameter, together.get_parameter(name)[mine]), name
        close(alone.losses(vectors[k : k + 1], VALUES, WEIGHTS), losses[mine])


@pytest.mark.parametrize(
    ("counts", "power", "expected"),
    [
        (COUNTS, 0.0, [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]),
        (COUNTS, 0.5, [[1 / 3, 1 / 2, 0], [1, 1 / 4, 1 / 2]]),
        (COUNTS, 1.0, [[1 / 9, 1 / 4, 0], [1, 1 / 16, 1 / 4]]),
        ([[4, 0], [0, 0]], 0.5, [[0.5, 0], [0, 0]]),
    ],
    ids=["users equal", "between", "values equal", "values without users"],
)
def test_value_weights_equal_those_by_hand(counts, power, expected):
    torch.testing.assert_close(value_weights(counts, power=power), torch.tensor(expected))

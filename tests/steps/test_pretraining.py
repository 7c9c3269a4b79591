"""One pass over all positions equals one position per forward; losses by hand; masks of BERT4Rec; workers, seeds."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import SequentialConfig
from mtrec_ray.steps.pretraining import (
    LOSSES,
    Losses,
    Positions,
    bpr_losses,
    draw_negatives,
    positions_of,
    pretraining_step,
    softmax_losses,
)
from mtrec_ray.workers import AllReduce, single_worker
from tests.models.backbones import NUM_TITLES, SHAPE, D, L, make_backbone
from tests.steps.cases import gradients, in_lock_step

HISTORY = torch.tensor([[1, 2, 3, -1, -1, -1], [4, 5, 6, 7, 8, 9], [3, -1, -1, -1, -1, -1], [9, 1, 9, 2, -1, -1]])
TARGETS = torch.tensor([[2, 3, 4, -1, -1, -1], [5, 6, 7, 8, 9, 1], [8, -1, -1, -1, -1, -1], [1, 9, 2, 7, -1, -1]])
NEGATIVES = torch.tensor([3, 20, 21, 9, 20])


def make_positions(backbone: SequentialBackbone, seed: int = 0) -> Positions:
    torch.manual_seed(seed)
    return positions_of(backbone, HISTORY, TARGETS, mask_fraction=0.4)


@pytest.fixture(params=LOSSES)
def losses_of(request) -> Losses:
    return LOSSES[request.param]


def step(backbone: SequentialBackbone, positions: Positions, losses_of: Losses) -> Tensor:
    """Loss and gradients; the optimizer's rate is 0."""
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.0)
    return pretraining_step(backbone, optimizer, positions, NEGATIVES, losses_of)


def bpr_by_hand(scores: Tensor, target: int) -> Tensor:
    """The mean of -log sigmoid(u . positive - u . negative), from the scores of all titles."""
    return -torch.stack([scores[target] - scores[n] for n in NEGATIVES.tolist()]).sigmoid().log().mean()


def softmax_by_hand(scores: Tensor, target: int) -> Tensor:
    """-log(e^s / (e^s + N / M * sum of e^s of negatives but the target))."""
    others = torch.stack([scores[n].exp() for n in NEGATIVES.tolist() if n != target]).sum()
    return -(scores[target].exp() / (scores[target].exp() + NUM_TITLES / len(NEGATIVES) * others)).log()


BY_HAND: dict[Losses, Callable[[Tensor, int], Tensor]] = {bpr_losses: bpr_by_hand, softmax_losses: softmax_by_hand}


def position_by_position(backbone: SequentialBackbone, positions: Positions, losses_of: Losses) -> Tensor:
    """The mean loss, each position a forward of its own."""
    losses = []
    for history, targets in zip(positions.history, positions.targets, strict=True):
        for column, target in enumerate(targets.tolist()):
            if target < 0:
                continue
            if backbone.bidirectional:
                vector = backbone(history[history >= 0][None])[0, column]
            else:
                vector = backbone.user_vectors(history[None, : column + 1])[0]
            losses.append(BY_HAND[losses_of](backbone.title_vectors() @ vector, target))
    return torch.stack(losses).mean()


def test_one_pass_equals_one_position_per_forward(kind, losses_of):
    """Two positions of SASRec have a negative as their target."""
    backbone, looped = make_backbone(kind), make_backbone(kind)
    positions = make_positions(backbone)
    loss, expected = step(backbone, positions, losses_of), position_by_position(looped, positions, losses_of)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for name, gradient in gradients(backbone).items():
        torch.testing.assert_close(gradient, gradients(looped)[name], rtol=1e-9, atol=1e-13, msg=name)


def test_sasrec_predicts_at_every_position():
    positions = make_positions(make_backbone("sasrec"))
    assert torch.equal(positions.history, HISTORY)
    assert torch.equal(positions.targets, TARGETS)
    assert positions.rows.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 18, 19, 20, 21]


def test_bert4rec_predicts_what_is_masked_by_the_seed_and_what_follows():
    backbone = make_backbone("bert4rec")
    lengths = (HISTORY >= 0).sum(1)
    drawn = []
    for seed in range(40):
        positions = make_positions(backbone, seed)
        assert positions.history.shape == positions.targets.shape == (4, L + 1)
        for row, size in enumerate(lengths.tolist()):
            history, targets = positions.history[row], positions.targets[row]
            assert history[size] == backbone.mask_token
            assert targets[size] == TARGETS[row, size - 1]
            assert (history[size + 1 :] == -1).all()
            assert (targets[size + 1 :] == -1).all()
            masked = history[:size] == backbone.mask_token
            assert torch.equal(targets[:size], HISTORY[row, :size].where(masked, -1))
            assert torch.equal(history[:size][~masked], HISTORY[row, :size][~masked])
            drawn += masked.tolist()
    assert sum(drawn) / len(drawn) == pytest.approx(0.4, abs=0.07)  # 3.4 standard errors of 560 draws
    assert torch.equal(make_positions(backbone, 1).history, make_positions(backbone, 1).history)
    assert not torch.equal(make_positions(backbone, 1).history, make_positions(backbone, 2).history)


def test_bpr_equals_a_loss_by_hand():
    """One position, scores 1 (positive), 0 and 1 (negatives): softplus(-1) and log 2; a second model's vector is 0."""
    backbone = SequentialBackbone(SequentialConfig(num_titles=2, width=2))
    with torch.no_grad():
        backbone.titles.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])  # two models
    losses = bpr_losses(backbone, vectors, torch.tensor([0]), torch.tensor([1, 0]))
    assert losses.shape == (2, 1)
    assert losses[0].item() == pytest.approx((0.313261687 + 0.693147181) / 2)
    assert losses[1].item() == pytest.approx(0.693147181)


def test_sampled_softmax_equals_a_loss_by_hand():
    """Scores 1 (target), 0 and 2; negatives 0, 2, 2 and the target count 3/4 each, the target as none."""
    backbone = SequentialBackbone(SequentialConfig(num_titles=3, width=2))
    with torch.no_grad():
        backbone.titles.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]))
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]]])  # two models
    losses = softmax_losses(backbone, vectors, torch.tensor([0]), torch.tensor([1, 2, 2, 0]))
    assert losses.shape == (2, 1)
    assert losses[0].item() == pytest.approx(math.log1p(0.75 * (1 + 2 * math.e**2) / math.e))
    assert losses[1].item() == pytest.approx(math.log1p(0.75 * 3))


def cross_entropies(backbone: SequentialBackbone, vectors: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(vectors @ backbone.title_vectors().t(), targets, reduction="none")


def test_softmax_of_all_titles_is_the_cross_entropy(kind):
    """Loss and gradients, where as many negatives are asked for as there are titles, less one."""
    sampled, full = make_backbone(kind), make_backbone(kind)
    positions = make_positions(sampled)
    targets = positions.targets.flatten()[positions.rows]
    losses = []
    for backbone in (sampled, full):
        vectors = backbone(positions.history).flatten(0, 1)[positions.rows]
        if backbone is full:
            losses.append(cross_entropies(backbone, vectors, targets))
        else:
            losses.append(softmax_losses(backbone, vectors, targets, draw_negatives(NUM_TITLES, NUM_TITLES - 1)))
        losses[-1].sum().backward()
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for name, gradient in gradients(sampled).items():
        torch.testing.assert_close(gradient, gradients(full)[name], rtol=1e-9, atol=1e-13, msg=name)


def test_sum_under_the_logarithm_is_the_cross_entropys_in_expectation():
    """Over all draws of two negatives from 30 titles, the target among them."""
    backbone, generator = make_backbone("sasrec"), torch.Generator().manual_seed(0)
    vectors, targets = torch.randn(4, D, generator=generator, dtype=torch.float64), torch.tensor([3, 0, 9, 3])
    draws = torch.cartesian_prod(torch.arange(NUM_TITLES), torch.arange(NUM_TITLES))
    with torch.no_grad():
        sums = torch.stack([softmax_losses(backbone, vectors, targets, draw).exp() for draw in draws])
        torch.testing.assert_close(sums.mean(0).log(), cross_entropies(backbone, vectors, targets))


def test_softmax_gradient_check():
    backbone, generator = make_backbone("sasrec"), torch.Generator().manual_seed(0)
    vectors = torch.randn(3, D, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([3, 0, 9])  # two are negatives too
    assert torch.autograd.gradcheck(lambda own: softmax_losses(backbone, own, targets, NEGATIVES), (vectors,))


def test_a_position_whose_target_is_the_negative_gives_no_gradient(losses_of):
    backbone = make_backbone("sasrec")
    vectors = torch.randn(1, D, dtype=torch.float64, requires_grad=True)
    losses_of(backbone, vectors, torch.tensor([3]), torch.tensor([3, 3])).sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().max() < 1e-15


def test_negatives_are_drawn_by_the_seed_or_are_all_titles():
    torch.manual_seed(1)
    drawn = draw_negatives(40, 39)
    assert drawn.tolist() == list(range(40))
    drawn = torch.stack([draw_negatives(40, 38) for _ in range(200)])
    assert drawn.shape == (200, 38)
    assert drawn.flatten().bincount(minlength=40).float() == pytest.approx(190, rel=0.25)  # 3.4 standard errors
    torch.manual_seed(1)
    assert torch.equal(draw_negatives(40, 38), drawn[0])


def test_gradient_reaches_every_parameter(kind, losses_of):
    backbone = make_backbone(kind)
    step(backbone, make_positions(backbone), losses_of)
    assert len(gradients(backbone)) == len(list(backbone.parameters()))
    for name, gradient in gradients(backbone).items():
        assert gradient.abs().sum() > 0, name
    assert (gradients(backbone)["positions"].abs().sum(1) > 0).all()


@pytest.mark.parametrize(("losses_of", "first"), [(bpr_losses, math.log(2)), (softmax_losses, math.log(31))])
def test_overfits_one_batch(kind, losses_of, first):
    config = SequentialConfig(num_titles=NUM_TITLES, kind=kind, **SHAPE, dropout=0.0)
    backbone = SequentialBackbone(config)
    backbone.init_weights(torch.Generator().manual_seed(0))
    positions, optimizer = make_positions(backbone), torch.optim.Adam(backbone.parameters(), lr=0.01)
    negatives = torch.arange(10, NUM_TITLES)
    losses = [pretraining_step(backbone, optimizer, positions, negatives, losses_of).item() for _ in range(100)]
    assert losses[0] == pytest.approx(first, abs=0.03)
    assert losses[-1] < 0.01


def test_same_seed_gives_the_same_losses(kind):
    def run() -> tuple[list[float], list[Tensor]]:
        torch.manual_seed(3)
        backbone = make_backbone(kind, dropout=0.2).train()
        optimizer = torch.optim.Adam(backbone.parameters(), lr=0.01, fused=True)
        losses = []
        for _ in range(4):
            positions = positions_of(backbone, HISTORY, TARGETS, mask_fraction=0.4)
            losses.append(pretraining_step(backbone, optimizer, positions, NEGATIVES, softmax_losses).item())
        return losses, list(backbone.state_dict().values())

    (losses, state), (losses_again, state_again) = run(), run()
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(state, state_again, strict=True))


@pytest.mark.parametrize("cut", [2, 4], ids=["halves", "a worker without crops"])
def test_two_workers_train_as_one(kind, losses_of, cut):
    """Loss of every step and weights after three; a worker may have any number of positions."""
    single = make_backbone(kind)
    positions = make_positions(single)
    parts = [slice(0, cut), slice(cut, 4)]
    of_worker = [Positions(positions.history[part], positions.targets[part]) for part in parts]

    def train(backbone: SequentialBackbone, own: Positions, all_reduce: AllReduce) -> list[float]:
        optimizer = torch.optim.SGD(backbone.parameters(), lr=0.3)
        return [pretraining_step(backbone, optimizer, own, NEGATIVES, losses_of, all_reduce).item() for _ in range(3)]

    losses = train(single, positions, single_worker)
    workers = [make_backbone(kind) for _ in parts]
    their_losses = in_lock_step(lambda rank, all_reduce: train(workers[rank], of_worker[rank], all_reduce))
    for worker, its_losses in zip(workers, their_losses, strict=True):
        assert its_losses == pytest.approx(losses, rel=1e-10)
        for name, value in worker.state_dict().items():
            torch.testing.assert_close(value, single.state_dict()[name], rtol=1e-9, atol=1e-12, msg=name)


def test_step_without_crops_has_loss_zero(kind, losses_of):
    backbone, positions = make_backbone(kind), make_positions(make_backbone(kind))
    assert step(backbone, Positions(positions.history[:0], positions.targets[:0]), losses_of).item() == 0
    assert all((gradient == 0).all() for gradient in gradients(backbone).values())

"""`paper` is the model of Gampa et al. 2023, written again from its sentences with torch's own layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps.batch import PairBatch
from mtrec_ray.steps.propensity import loss_and_gradients
from tests.steps.cases import NUM_GROUPS, TITLE_WIDTH, USER_WIDTH, D, gradients, make_batch, make_model, make_users


class PaperA(nn.Module):
    """Section and sentence are beside each line; a row is a pair."""

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        # 4.2: "we use two dense layers along with batch-norm for each tower encoder"
        # 4.2: "We used ReLU activation functions for all layers"; "hidden dimension as d = 512 for all of the layers"
        self.user_tower, self.title_tower = (
            nn.Sequential(
                *(nn.Linear(width, D), nn.BatchNorm1d(D), nn.ReLU()), *(nn.Linear(D, D), nn.BatchNorm1d(D), nn.ReLU())
            )
            for width in (USER_WIDTH, TITLE_WIDTH)
        )
        # 3.3: "separate task/group-specific neural network blocks on top of the user tower"
        # 4.2: "For task-specific layers in MTL, we use one dense layer for each task block"
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.ReLU()) for _ in range(num_groups))

    def affinity(self, users: Tensor, titles: Tensor, one_hot_group: Tensor) -> Tensor:
        """(P, groups) affinities, of each block that there is."""
        users, titles = self.user_tower(users), self.title_tower(titles)
        represented = [block(users) for block in self.blocks] or [users]
        # 4.3: "finds the affinity score of a title given user using the dot product similarity"
        return torch.stack([(one * titles).sum(1) for one in represented], dim=1)

    def loss(self, users: Tensor, titles: Tensor, one_hot_group: Tensor, labels: Tensor) -> Tensor:
        affinity = self.affinity(users, titles, one_hot_group)
        mask = one_hot_group if len(self.blocks) else torch.ones_like(affinity)
        # 4.2: "binary cross entropy loss"; "one-hot encoded mask while calculating the loss"
        # figure 1: "a masked summation of binary cross entropy loss for each task"
        each = F.binary_cross_entropy(affinity.sigmoid(), labels[:, None].expand_as(affinity), reduction="none")
        return (each * mask).sum() / len(labels)


def literal(model: TwoTower) -> PaperA:
    """The same weights; dense layers also have the bias that the batch norm behind them takes away."""
    block = model.group_block
    paper = PaperA(0 if block is None else NUM_GROUPS).double()
    with torch.no_grad():
        for ours, theirs in ((model.user_tower, paper.user_tower), (model.title_tower, paper.title_tower)):
            for dense, norm, weight, ours_norm in (
                (theirs[0], theirs[1], ours.first, ours.norm),
                (theirs[3], theirs[4], ours.last, ours.final_norm),
            ):
                assert isinstance(dense, nn.Linear)
                assert isinstance(norm, nn.BatchNorm1d)
                assert ours_norm is not None
                dense.weight.copy_(weight)
                norm.weight.copy_(ours_norm.weight)
                norm.bias.copy_(ours_norm.bias)
        own = {} if block is None else dict(block.named_parameters())
        for group, layers in enumerate(paper.blocks):
            layers[0].weight.copy_(own["weight"][group])  # pyright: ignore[reportIndexIssue]
            layers[0].bias.copy_(own["bias"][group])  # pyright: ignore[reportIndexIssue]
    return paper


def gradients_of(paper: PaperA) -> dict[str, Tensor]:
    """By our names."""
    found = {name: parameter.grad for name, parameter in paper.named_parameters()}
    names = {"0.weight": "first", "1.weight": "norm.weight", "1.bias": "norm.bias"}
    names |= {"3.weight": "last", "4.weight": "final_norm.weight", "4.bias": "final_norm.bias"}
    renamed = {f"{tower}.{ours}": found[f"{tower}.{theirs}"] for tower in TOWERS for theirs, ours in names.items()}
    for part in ("weight", "bias") if len(paper.blocks) else ():
        every = [found[f"blocks.{group}.0.{part}"] for group in range(NUM_GROUPS)]
        renamed[f"group_block.{part}"] = torch.stack([grad for grad in every if grad is not None])
    return {name: gradient for name, gradient in renamed.items() if gradient is not None}


TOWERS = ("user_tower", "title_tower")
USERS = make_users(0, np.array([3, 0, 5, 2, 1, 0, 4, 3, 2, 6]), np.array([2, 0, 1, 2, 0, 1, 0, 2, 2, 1]))
USERS["prior"] = np.zeros_like(USERS["prior"])  # the paper has none


def pairs_of(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, titles, one-hot groups and labels of every pair."""
    groups = torch.arange(NUM_GROUPS).repeat_interleave(torch.tensor(batch.group_offsets).diff())
    one_hot = F.one_hot(groups, NUM_GROUPS).double()
    users, titles = batch.user_features[batch.user_rows], batch.title_features[batch.title_rows]
    return users, titles, one_hot[batch.user_rows], batch.labels


@pytest.mark.parametrize("group_block", ["none", "dense"])
def test_loss_and_gradients_are_the_papers(group_block):
    model, batch = make_model(paper=True, group_block=group_block), make_batch(USERS)
    paper = literal(model)
    expected = paper.loss(*pairs_of(batch))
    expected.backward()
    torch.testing.assert_close(loss_and_gradients(model, batch), expected.detach(), rtol=1e-12, atol=1e-14)
    found, wanted = gradients(model), gradients_of(paper)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.parametrize("group_block", ["none", "dense"])
def test_scores_after_a_step_are_the_papers(group_block):
    model, batch = make_model(paper=True, group_block=group_block), make_batch(USERS)
    paper = literal(model)
    users, titles, one_hot, labels = pairs_of(batch)
    for layer in (*paper.user_tower, *paper.title_tower):
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)  # the running mean takes another away only in the long run
    paper.loss(users, titles, one_hot, labels)
    loss_and_gradients(model, batch)
    affinity = paper.eval().affinity(users, titles, one_hot)  # by the running statistics
    expected = (affinity * one_hot).sum(1) if group_block == "dense" else affinity[:, 0]
    vectors = model.eval().user_vectors(users, one_hot.argmax(1))
    scores = model.logits(vectors, model.title_vectors(titles)).diagonal()
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-14)


def test_the_start_is_random_and_the_same_for_no_two_groups():
    model = make_model(paper=True, group_block="dense", perturb=False)
    assert model.bias is None
    assert model.group_block is not None
    weight, bias = model.group_block.parameters()
    assert all(0.8 < part.abs().max() * D**0.5 < 1 for part in (weight, bias))
    assert not torch.equal(weight[0], weight[1])

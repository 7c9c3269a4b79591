"""One exact training step of the two-tower model, forward and backward scheduled by hand.

Legend: `U` users, `T` distinct titles, `N` either, `P` pairs, `d` width. The mathematics is the pair-by-pair model's;
no row is computed twice. The stages:

1. both towers, depth by depth, once per distinct row; batch normalisation weighs a row with its pairs
2. the group block, each group's rows through its own part
3. dot products of the pairs alone, binary cross entropy of each pair under its own group, mean over the global batch
4. the same way back, into one flat gradient; what workers share goes in one call per depth, plus one at the end
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps.batch import PairBatch
from mtrec_ray.steps.pair_norm import relu_backward
from mtrec_ray.steps.pair_scores import dense_is_cheaper, pair_dots, pair_dots_backward
from mtrec_ray.steps.towers import AllReduce, set_gradient, towers_backward, towers_forward
from mtrec_ray.steps.workspace import Workspace, workspace_of


def train_step(
    model: TwoTower,
    optimizer: torch.optim.Optimizer,
    batch: PairBatch,
    *,
    all_reduce: AllReduce | None = None,
    compute_dtype: torch.dtype | None = None,
) -> Tensor:
    """One optimizer step on the global batch; returns its loss before the step, a scalar tensor."""
    loss = loss_and_gradients(model, batch, all_reduce=all_reduce, compute_dtype=compute_dtype)
    optimizer.step()
    return loss


@torch.no_grad()
def loss_and_gradients(
    model: TwoTower,
    batch: PairBatch,
    *,
    all_reduce: AllReduce | None = None,
    compute_dtype: torch.dtype | None = None,
    dense_scores: bool | None = None,
) -> Tensor:
    """Write the global batch's gradient to every `.grad` and move the running statistics.

    Args:
        batch: this worker's share; it may be empty, the worker must still take part.
        all_reduce: sums a tensor in place over the workers and returns it; None means there is one worker. Every
            worker makes the same calls in the same order.
        compute_dtype: type the inputs of matrix products are rounded to, for example bfloat16; None rounds nothing.
        dense_scores: score all user x title cells instead of the pairs; None takes the cheaper for this batch.

    Returns the mean binary cross entropy over the pairs of all workers, a scalar tensor (0 when there are none).
    """
    reduce = all_reduce or (lambda tensor: tensor)
    dense = dense_is_cheaper(batch) if dense_scores is None else dense_scores

    workspace = workspace_of(model)
    flat = _flat_gradient(model, workspace)

    depths, num_pairs = towers_forward(model, batch, reduce, workspace, compute_dtype)
    tower_users, titles = (tape.outputs for tape in depths[-1])  # (U, d), (T, d)
    block_outputs = workspace.take("block", *tower_users.shape, like=tower_users)
    users = model.apply_block(tower_users, batch.group_offsets, out=block_outputs, compute_dtype=compute_dtype)
    logits = pair_dots(users, titles, batch, dense, compute_dtype).mul_(model.scale)  # (P,)
    if model.bias is not None:
        logits.add_(model.bias)
    loss = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum") / num_pairs

    logit_gradient = logits.sigmoid_().sub_(batch.labels).div_(num_pairs)  # (P,)
    if model.bias is not None:
        set_gradient(model.bias, logit_gradient.sum())
    dot_gradient = logit_gradient.mul_(model.scale)
    user_gradient, title_gradient = pair_dots_backward(dot_gradient, users, titles, batch, dense, compute_dtype)
    if model.group_block is not None:
        if model.config.final_activation == "relu":
            relu_backward(user_gradient, users)
        user_gradient = model.group_block.backward(
            tower_users, user_gradient, batch.group_offsets, out=users, compute_dtype=compute_dtype
        )
    towers_backward(depths, [user_gradient, title_gradient], reduce, compute_dtype)

    flat[-1] = loss
    reduce(flat)
    return flat[-1].clone()


def _flat_gradient(model: TwoTower, workspace: Workspace) -> Tensor:
    """One vector that every `.grad` is a view of, with the loss in its last place."""
    parameters = list(model.parameters())
    size = sum(parameter.numel() for parameter in parameters) + 1
    flat = workspace.take("gradient", 1, size, like=parameters[0]).view(-1)
    start = 0
    for parameter in parameters:
        parameter.grad = flat[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return flat

"""One training step of a sequential backbone, all positions in one pass (paper B, 2.2).

Legend: `B` crops, `L` history length, `T` columns, `N` positions with a target, `M` negatives, `d` width.

SASRec predicts at each column the event that follows it. BERT4Rec predicts a random fraction of a crop's events, each
replaced by the mask token, and the event that follows the crop at a mask token behind it, as serving does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.workers import AllReduce, single_worker, sum_gradients

Losses = Callable[[SequentialBackbone, Tensor, Tensor, Tensor], Tensor]
"""Backbone, vectors (..., N, d), targets (N,), negatives (M,) -> the loss of each position, (..., N)."""


@dataclass(frozen=True)
class Positions:
    """What one pass of the backbone predicts."""

    history: Tensor  # (B, T) model input
    targets: Tensor  # (B, T) title wanted at each column, -1: none

    @property
    def rows(self) -> Tensor:
        """(N,) flat columns that have a target."""
        return (self.targets.flatten() >= 0).nonzero().squeeze(1)


def positions_of(backbone: SequentialBackbone, history: Tensor, targets: Tensor, mask_fraction: float) -> Positions:
    """(B, L) crops and what follows each event -> inputs and targets; draws BERT4Rec's masks."""
    if not backbone.bidirectional:
        return Positions(history, targets)
    real = history >= 0
    lengths = real.sum(-1, keepdim=True)  # (B, 1)
    masked = (torch.rand(history.shape, device=history.device) < mask_fraction) & real
    following = targets.gather(1, lengths - 1)  # (B, 1)
    inputs = F.pad(history.masked_fill(masked, backbone.mask_token), (0, 1), value=-1)
    wanted = F.pad(history.masked_fill(~masked, -1), (0, 1), value=-1)
    return Positions(inputs.scatter(1, lengths, backbone.mask_token), wanted.scatter(1, lengths, following))


def pretraining_step(
    backbone: SequentialBackbone,
    optimizer: torch.optim.Optimizer,
    positions: Positions,
    negatives: Tensor,
    losses_of: Losses,
    all_reduce: AllReduce = single_worker,
) -> Tensor:
    """One optimizer step on the global batch; returns its loss before the step, a scalar.

    `positions` are this worker's, (M,) `negatives` the same for every position and worker, `losses_of` one of `LOSSES`.
    """
    rows = positions.rows
    count = all_reduce(torch.tensor(float(len(rows)), device=negatives.device))
    optimizer.zero_grad(set_to_none=False)
    vectors = backbone(positions.history).flatten(0, 1)[rows]  # (N, d)
    loss = losses_of(backbone, vectors, positions.targets.flatten()[rows], negatives).sum() / count.clamp(min=1)
    loss.backward()
    loss = sum_gradients(optimizer.param_groups[0]["params"], all_reduce, loss.detach())
    optimizer.step()
    return loss


def draw_negatives(num_titles: int, num_negatives: int) -> Tensor:
    """(M,) titles drawn uniformly with replacement; all titles where no more are asked for.

    A position has `num_titles` - 1 possible negatives.
    """
    if num_negatives >= num_titles - 1:
        return torch.arange(num_titles)
    return torch.randint(num_titles, (num_negatives,))


def softmax_losses(backbone: SequentialBackbone, vectors: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """(..., N) sampled softmax: -log of the target's probability among it and negatives.

    Each of M negatives stands for `num_titles` / M titles, so log(`num_titles` / M) is added to its score (Bengio and
    Senecal 2008, uniform draws), and a negative that is the position's own target is left out. The sum under the
    logarithm then has the full softmax's as its expectation, and equals it where `negatives` are all titles. Shapes as
    in `bpr_losses`.
    """
    correction = math.log(backbone.config.num_titles / len(negatives))
    positive_scores = (vectors * backbone.titles(targets)).sum(-1, keepdim=True)  # (..., N, 1)
    negative_scores = vectors @ backbone.titles(negatives).t() + correction  # (..., N, M)
    negative_scores = negative_scores.masked_fill(negatives == targets[:, None], -torch.inf)
    return torch.cat([positive_scores, negative_scores], -1).logsumexp(-1) - positive_scores.squeeze(-1)


def bpr_losses(backbone: SequentialBackbone, vectors: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """(..., N) mean over negatives of -log sigmoid(u . positive - u . negative) per position.

    BPR (Rendle et al. 2009) of (..., N, d) vectors, (N,) targets, (M,) negatives, scored in one matrix product. A
    negative that is the position's own target has a constant loss and no gradient.
    """
    positive_scores = (vectors * backbone.titles(targets)).sum(-1, keepdim=True)  # (..., N, 1)
    negative_scores = vectors @ backbone.titles(negatives).t()  # (..., N, M)
    return F.softplus(negative_scores - positive_scores).mean(-1)


LOSSES: dict[str, Losses] = {"softmax": softmax_losses, "bpr": bpr_losses}

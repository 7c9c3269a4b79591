"""One training step of the two-tower model, each user and title computed once.

Loss and gradients equal those of a step pair by pair: batch normalisation weighs a row with its pairs.

Legend: `U` users, `T` distinct titles, `P` pairs, `d` width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce, single_worker, sum_gradients
from mtrec_ray.models.batch_norm import PairCounts
from mtrec_ray.models.matmul import DType
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.steps.batch import PairBatch
from mtrec_ray.steps.pair_scores import pair_dots


def train_step(
    model: TwoTower,
    optimizer: torch.optim.Optimizer,
    batch: PairBatch,
    *,
    all_reduce: AllReduce = single_worker,
    compute_dtype: DType = None,
) -> Tensor:
    """One optimizer step on the global batch; returns its loss before the step, a scalar."""
    loss = loss_and_gradients(model, batch, all_reduce=all_reduce, compute_dtype=compute_dtype)
    optimizer.step()
    return loss


def loss_and_gradients(
    model: TwoTower,
    batch: PairBatch,
    *,
    all_reduce: AllReduce = single_worker,
    compute_dtype: DType = None,
) -> Tensor:
    """Set every `.grad` to the global batch's gradient and move the running statistics.

    `batch` holds this worker's pairs; it may be empty, the worker must still take part. Returns the mean binary cross
    entropy over the pairs of all workers, a scalar (0 when there are none).
    """
    num_pairs = all_reduce(batch.labels.new_full((), batch.num_pairs))
    user_counts, title_counts = (
        PairCounts(offsets.diff().to(batch.labels.dtype), num_pairs, all_reduce)
        for offsets in (batch.user_offsets, batch.title_offsets)
    )
    users = model.user_tower(batch.user_features, user_counts, compute_dtype)  # (U, d)
    users = model.apply_block(users, batch.group_offsets, compute_dtype)  # (U, d)
    titles = model.title_tower(batch.title_features, title_counts, compute_dtype)  # (T, d)
    logits = model.head(pair_dots(users, titles, batch, compute_dtype))  # (P,)
    loss = F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="sum") / num_pairs.clamp(min=1)
    model.zero_grad(set_to_none=True)
    loss.backward()
    return sum_gradients(model.parameters(), all_reduce, loss.detach())

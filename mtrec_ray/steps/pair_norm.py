"""Batch normalisation of distinct rows weighted by pair counts, over all workers, forward and backward by hand.

Legend: `N` distinct rows on this worker, `d` width, `w` (N,) pairs of each row, `W` their sum over all workers.
A row of weight w counts as w equal rows of the pair-by-pair batch. With g the gradient summed over a row's pairs:

    mean = sum(w z) / W,  var = sum(w (z - mean)^2) / W,  x = (z - mean) / sqrt(var + eps),  y = gamma x + beta
    dgamma = sum(g x),  dbeta = sum(g),  dz = gamma / sqrt(var + eps) * (g - w / W (dbeta + x dgamma))

Sums travel between workers in float64, moments are taken around the running mean, so nothing cancels.
On a CPU rows are worked off in tiles that stay in the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtrec_ray.models.batch_norm import PairBatchNorm

TILE_ROWS = 256  # 512 KB of float32 at d = 512: one core's second-level cache


@dataclass
class NormTape:
    """What the backward needs of one normalised layer."""

    norm: PairBatchNorm
    centred: Tensor  # (N, d) z minus the local mean
    row_weights: Tensor  # (N,) w
    num_pairs: Tensor  # () W, at least 1
    offset: Tensor  # (d,) local mean minus global mean
    inv_std: Tensor  # (d,)
    scale: Tensor  # (d,) gamma / sqrt(var + eps)


def local_moments(norm: PairBatchNorm, rows: Tensor, row_weights: Tensor, num_pairs: int) -> tuple[Tensor, Tensor]:
    """Centre (N, d) rows in place around their weighted mean.

    Returns that (d,) mean in float64, and the (1 + 2 d,) float64 summands of the global moments: the pair count, then
    first and second moment around the running mean. They add up over workers.
    """
    mean = (row_weights @ rows).mul_(1 / max(num_pairs, 1))  # (d,)
    second = torch.zeros_like(mean)  # (d,) around the local mean
    for scratch, tile, tile_weights in _tiles(rows, row_weights):
        tile.sub_(mean)
        second.addmv_(torch.mul(tile, tile, out=scratch).t(), tile_weights)
    mean = mean.double()
    shift = mean - norm.running_mean
    count = mean.new_full((1,), num_pairs)
    return mean, torch.cat([count, shift * num_pairs, second + shift.square() * num_pairs])


def normalise(
    norm: PairBatchNorm,
    centred: Tensor,
    row_weights: Tensor,
    local_mean: Tensor,
    moments: Tensor,
    *,
    relu: bool,
    out: Tensor,
) -> NormTape:
    """Globally summed `moments` of `local_moments` -> (N, d) outputs in `out`; moves the running statistics."""
    width = local_mean.shape[0]
    num_pairs = moments[0].clamp(min=1)
    first, second = moments[1 : width + 1] / num_pairs, moments[width + 1 :] / num_pairs  # (d,), (d,)
    mean, variance = norm.running_mean + first, second - first.square()
    norm.update_running(mean, variance, moments[0])

    dtype = centred.dtype
    offset = (local_mean - mean).to(dtype)
    inv_std = torch.rsqrt(variance + norm.eps).to(dtype)
    scale = norm.weight * inv_std
    shift = torch.addcmul(norm.bias, offset, scale)
    for _, tile, tile_out in _tiles(centred, out):
        torch.addcmul(shift, tile, scale, out=tile_out)
        if relu:
            tile_out.relu_()
    return NormTape(norm, centred, row_weights, num_pairs.to(dtype), offset, inv_std, scale)


def norm_gradient_sums(tape: NormTape, output_gradient: Tensor, relu_outputs: Tensor | None) -> Tensor:
    """(N, d) gradient g -> (2, d) this worker's dbeta and dgamma, to be summed over workers.

    Where a ReLU follows, its (N, d) outputs are given, and g is first set to zero, in place, where they are zero.
    """
    sums = output_gradient.new_zeros(2, output_gradient.shape[1])
    outputs = output_gradient if relu_outputs is None else relu_outputs
    for scratch, tile, centred, tile_outputs in _tiles(output_gradient, tape.centred, outputs):
        if relu_outputs is not None:
            relu_backward(tile, tile_outputs)
        sums[0] += tile.sum(0)
        sums[1] += torch.mul(tile, centred, out=scratch).sum(0)
    sums[1].addcmul_(tape.offset, sums[0]).mul_(tape.inv_std)
    return sums


def norm_input_gradient(tape: NormTape, output_gradient: Tensor, sums: Tensor) -> None:
    """Global (2, d) sums -> dz / scale (N, d), in place of `output_gradient`; `tape.scale` is left to the caller."""
    bias_mean, weight_mean = sums / tape.num_pairs  # (d,), (d,)
    slope = tape.inv_std * weight_mean
    constant = torch.addcmul(bias_mean, tape.offset, slope)
    weights = tape.row_weights.unsqueeze(1)  # (N, 1)
    for scratch, tile, centred, tile_weights in _tiles(output_gradient, tape.centred, weights):
        tile.addcmul_(torch.addcmul(constant, centred, slope, out=scratch), tile_weights, value=-1)


def relu_backward(gradient: Tensor, outputs: Tensor) -> None:
    """Set the (N, d) gradient to zero in place where the ReLU's output is zero."""
    torch.ops.aten.threshold_backward.grad_input(gradient, outputs, 0, grad_input=gradient)


def _tiles(rows: Tensor, *companions: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Per tile: (tile, d) scratch shared by all tiles, then the tile of the (N, d) rows and of each companion."""
    size = min(TILE_ROWS, len(rows)) if rows.device.type == "cpu" else len(rows)
    scratch = rows.new_empty(size, rows.shape[1])
    for start in range(0, len(rows), max(size, 1)):
        tiles = [tensor[start : start + size] for tensor in (rows, *companions)]
        yield scratch[: len(tiles[0])], *tiles

"""Batch normalisation and ReLU of distinct rows of several pairs each.

Legend: `N` distinct rows on this worker, `d` width, `w` (N,) pairs of each row, `W` pairs of all workers.
A row of weight w counts as w equal rows of the pair-by-pair batch. With g the gradient summed over a row's pairs:

    mean = sum(w z) / W,  var = sum(w (z - mean)^2) / W,  x = (z - mean) / sqrt(var + eps),  y = gamma x + beta
    dgamma = sum(g x),  dbeta = sum(g),  dz = gamma / sqrt(var + eps) * (g - w / W (dbeta + x dgamma))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtrec_ray.workers import AllReduce, single_worker

TILE_ROWS = 256  # 512 KB of float32 at d = 512: one core's second-level cache


@dataclass(frozen=True)
class PairCounts:
    """The pairs that distinct rows stand for."""

    per_row: Tensor  # (N,) w, in the dtype of the computation
    total: Tensor  # () W
    all_reduce: AllReduce = single_worker


class PairBatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015), a ReLU; parameters of `nn.BatchNorm1d`."""

    momentum = 0.1
    eps = 1e-5
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))  # (d,)
        self.bias = nn.Parameter(torch.zeros(width))  # (d,)
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, rows: Tensor, counts: PairCounts | None = None) -> Tensor:
        """(N, d) -> (N, d).

        With `counts` by the global batch's statistics, towards which the running ones move: outputs and gradients
        equal `nn.BatchNorm1d` and ReLU on the repeated rows. Without, by the running statistics (inference).
        """
        if counts is None:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return torch.addcmul(self.bias - self.running_mean * scale, rows, scale).relu()
        outputs, mean, variance = Normalise.apply(rows, self.weight, self.bias, counts, self.eps)
        self._update_running(mean, variance, counts.total)
        return outputs

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, num_pairs: Tensor) -> None:
        """Move towards the unbiased (d,) variance, as torch does; not at all without pairs."""
        momentum = (num_pairs > 0).to(mean.dtype) * self.momentum  # ()
        unbiased = variance * (num_pairs / (num_pairs - 1).clamp(min=1))
        self.running_mean.add_(momentum * (mean - self.running_mean))
        self.running_var.add_(momentum * (unbiased - self.running_var))


class Normalise(torch.autograd.Function):
    """(N, d) -> (N, d) after the ReLU, and the global batch's (d,) float64 mean and variance.

    Computed in tiles that stay in a CPU's cache; statistics are summed in float64, so nothing cancels.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, counts: PairCounts, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        first, second = counts.all_reduce(_moments(rows, counts.per_row)) / counts.total.clamp(min=1)  # (d,), (d,)
        mean, variance = first, second - first.square()
        row_mean, inv_std = mean.to(rows.dtype), torch.rsqrt(variance + eps).to(rows.dtype)
        scale = weight * inv_std
        outputs = torch.empty_like(rows)
        for _, tile, tile_out in _tiles(rows, outputs):
            torch.sub(tile, row_mean, out=tile_out)
            torch.addcmul(bias, tile_out, scale, out=tile_out).relu_()
        ctx.save_for_backward(rows, outputs, row_mean, inv_std, scale)
        ctx.counts = counts
        ctx.mark_non_differentiable(mean, variance)
        return outputs, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        rows, outputs, mean, inv_std, scale = ctx.saved_tensors
        gradient = torch.empty_like(rows)  # (N, d) g, then dz
        sums = rows.new_zeros(2, rows.shape[1])  # dbeta, dgamma of this worker
        for scratch, tile, tile_rows, tile_out, tile_gradient in _tiles(gradient, rows, outputs, output_gradient):
            torch.ops.aten.threshold_backward.grad_input(tile_gradient, tile_out, 0, grad_input=tile)
            sums[0] += tile.sum(0)
            sums[1] += torch.sub(tile_rows, mean, out=scratch).mul_(tile).sum(0)
        sums[1] *= inv_std

        bias_mean, weight_mean = ctx.counts.all_reduce(sums.clone()) / ctx.counts.total.clamp(min=1)  # (d,), (d,)
        slope = inv_std * weight_mean
        for scratch, tile, tile_rows, weights in _tiles(gradient, rows, ctx.counts.per_row.unsqueeze(1)):
            torch.sub(tile_rows, mean, out=scratch)
            torch.addcmul(bias_mean, scratch, slope, out=scratch)
            tile.addcmul_(scratch, weights, value=-1).mul_(scale)
        return gradient, sums[1], sums[0], None, None


def _moments(rows: Tensor, weights: Tensor) -> Tensor:
    """(2, d) float64 sums of w z and w z^2 over this worker's rows."""
    num_pairs = weights.sum()
    mean = (weights @ rows) / num_pairs.clamp(min=1)  # (d,)
    second = torch.zeros_like(mean)  # around the mean
    for scratch, tile, tile_weights in _tiles(rows, weights):
        second.addmv_(torch.sub(tile, mean, out=scratch).square_().t(), tile_weights)
    first = mean.double() * num_pairs
    return torch.stack([first, second + first * mean])


def _tiles(rows: Tensor, *companions: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Per tile: (tile, d) shared scratch, then the rows' and each companion's tile."""
    size = min(TILE_ROWS, len(rows)) if rows.device.type == "cpu" else len(rows)
    scratch = rows.new_empty(size, rows.shape[1])
    for start in range(0, len(rows), max(size, 1)):
        tiles = [tensor[start : start + size] for tensor in (rows, *companions)]
        yield scratch[: len(tiles[0])], *tiles

"""Batch normalisation over distinct rows that stand for several pairs each.

Legend: `N` distinct rows, `d` width.
"""

import torch
from torch import Tensor, nn


class PairBatchNorm(nn.Module):
    """Parameters and running statistics of a batch normalisation (Ioffe and Szegedy 2015), as in `nn.BatchNorm1d`.

    While training, `steps.pair_norm` weighs each distinct row by its number of pairs, so that statistics, outputs
    and gradients equal `nn.BatchNorm1d` over the repeated rows. The forward here is inference in any mode.
    """

    momentum = 0.1
    eps = 1e-5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))  # (d,)
        self.bias = nn.Parameter(torch.empty(width))  # (d,)
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.empty(width))
        self.register_buffer("running_var", torch.empty(width))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Identity scale and shift, statistics of a standard normal."""
        self.weight.fill_(1)
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_var.fill_(1)

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise (N, d) rows with the running statistics -> (N, d)."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return torch.addcmul(self.bias - self.running_mean * scale, rows, scale)

    @torch.no_grad()
    def update_running(self, mean: Tensor, variance: Tensor, num_pairs: Tensor) -> None:
        """Move the running statistics towards a batch's (d,) mean and biased variance over () `num_pairs` pairs.

        The running variance takes the unbiased estimate, as torch's does; a batch without pairs changes nothing.
        """
        momentum = (num_pairs > 0).to(mean.dtype) * self.momentum  # ()
        unbiased = variance * (num_pairs / (num_pairs - 1).clamp(min=1))
        self.running_mean.add_(momentum * (mean - self.running_mean))
        self.running_var.add_(momentum * (unbiased - self.running_var))

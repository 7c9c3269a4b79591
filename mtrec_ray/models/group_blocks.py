"""Territory-group blocks on top of the user tower, one part per group.

Legend: `U` user rows sorted by group, `d` width, `G` territory groups, `r` rank of a low-rank update.
A block maps (U, d) user vectors to (U, d); rows `offsets[g]:offsets[g + 1]` belong to group g and meet its
parameters alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mtrec_ray.models.grouped import DType, Offsets, grouped_linear, repeat_by_group
from mtrec_ray.models.shapes import GroupBlockName


class GroupBlock(nn.Module, ABC):
    """What every block has; autograd derives the backward.

    It is made for (num_groups, width). Every parameter is (G, ...) and starts so that the block is the identity. Those
    of more than two dimensions learn at `optim.block_lr`, the others at `optim.block_vector_lr`.
    """

    def matrices(self) -> list[nn.Parameter]:
        """Parameters of shape (G, d, d) or alike."""
        return [parameter for parameter in self.parameters() if parameter.dim() > 2]

    def vectors(self) -> list[nn.Parameter]:
        """All other parameters, which take a larger learning rate."""
        return [parameter for parameter in self.parameters() if parameter.dim() <= 2]

    def init_weights(self, generator: torch.Generator) -> None:
        """Draw what does not start at a constant."""

    @abstractmethod
    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        """(U, d) user vectors sorted by group, (G + 1) row offsets -> (U, d).

        `compute_dtype` is that of matrix products; blocks without any ignore it.
        """


class DenseBlock(GroupBlock):
    """Paper A's block: one dense layer per group, y = W_g x + b_g.

    It starts at the identity, as the baseline model. A random start, which the paper permits, lost half of the PR-AUC
    on validation users where the towers start from interaction vectors.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(num_groups, 1, 1))  # (G, d out, d in)
        self.bias = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return grouped_linear(users, self.weight, self.bias, offsets, compute_dtype)


class ShiftBlock(GroupBlock):
    """One vector per group added to the user's: y = x + t_g.

    It adds t_g . title / sqrt(d) to the logit: a bias of the group for each title, alike for similar titles.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return repeat_by_group(self.shift, offsets).add_(users)


class FilmBlock(GroupBlock):
    """Scale and shift per group (FiLM, Perez et al. 2018): y = s_g * x + t_g."""

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_groups, width))  # (G, d)
        self.shift = nn.Parameter(torch.zeros(num_groups, width))  # (G, d)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        return repeat_by_group(self.shift, offsets).addcmul_(users, repeat_by_group(self.scale, offsets))


class LowRankBlock(GroupBlock):
    """Low-rank update per group: y = x + B_g A_g x (as LoRA, Hu et al. 2022)."""

    rank = 16

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        rank = min(self.rank, width)
        self.down = nn.Parameter(torch.empty(num_groups, width, rank))  # (G, d, r)
        self.up = nn.Parameter(torch.zeros(num_groups, rank, width))  # (G, r, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        bound = self.down.shape[1] ** -0.5
        self.down.uniform_(-bound, bound, generator=generator)

    def forward(self, users: Tensor, offsets: Offsets, compute_dtype: DType = None) -> Tensor:
        hidden = grouped_linear(users, self.down.transpose(1, 2), None, offsets, compute_dtype)  # (U, r)
        return users + grouped_linear(hidden, self.up.transpose(1, 2), None, offsets, compute_dtype)


GROUP_BLOCKS: dict[GroupBlockName, Callable[[int, int], GroupBlock]] = {
    "dense": DenseBlock,
    "shift": ShiftBlock,
    "film": FilmBlock,
    "low_rank": LowRankBlock,
}

"""Territory-group blocks: what the multi-task model adds on top of the user tower, one part per group.

Legend: `U` user rows sorted by group, `d` width, `G` territory groups, `r` rank of a low-rank update.
A block maps (U, d) user vectors to (U, d); rows `offsets[g]:offsets[g + 1]` belong to group g and meet its
parameters alone.
`backward` is written by hand: it fills the `.grad` of every parameter of the block (already allocated, whatever it
holds) and returns the gradient of its input. To add a block: write the class, name it in `GROUP_BLOCKS`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mtrec_ray.models.matmul import matmul

Offsets = Sequence[int]  # (G + 1,) on the host
DType = torch.dtype | None  # what the inputs of matrix products are rounded to; None: nothing


class GroupBlock(nn.Module):
    """What every block offers, see the file's legend."""

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.width = width

    def init_weights(self, generator: torch.Generator) -> None:
        """Set every parameter, drawing from `generator` alone."""
        raise NotImplementedError

    def forward(
        self, users: Tensor, offsets: Offsets, *, out: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        """(U, d) user vectors sorted by group, (G + 1) row offsets -> (U, d), in `out` or a new tensor."""
        raise NotImplementedError

    def backward(
        self,
        users: Tensor,
        output_gradient: Tensor,
        offsets: Offsets,
        *,
        out: Tensor | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        """Forward's input and its output's (U, d) gradient -> the input's (U, d), in `out` or new; writes `.grad`."""
        raise NotImplementedError


class DenseBlock(GroupBlock):
    """Paper A's block: one dense layer per group, y = W_g x + b_g.

    It starts at the identity, so training departs from the baseline: a random start, which the paper does not rule out,
    lost half of the PR-AUC on validation users where the towers start from interaction vectors.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__(num_groups, width)
        self.weight = nn.Parameter(torch.empty(num_groups, width, width))  # (G, d out, d in)
        self.bias = nn.Parameter(torch.empty(num_groups, width))  # (G, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        self.weight.copy_(torch.eye(self.width).expand_as(self.weight))
        self.bias.zero_()

    def forward(
        self, users: Tensor, offsets: Offsets, *, out: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        outputs = torch.empty_like(users) if out is None else out  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            matmul(users[rows], self.weight[g].t(), out=outputs[rows], compute_dtype=compute_dtype)
            outputs[rows] += self.bias[g]
        return outputs

    def backward(
        self,
        users: Tensor,
        output_gradient: Tensor,
        offsets: Offsets,
        *,
        out: Tensor | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        weight_grad, bias_grad = _grads(self.weight, self.bias)
        input_gradient = torch.empty_like(users) if out is None else out  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            dy = output_gradient[rows]
            matmul(dy.t(), users[rows], out=weight_grad[g], compute_dtype=compute_dtype)
            torch.sum(dy, 0, out=bias_grad[g])
            matmul(dy, self.weight[g], out=input_gradient[rows], compute_dtype=compute_dtype)
        return input_gradient


class ShiftBlock(GroupBlock):
    """One vector per group added to the user's: y = x + t_g.

    Its part of the logit, t_g . title / sqrt(d), does not depend on the user: a bias of the group for each title,
    through the title's vector and so shared between titles that are alike.
    """

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__(num_groups, width)
        self.shift = nn.Parameter(torch.empty(num_groups, width))  # (G, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        self.shift.zero_()

    def forward(
        self, users: Tensor, offsets: Offsets, *, out: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        outputs = torch.empty_like(users) if out is None else out  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            torch.add(users[rows], self.shift[g], out=outputs[rows])
        return outputs

    def backward(
        self,
        users: Tensor,
        output_gradient: Tensor,
        offsets: Offsets,
        *,
        out: Tensor | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        (shift_grad,) = _grads(self.shift)
        for g, rows in enumerate(_group_rows(offsets)):
            torch.sum(output_gradient[rows], 0, out=shift_grad[g])
        return output_gradient.clone() if out is None else out.copy_(output_gradient)


class FilmBlock(GroupBlock):
    """Scale and shift per group (FiLM, Perez et al. 2018): y = s_g * x + t_g."""

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__(num_groups, width)
        self.scale = nn.Parameter(torch.empty(num_groups, width))  # (G, d)
        self.shift = nn.Parameter(torch.empty(num_groups, width))  # (G, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        self.scale.fill_(1)
        self.shift.zero_()

    def forward(
        self, users: Tensor, offsets: Offsets, *, out: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        outputs = torch.empty_like(users) if out is None else out  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            torch.addcmul(self.shift[g], users[rows], self.scale[g], out=outputs[rows])
        return outputs

    def backward(
        self,
        users: Tensor,
        output_gradient: Tensor,
        offsets: Offsets,
        *,
        out: Tensor | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        scale_grad, shift_grad = _grads(self.scale, self.shift)
        input_gradient = torch.empty_like(users) if out is None else out  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            dy = output_gradient[rows]
            torch.sum(dy * users[rows], 0, out=scale_grad[g])
            torch.sum(dy, 0, out=shift_grad[g])
            torch.mul(dy, self.scale[g], out=input_gradient[rows])
        return input_gradient


class LowRankBlock(GroupBlock):
    """Identity plus a low-rank update per group that starts at zero: y = x + B_g A_g x (as LoRA, Hu et al. 2022)."""

    rank = 16

    def __init__(self, num_groups: int, width: int) -> None:
        super().__init__(num_groups, width)
        rank = min(self.rank, width)
        self.down = nn.Parameter(torch.empty(num_groups, width, rank))  # (G, d, r)
        self.up = nn.Parameter(torch.empty(num_groups, rank, width))  # (G, r, d)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        bound = self.width**-0.5
        self.down.uniform_(-bound, bound, generator=generator)
        self.up.zero_()

    def forward(
        self, users: Tensor, offsets: Offsets, *, out: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        outputs = users.clone() if out is None else out.copy_(users)  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            hidden = matmul(users[rows], self.down[g], compute_dtype=compute_dtype)  # (U_g, r)
            outputs[rows] += matmul(hidden, self.up[g], compute_dtype=compute_dtype)
        return outputs

    def backward(
        self,
        users: Tensor,
        output_gradient: Tensor,
        offsets: Offsets,
        *,
        out: Tensor | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        down_grad, up_grad = _grads(self.down, self.up)
        input_gradient = output_gradient.clone() if out is None else out.copy_(output_gradient)  # (U, d)
        for g, rows in enumerate(_group_rows(offsets)):
            x, dy = users[rows], output_gradient[rows]
            hidden = matmul(x, self.down[g], compute_dtype=compute_dtype)  # (U_g, r)
            hidden_gradient = matmul(dy, self.up[g].t(), compute_dtype=compute_dtype)  # (U_g, r)
            matmul(hidden.t(), dy, out=up_grad[g], compute_dtype=compute_dtype)
            matmul(x.t(), hidden_gradient, out=down_grad[g], compute_dtype=compute_dtype)
            input_gradient[rows] += matmul(hidden_gradient, self.down[g].t(), compute_dtype=compute_dtype)
        return input_gradient


GROUP_BLOCKS: dict[str, type[GroupBlock]] = {
    "dense": DenseBlock,
    "shift": ShiftBlock,
    "film": FilmBlock,
    "low_rank": LowRankBlock,
}


def _group_rows(offsets: Offsets) -> list[slice]:
    return [slice(start, stop) for start, stop in pairwise(offsets)]


def _grads(*parameters: nn.Parameter) -> list[Tensor]:
    grads = [parameter.grad for parameter in parameters]
    assert all(grad is not None for grad in grads), "backward needs allocated .grad"
    return grads  # pyright: ignore[reportReturnType]

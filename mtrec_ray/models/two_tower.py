"""Two-tower propensity model (paper A: Gampa et al. 2023, sections 3.3 and 4.2).

Legend: `U` user rows, `T` title rows, `N` rows of either, `d` width, `G` territory groups.

* each tower: two dense layers with a ReLU between, batch normalisation on the first
* an optional group block on top of the user tower, one part per territory group
* logit = user . title / sqrt(d) + learned bias; propensity = sigmoid(logit)
* `final_activation: relu` with `final_batch_norm` is paper A taken literally: batch normalisation and ReLU after every
  layer, a plain dot product, no bias; the defaults were better on validation users

Training and inference share one forward: given `PairCounts`, batch normalisation takes the statistics of the batch,
else the running ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtrec_ray.models.batch_norm import PairBatchNorm, PairCounts
from mtrec_ray.models.group_block_names import GroupBlockName
from mtrec_ray.models.group_blocks import GROUP_BLOCKS
from mtrec_ray.models.matmul import DType, matmul

FinalActivation = Literal["none", "relu"]


@dataclass(frozen=True)
class TwoTowerConfig:
    """Shape of the model; raises ValueError where a value is impossible or a setting would have no effect."""

    user_width: int  # numbers per user embedding
    title_width: int  # numbers per title embedding
    d: int = 512  # width of every layer (paper A)
    num_groups: int = 1  # territory groups, read by the group block alone
    group_block: GroupBlockName | Literal["none"] = "none"  # none = the baseline model
    final_activation: FinalActivation = "none"  # relu collapses on real data: every propensity is at least 1/2
    final_batch_norm: bool = False  # on each tower's last layer; False was better on validation users
    aligned_width: int = 0  # last columns of both embeddings that lie in one space, see `TwoTower.init_weights`
    initial_bias: float = 0.0  # of the logit: the log odds of a positive, so training need not learn them

    def __post_init__(self) -> None:
        for name in ("user_width", "title_width", "d", "num_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if not 0 <= self.aligned_width <= min(self.user_width, self.title_width):
            raise ValueError(f"aligned_width = {self.aligned_width}: must lie in both embeddings")
        for name, values in (("group_block", ("none", *GROUP_BLOCKS)), ("final_activation", get_args(FinalActivation))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} = {getattr(self, name)!r}: choose one of {', '.join(values)}")
        if self.group_block == "none" and self.num_groups > 1:
            raise ValueError(f"num_groups = {self.num_groups} without effect: set group_block, or num_groups = 1")


class TowerLayer(nn.Module):
    """Dense layer, optional batch normalisation, optional ReLU; no bias where normalisation would remove it."""

    def __init__(self, width_in: int, width_out: int, *, batch_norm: bool, relu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_out, width_in))
        self.norm = PairBatchNorm(width_out) if batch_norm else None
        self.bias = None if batch_norm else nn.Parameter(torch.empty(width_out))
        self.relu = relu

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform in +-1/sqrt(width_in), as `nn.Linear`."""
        bound = self.weight.shape[1] ** -0.5
        self.weight.uniform_(-bound, bound, generator=generator)
        if self.norm is not None:
            self.norm.init_weights()
        if self.bias is not None:
            self.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, rows: Tensor, counts: PairCounts | None = None, compute_dtype: DType = None) -> Tensor:
        """(N, width_in) -> (N, width_out)."""
        rows = matmul(rows, self.weight.t(), compute_dtype)
        if self.norm is not None:
            return self.norm(rows, counts, relu=self.relu)
        if self.bias is not None:
            rows = rows.add_(self.bias)
        return rows.relu_() if self.relu else rows


class Tower(nn.Module):
    """Two dense layers (paper A); the first is always normalised and rectified."""

    def __init__(self, width_in: int, config: TwoTowerConfig) -> None:
        super().__init__()
        relu = config.final_activation == "relu"
        self.first = TowerLayer(width_in, config.d, batch_norm=True, relu=True)
        self.last = TowerLayer(config.d, config.d, batch_norm=config.final_batch_norm, relu=relu)

    @property
    def layers(self) -> tuple[TowerLayer, TowerLayer]:
        """First and last layer."""
        return self.first, self.last

    def forward(self, features: Tensor, counts: PairCounts | None = None, compute_dtype: DType = None) -> Tensor:
        """(N, width_in) of any float dtype -> (N, d); the pairs of each row while training, see `PairBatchNorm`."""
        rows = self.first(features.to(self.first.weight.dtype), counts, compute_dtype)
        return self.last(rows, counts, compute_dtype)


class TwoTower(nn.Module):
    """User tower, title tower, group block and head; call `init_weights` before use."""

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.user_tower = Tower(config.user_width, config)
        self.title_tower = Tower(config.title_width, config)
        self.group_block = None
        if config.group_block != "none":
            self.group_block = GROUP_BLOCKS[config.group_block](config.num_groups, config.d)
        literal = config.final_activation == "relu"
        self.scale = 1.0 if literal else config.d**-0.5
        self.bias = None if literal else nn.Parameter(torch.empty(()))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Set every parameter and running statistic, drawing from `generator` alone: same seed, same model.

        With `aligned_width` both towers start as one linear map of their last `aligned_width` columns ("looks linear",
        Balduzzi et al. 2017): first layer [Q; -Q], last layer [A, -A], Q and A orthogonal, so the first logit is the
        dot product of the two (normalised) vectors. On validation users this raised the PR-AUC by a fifth over
        independent towers, which overfit before they learn that product.
        """
        for layer in (*self.user_tower.layers, *self.title_tower.layers):
            layer.init_weights(generator)
        if self.config.aligned_width:
            self._align(generator)
        if self.group_block is not None:
            self.group_block.init_weights(generator)
        if self.bias is not None:
            self.bias.fill_(self.config.initial_bias)

    def _align(self, generator: torch.Generator) -> None:
        width, half = self.config.aligned_width, self.config.d // 2
        q = _orthogonal(half, width, generator)  # (d/2, width)
        a = _orthogonal(self.config.d, half, generator)  # (d, d/2)
        for tower in (self.user_tower, self.title_tower):
            tower.first.weight[: 2 * half, -width:] = torch.cat([q, -q])
            tower.last.weight[:, : 2 * half] = torch.cat([a, -a], dim=1)
            if tower.last.bias is not None:
                tower.last.bias.zero_()

    def tower_parameters(self) -> list[nn.Parameter]:
        """Every parameter outside the group block."""
        in_block = {id(parameter) for parameter in self.block_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in in_block]

    def block_parameters(self) -> list[nn.Parameter]:
        """The group block's parameters, for a learning rate of their own; empty for the baseline."""
        return [] if self.group_block is None else list(self.group_block.parameters())

    def apply_block(self, users: Tensor, offsets: Sequence[int], compute_dtype: DType = None) -> Tensor:
        """(U, d) user tower outputs sorted by group, (G + 1) row offsets -> (U, d) user vectors."""
        if self.group_block is None:
            return users
        users = self.group_block(users, offsets, compute_dtype)
        return users.relu() if self.config.final_activation == "relu" else users

    def head(self, dots: Tensor) -> Tensor:
        """Dot products of user and title vectors -> logits."""
        return dots * self.scale if self.bias is None else torch.add(self.bias, dots, alpha=self.scale)

    @torch.no_grad()
    def user_vectors(self, features: Tensor, group_index: Tensor, compute_dtype: DType = None) -> Tensor:
        """(U, user_width) features in any order, (U,) int64 group of each row -> (U, d), after the group block."""
        users = self.user_tower(features, compute_dtype=compute_dtype)  # (U, d)
        if self.group_block is None:
            return users
        order = torch.argsort(group_index, stable=True)
        counts = torch.bincount(group_index, minlength=self.config.num_groups)
        in_order = self.apply_block(users[order], [0, *counts.cumsum(0).tolist()], compute_dtype)
        return torch.empty_like(users).index_copy_(0, order, in_order)

    @torch.no_grad()
    def title_vectors(self, features: Tensor, compute_dtype: DType = None) -> Tensor:
        """(T, title_width) features -> (T, d)."""
        return self.title_tower(features, compute_dtype=compute_dtype)

    @torch.no_grad()
    def logits(self, users: Tensor, titles: Tensor, compute_dtype: DType = None) -> Tensor:
        """(U, d) user vectors, (T, d) title vectors -> (U, T); the propensity is their sigmoid."""
        return self.head(matmul(users, titles.t(), compute_dtype))


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """(rows, columns) with orthonormal rows or columns, whichever are fewer."""
    return nn.init.orthogonal_(torch.empty(rows, columns), generator=generator)

"""Two-tower propensity model (paper A: Gampa et al. 2023, sections 3.3 and 4.2).

Legend: `U` user rows, `T` title rows, `N` rows of either, `d` width, `G` territory groups.

* each tower: two dense layers, batch normalisation and ReLU between them
* an optional group block on top of the user tower, one part per territory group
* logit = user . title / sqrt(d) + learned bias; propensity = sigmoid(logit)
* `paper`: paper A literally, so batch normalisation and ReLU behind every layer of the towers, ReLU behind the block's,
  a random start and a plain dot product; no propensity is then below one half, and training collapsed on real data
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.batch_norm import PairBatchNorm, PairCounts
from mtrec_ray.models.group_blocks import GROUP_BLOCKS, BlockShape, DType, matmul
from mtrec_ray.models.shapes import GroupBlockName

EPSILON = 1e-5  # added to the mean square of a user vector before its root


@dataclass(frozen=True)
class TwoTowerConfig:
    """Shape of the model."""

    user_width: int  # numbers per user embedding
    title_width: int  # numbers per title embedding
    d: int = 512  # width of every layer (paper A)
    num_groups: int = 1  # territory groups, read by the group block alone
    discoveries: tuple[int, ...] = (0,)  # of each territory in the training window, for blocks that know territories
    group_block: GroupBlockName | Literal["none"] = "none"  # none = the baseline model
    paper: bool = False  # paper A literally, with the dense block or none
    aligned_width: int = 0  # last columns of both embeddings that lie in one space, see `TwoTower.init_weights`
    initial_bias: float = 0.0  # of the logit: the log odds of a positive, so training need not learn them
    one_hot_of_territory: tuple[int, ...] = ()  # one-hot column of the users of each territory; empty: no such input
    prior_shape: tuple[int, int, int] | None = None  # territories, titles, activities, see `streams.prior`; None: none


class Tower(nn.Module):
    """Dense layer, batch normalisation, ReLU, dense layer; with `paper` the former two again."""

    def __init__(self, width_in: int, config: TwoTowerConfig) -> None:
        super().__init__()
        width = config.d
        self.first = nn.Parameter(torch.empty(width, width_in))  # its bias would be normalised away
        self.norm = PairBatchNorm(width)
        self.last = nn.Parameter(torch.empty(width, width))
        self.last_bias = None if config.paper else nn.Parameter(torch.empty(width))
        self.final_norm = PairBatchNorm(width) if config.paper else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Uniform in +-1/sqrt(inputs), as `nn.Linear`."""
        width, width_in = self.first.shape
        for parameter, inputs in ((self.first, width_in), (self.last, width), (self.last_bias, width)):
            if parameter is not None:
                parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)

    def hidden(
        self,
        features: Tensor,
        counts: PairCounts | None = None,
        compute_dtype: DType = None,
        one_hot_rows: Tensor | None = None,
    ) -> Tensor:
        """(N, width_in) of any float dtype -> (N, d) after the ReLU; `counts` while training.

        `one_hot_rows`: (N, d) products of the first layer with further inputs.
        """
        rows = matmul(features.to(self.first.dtype), self.first.t(), compute_dtype)
        return self.norm(rows if one_hot_rows is None else rows.add_(one_hot_rows), counts)

    def output(self, hidden: Tensor, counts: PairCounts | None = None, compute_dtype: DType = None) -> Tensor:
        """(N, d) of `hidden` -> (N, d) of the tower."""
        rows = matmul(hidden, self.last.t(), compute_dtype)
        if self.last_bias is not None:
            rows = rows.add_(self.last_bias)
        return rows if self.final_norm is None else self.final_norm(rows, counts)

    def forward(self, features: Tensor, counts: PairCounts | None = None, compute_dtype: DType = None) -> Tensor:
        """(N, width_in) of any float dtype -> (N, d); `counts` while training."""
        return self.output(self.hidden(features, counts, compute_dtype), counts, compute_dtype)


class TwoTower(nn.Module):
    """User tower, title tower, group block and head; call `init_weights` before use."""

    column_of_territory: Tensor
    title_prior: Tensor | None
    user_prior: Tensor | None
    seen_prior: Tensor | None

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__()
        self.config = config
        columns = torch.tensor(config.one_hot_of_territory) if config.one_hot_of_territory else None
        self.register_buffer("column_of_territory", columns, persistent=False)  # (territories,) int64
        self.one_hot = None  # (columns, d), the user tower's first layer of these inputs
        if columns is not None:
            self.one_hot = nn.Parameter(torch.empty(int(columns.max()) + 1, config.d))
        self.user_tower = Tower(config.user_width, config)
        self.title_tower = Tower(config.title_width, config)
        self.group_block = None
        if config.group_block != "none":
            shape = BlockShape(config.d, config.num_groups, config.discoveries)
            self.group_block = GROUP_BLOCKS[config.group_block](shape)
        self.bias = None if config.paper else nn.Parameter(torch.tensor(config.initial_bias))
        self.scale = 1.0 if self.bias is None else config.d**-0.5  # keeps logits small at the start
        has_prior, (territories, titles, activities) = bool(config.prior_shape), config.prior_shape or (0, 0, 0)
        self.register_buffer("title_prior", torch.zeros(territories, titles) if has_prior else None)
        self.register_buffer("user_prior", torch.zeros(activities) if has_prior else None)
        self.register_buffer("seen_prior", torch.zeros(()) if has_prior else None)
        # Learned factor of interaction vectors' dot product, which starts at zero: at once in full, it hides the prior
        self.gain = nn.Parameter(torch.zeros(())) if has_prior and config.aligned_width else None

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Set every weight, drawing from `generator` alone.

        With `aligned_width` both towers start as one linear map of their last `aligned_width` columns ("looks linear",
        Balduzzi et al. 2017), so the first logit is the dot product of the two (normalised) vectors. On validation
        users this raised the PR-AUC by a fifth over independent towers.
        """
        self.user_tower.init_weights(generator)
        self.title_tower.init_weights(generator)
        if self.config.aligned_width:
            self._align(generator)
        if self.group_block is not None and self.config.paper:
            for parameter in self.group_block.parameters():
                parameter.uniform_(-(self.config.d**-0.5), self.config.d**-0.5, generator=generator)
        if self.one_hot is not None:
            bound = (self.config.user_width + len(self.one_hot)) ** -0.5
            self.one_hot.uniform_(-bound, bound, generator=generator)

    def _align(self, generator: torch.Generator) -> None:
        """First layer [Q; -Q], last layer [A, -A], Q and A orthogonal."""
        d, width, half = self.config.d, self.config.aligned_width, self.config.d // 2
        q = nn.init.orthogonal_(torch.empty(half, width), generator=generator)
        a = nn.init.orthogonal_(torch.empty(d, half), generator=generator)
        for tower in (self.user_tower, self.title_tower):
            tower.first[: 2 * half, -width:] = torch.cat([q, -q])
            tower.last[:, : 2 * half] = torch.cat([a, -a], dim=1)
            if tower.last_bias is not None:
                tower.last_bias.zero_()

    def tower_parameters(self) -> list[nn.Parameter]:
        """Every parameter outside the group block but the gain."""
        others = ("group_block.", "gain")
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(others)]

    def user_outputs(
        self,
        features: Tensor,
        territory: Tensor | None = None,
        counts: PairCounts | None = None,
        compute_dtype: DType = None,
    ) -> Tensor:
        """(U, user_width) features -> (U, d) of the user tower; `counts` while training.

        `territory` (U,) int64 is read with `one_hot_of_territory`: the first layer times a one-hot row is one of its
        columns.
        """
        hidden = self.user_tower.hidden(features, counts, compute_dtype, self.one_hot_rows(territory))
        return self.user_tower.output(hidden, counts, compute_dtype)

    def one_hot_rows(self, territory: Tensor | None) -> Tensor | None:
        """(U,) int64 territories -> (U, d) first layer's columns; None without that input."""
        if self.one_hot is None:
            return None
        assert territory is not None, "a model with one_hot_of_territory needs each user's territory"
        return F.embedding(self.column_of_territory[territory], self.one_hot)

    def apply_block(
        self, users: Tensor, offsets: Sequence[int], territory: Tensor | None = None, compute_dtype: DType = None
    ) -> Tensor:
        """(U, d) user tower outputs sorted by group, (G + 1) row offsets -> (U, d) user vectors.

        `territory` (U,) int64 is read by blocks that know territories.

        Beside the prior, which knows how active a user is, interaction vectors say what he likes and no more: every
        user vector then has length sqrt(d) (RMSNorm, Zhang and Sennrich 2019).
        """
        if self.group_block is not None:
            users = self.group_block(users, offsets, territory, compute_dtype)
            users = users.relu() if self.config.paper else users
        return users if self.gain is None else F.rms_norm(users, (self.config.d,), eps=EPSILON)

    def head(self, dots: Tensor) -> Tensor:
        """Dot products of user and title vectors -> logits."""
        if self.bias is None:
            return dots
        return torch.add(self.bias, dots if self.gain is None else self.gain * dots, alpha=self.scale)

    @torch.no_grad()
    def user_vectors(self, features: Tensor, group_index: Tensor, territory: Tensor | None = None) -> Tensor:
        """(U, user_width) features in any order, (U,) int64 group and territory -> (U, d)."""
        users = self.user_outputs(features, territory)  # (U, d)
        order = torch.argsort(group_index, stable=True)
        counts = torch.bincount(group_index, minlength=self.config.num_groups)
        of_order = None if territory is None else territory[order]
        in_order = self.apply_block(users[order], [0, *counts.cumsum(0).tolist()], of_order)
        return torch.empty_like(users).index_copy_(0, order, in_order)

    @torch.no_grad()
    def title_vectors(self, features: Tensor) -> Tensor:
        """(T, title_width) features -> (T, d)."""
        return self.title_tower(features)

    @torch.no_grad()
    def with_prior(
        self, logits: Tensor, territory: int, titles: Tensor | slice, activity: Tensor | None, seen: Tensor
    ) -> Tensor:
        """Add the prior, if there is one, to (U, T) logits of users of one territory.

        (T,) int64 titles; (U,) int64 activities, None is the average; (U, T) bool titles that were watched before: the
        prior alone ranks them where user vectors are made of watched titles.
        """
        if self.title_prior is None or self.user_prior is None or self.seen_prior is None:
            return logits
        if self.config.aligned_width and self.bias is not None:
            logits = torch.where(seen, self.bias, logits)
        logits = logits + self.seen_prior * seen
        if activity is not None:
            logits = logits + self.user_prior[activity, None]
        return logits + self.title_prior[territory, titles]

    @torch.no_grad()
    def logits(self, users: Tensor, titles: Tensor) -> Tensor:
        """(U, d) user vectors, (T, d) title vectors -> (U, T), without the prior.

        With the prior (`with_prior`), the propensity is their sigmoid.
        """
        return self.head(users @ titles.t())

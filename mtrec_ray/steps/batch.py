"""One batch of (user, title, label) pairs with each user's and title's features once.

Legend: `U` users, `T` distinct titles, `P` pairs, `G` territory groups, `C` titles of the catalogue.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """Pairs of distinct user and title rows; users sorted by group, pairs by user row."""

    user_features: Tensor  # (U, user_width), any float dtype, rows sorted by group
    group_offsets: tuple[int, ...]  # (G + 1,) rows of group g: group_offsets[g]:group_offsets[g + 1]
    title_features: Tensor  # (T, title_width), any float dtype
    user_rows: Tensor  # (P,) int64 row of each pair's user, not decreasing
    title_rows: Tensor  # (P,) int64 row of each pair's title
    labels: Tensor  # (P,) 0 or 1, in the dtype of the computation
    prior: Tensor  # (P,) added to the logits
    user_territory: Tensor | None = None  # (U,) int64, for models that read it

    @property
    def num_pairs(self) -> int:
        """P, on this worker."""
        return self.labels.shape[0]

    @cached_property
    def user_offsets(self) -> Tensor:
        """(U + 1,) int64: pairs of user row u are user_offsets[u]:user_offsets[u + 1]."""
        return _row_offsets(self.user_rows, self.user_features.shape[0])

    @cached_property
    def title_order(self) -> Tensor:
        """(P,) int64: the pairs sorted by title row, ties in pair order."""
        return torch.argsort(self.title_rows, stable=True)

    @cached_property
    def title_offsets(self) -> Tensor:
        """(T + 1,) int64: the same for title rows, in `title_order`."""
        return _row_offsets(self.title_rows, self.title_features.shape[0])


def make_pair_batch(
    user_features: np.ndarray | Tensor,
    user_group: np.ndarray,
    offsets: np.ndarray,
    title_index: np.ndarray,
    labels: np.ndarray,
    catalogue: Tensor,
    *,
    num_groups: int,
    user_territory: np.ndarray | None = None,
    prior: np.ndarray | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PairBatch:
    """Sort users by group, find the distinct titles, gather and cast the features of both.

    Args:
        user_features: (U, user_width) float16 or wider, in any order.
        user_group: (U,) integer in [0, num_groups).
        offsets: (U + 1,) integer; pairs of user u are offsets[u]:offsets[u + 1], which may be none; U may be 0.
        title_index: (P,) integer row of the catalogue.
        labels: (P,) 0 or 1.
        catalogue: (C, title_width) features of all titles, preferably on `device` already.
        user_territory: (U,) integer, for models that read it.
        prior: (P,) added to the logits; None is 0.
    """
    user_group, offsets, title_index = (np.asarray(a, np.int64) for a in (user_group, offsets, title_index))
    user_order = np.argsort(user_group, kind="stable")  # (U,)
    group_offsets = np.searchsorted(user_group[user_order], np.arange(num_groups + 1))
    pairs_per_user = np.diff(offsets)[user_order]  # (U,)
    pair_starts = np.cumsum(pairs_per_user) - pairs_per_user  # (U,) of the sorted users
    pair_order = np.arange(len(title_index)) + np.repeat(offsets[:-1][user_order] - pair_starts, pairs_per_user)
    title_index = title_index[pair_order]
    in_batch = np.bincount(title_index, minlength=len(catalogue)) > 0  # (C,); faster than np.unique
    titles, row_of_title = np.flatnonzero(in_batch), np.cumsum(in_batch) - 1

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return PairBatch(
        user_features=torch.as_tensor(user_features)[torch.from_numpy(user_order)].to(device).to(dtype),
        group_offsets=tuple(group_offsets.tolist()),
        title_features=catalogue[torch.from_numpy(titles).to(catalogue.device)].to(device).to(dtype),
        user_rows=put(np.repeat(np.arange(len(user_order)), pairs_per_user)),
        title_rows=put(row_of_title[title_index]),
        labels=put(np.asarray(labels)[pair_order]).to(dtype),
        user_territory=None if user_territory is None else put(np.asarray(user_territory, np.int64)[user_order]),
        prior=put(np.zeros(len(title_index)) if prior is None else prior[pair_order]).to(dtype),
    )


def _row_offsets(rows: Tensor, num_rows: int) -> Tensor:
    return F.pad(torch.bincount(rows, minlength=num_rows).cumsum(0), (1, 0))

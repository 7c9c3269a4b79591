"""One batch of (user, title, label) pairs that holds each user's and each title's features once.

Legend: `U` users, `T` distinct titles, `P` pairs, `G` territory groups, `C` titles of the catalogue.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class PairBatch:
    """Pairs that point into distinct user and title rows; users sorted by group, pairs sorted by user row."""

    user_features: Tensor  # (U, user_width), any float dtype, rows sorted by group
    group_offsets: tuple[int, ...]  # (G + 1,) rows of group g: group_offsets[g]:group_offsets[g + 1]
    title_features: Tensor  # (T, title_width), any float dtype
    user_rows: Tensor  # (P,) int64 row of each pair's user, not decreasing
    title_rows: Tensor  # (P,) int64 row of each pair's title
    labels: Tensor  # (P,) 0 or 1, in the dtype of the computation

    @property
    def num_pairs(self) -> int:
        """P, on this worker."""
        return self.labels.shape[0]

    @cached_property
    def user_offsets(self) -> Tensor:
        """(U + 1,) int64: pairs of user row u are user_offsets[u]:user_offsets[u + 1]."""
        return _row_offsets(self.user_rows, self.user_features.shape[0])

    @property
    def pairs_per_user(self) -> Tensor:
        """(U,) in the dtype of the labels."""
        return self.user_offsets.diff().to(self.labels.dtype)

    @property
    def pairs_per_title(self) -> Tensor:
        """(T,) in the dtype of the labels."""
        return self.title_offsets.diff().to(self.labels.dtype)

    @cached_property
    def title_order(self) -> Tensor:
        """(P,) int64: the pairs sorted by title row, ties in pair order."""
        return torch.argsort(self.title_rows, stable=True)

    @cached_property
    def title_offsets(self) -> Tensor:
        """(T + 1,) int64: pairs of title row t are title_order[title_offsets[t]:title_offsets[t + 1]]."""
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

    Raises ValueError for lengths that disagree and for a group or title out of range.
    """
    user_group, offsets, title_index = (np.asarray(a, np.int64) for a in (user_group, offsets, title_index))
    _check(user_features, user_group, offsets, title_index, labels, num_groups, catalogue.shape[0])
    user_order = np.argsort(user_group, kind="stable")  # (U,)
    group_offsets = np.searchsorted(user_group[user_order], np.arange(num_groups + 1))
    pairs_per_user = np.diff(offsets)[user_order]  # (U,)
    pair_starts = np.cumsum(pairs_per_user) - pairs_per_user  # (U,) of the sorted users
    pair_order = np.arange(len(title_index)) + np.repeat(offsets[:-1][user_order] - pair_starts, pairs_per_user)
    titles, title_rows = _distinct(title_index[pair_order], catalogue.shape[0])

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)

    return PairBatch(
        user_features=torch.as_tensor(user_features)[torch.from_numpy(user_order)].to(device).to(dtype),
        group_offsets=tuple(group_offsets.tolist()),
        title_features=catalogue[torch.from_numpy(titles).to(catalogue.device)].to(device).to(dtype),
        user_rows=put(np.repeat(np.arange(len(user_order)), pairs_per_user)),
        title_rows=put(title_rows),
        labels=put(np.asarray(labels)[pair_order]).to(dtype),
    )


def _distinct(index: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct values of `index` in [0, size) and each element's position among them; linear time."""
    present = np.bincount(index, minlength=size) > 0
    positions = np.cumsum(present) - 1
    return np.flatnonzero(present), positions[index]


def _row_offsets(rows: Tensor, num_rows: int) -> Tensor:
    offsets = torch.zeros(num_rows + 1, dtype=torch.int64, device=rows.device)
    torch.cumsum(torch.bincount(rows, minlength=num_rows), 0, out=offsets[1:])
    return offsets


def _check(user_features, user_group, offsets, title_index, labels, num_groups: int, num_titles: int) -> None:
    num_users = len(user_features)
    if len(user_group) != num_users or len(offsets) != num_users + 1:
        raise ValueError(
            f"{num_users} users need {num_users} groups (got {len(user_group)}) "
            f"and {num_users + 1} offsets (got {len(offsets)})"
        )
    if offsets[0] != 0 or offsets[-1] != len(title_index) or len(labels) != len(title_index):
        raise ValueError(
            f"offsets run from {offsets[0]} to {offsets[-1]} for {len(title_index)} titles and {len(labels)} labels"
        )
    for name, values, limit in (("group", user_group, num_groups), ("title", title_index, num_titles)):
        if len(values) and not (values.min() >= 0 and values.max() < limit):
            raise ValueError(f"{name} {values.min()}..{values.max()} out of range: must be in [0, {limit})")

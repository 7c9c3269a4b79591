"""The plain model: one row per pair, `nn.BatchNorm1d`, one masked loss per group, autograd. What the step must equal.

Legend: `P` pairs, `d` width, `G` groups.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.batch_norm import PairBatchNorm
from mtrec_ray.models.group_blocks import EVIDENCE
from mtrec_ray.models.two_tower import EPSILON, Tower, TwoTower
from mtrec_ray.steps.batch import PairBatch


class PairByPair(nn.Module):
    """The same parameters as a `TwoTower` (shared, not copied), with torch's own layers and every row repeated."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model
        norms = (norm for tower in (model.user_tower, model.title_tower) for norm in (tower.norm, tower.final_norm))
        self.norms = nn.ModuleList(nn.Identity() if norm is None else _torch_norm(norm) for norm in norms)

    def forward(self, batch: PairBatch) -> Tensor:
        """Mean binary cross entropy over the pairs, as a sum over groups of masked losses."""
        model = self.model
        one_hot = None
        if model.one_hot is not None and batch.user_territory is not None:
            columns = torch.tensor(model.config.one_hot_of_territory)[batch.user_territory[batch.user_rows]]  # (P,)
            one_hot = F.one_hot(columns, len(model.one_hot)).to(model.one_hot.dtype) @ model.one_hot  # (P, d)
        users = self._tower(0, model.user_tower, batch.user_features[batch.user_rows], one_hot)  # (P, d)
        titles = self._tower(2, model.title_tower, batch.title_features[batch.title_rows])  # (P, d)
        sizes = torch.tensor(_group_sizes(batch))  # (G,)
        groups = torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(batch.user_rows.device)  # (U,)
        pair_groups = groups[batch.user_rows]  # (P,)
        territory = None if batch.user_territory is None else batch.user_territory[batch.user_rows]  # (P,)
        losses = []
        for g in range(len(sizes)):
            vectors = users if model.group_block is None else group_part(model, users, g, territory)
            if model.config.paper:
                vectors = vectors.relu()
            vectors = _equal_length(model, vectors)
            logits = _logits(model, (vectors * titles).sum(1)) + batch.prior  # (P,)
            losses.append(
                (F.binary_cross_entropy_with_logits(logits, batch.labels, reduction="none") * (pair_groups == g)).sum()
            )
        return torch.stack(losses).sum() / batch.num_pairs

    def _tower(self, number: int, tower: Tower, rows: Tensor, one_hot: Tensor | None = None) -> Tensor:
        rows = rows @ tower.first.T if one_hot is None else rows @ tower.first.T + one_hot
        rows = F.linear(self.norms[number](rows).relu(), tower.last, tower.last_bias)
        rows = self.norms[number + 1](rows)
        return rows.relu() if self.model.config.paper else rows

    def running_statistics(self) -> list[Tensor]:
        """Means and variances in the order of the `TwoTower`'s own buffers."""
        return [buffer for name, buffer in self.norms.named_buffers() if not name.endswith("num_batches_tracked")]


def deduplicated_loss(model: TwoTower, batch: PairBatch, *, dense: bool) -> Tensor:
    """The same loss of the default towers with each distinct row once, of torch's own operations."""
    users = _distinct_rows(model.user_tower, batch.user_features, batch.user_offsets.diff())  # (U, d)
    titles = _distinct_rows(model.title_tower, batch.title_features, batch.title_offsets.diff())  # (T, d)
    if model.group_block is not None:
        parts = enumerate(users.split(_group_sizes(batch)))
        users = torch.cat([group_part(model, rows, g) for g, rows in parts])  # of blocks that know no territories
    users = _equal_length(model, users)
    if dense:
        dots = (users @ titles.T)[batch.user_rows, batch.title_rows]  # (P,)
    else:
        dots = (users[batch.user_rows] * titles[batch.title_rows]).sum(1)  # (P,)
    return F.binary_cross_entropy_with_logits(_logits(model, dots) + batch.prior, batch.labels)


def _distinct_rows(tower: Tower, rows: Tensor, num_pairs: Tensor) -> Tensor:
    fraction = num_pairs.to(rows.dtype) / num_pairs.sum()  # (N,)
    norm, rows = tower.norm, rows @ tower.first.T
    centred = rows - fraction @ rows
    variance = fraction @ centred.square()  # (d,)
    rows = (centred * (norm.weight * torch.rsqrt(variance + norm.eps)) + norm.bias).relu()
    return F.linear(rows, tower.last, tower.last_bias)


def _logits(model: TwoTower, dots: Tensor) -> Tensor:
    if model.bias is None:
        return dots
    return dots * (1 if model.gain is None else model.gain) / model.config.d**0.5 + model.bias


def _equal_length(model: TwoTower, users: Tensor) -> Tensor:
    """User vectors of length sqrt(d), to which nearly zero ones are shorter, where the dot product has a gain."""
    if model.gain is None:
        return users
    return users / (users.square().mean(1, keepdim=True) + EPSILON).sqrt()


def _group_sizes(batch: PairBatch) -> list[int]:
    return torch.tensor(batch.group_offsets).diff().tolist()


def group_part(model: TwoTower, users: Tensor, group: int, territory: Tensor | None = None) -> Tensor:
    """Group `group`'s part of the block on rows of any territories, written as the block's formula."""
    block = {} if model.group_block is None else dict(model.group_block.named_parameters())
    match model.config.group_block:
        case "dense":
            return users @ block["weight"][group].T + block["bias"][group]
        case "hierarchical":
            count = torch.tensor(model.config.discoveries)[territory]
            own = (count / (count + EVIDENCE))[:, None] * block["shift"][territory]
            return users @ block["weight"][group].T + block["bias"][group] + own
    raise NotImplementedError(model.config.group_block)


def _torch_norm(norm: PairBatchNorm) -> nn.BatchNorm1d:
    twin = nn.BatchNorm1d(norm.weight.shape[0], dtype=norm.weight.dtype, device=norm.weight.device)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean.clone(), norm.running_var.clone()
    return twin

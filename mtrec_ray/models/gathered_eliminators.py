"""Eliminators laid out for one forward of the backbone (paper B, 2.3).

Legend: `G` groups of rows that use the same eliminator, `B` rows of a group, `T` columns, `R` prompt rows of a group,
`P` of them in front of a history, `d` width, `r` adapter width, `S` adapters (two a layer), `h` transport units.

In training G combinations have the same B histories, in serving G rows have a combination and a history each.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class CombinationParts:
    """What depends on a group's combination alone."""

    gate: Tensor  # (G, layers) added to the attention scores of prompts
    down: Tensor  # (G, S, d, r)
    up: Tensor  # (G, S, r, d)
    norm_scale: Tensor  # (G, S, 1, r)
    norm_shift: Tensor  # (G, S, 1, r)
    transport_inner: Tensor  # (G, d, h)
    transport_bias: Tensor  # (G, 1, h)
    transport_outer: Tensor  # (G, h, d)


@dataclass(frozen=True)
class GatheredEliminators:
    """Eliminators of G groups; `cached_prompts` replace table and index, which are empty then."""

    prompt_table: Tensor  # (G, R, d) every prompt row a group can use
    prompt_index: Tensor  # (B, P) rows of the table in front of each history
    parts: CombinationParts
    transport_gain: Tensor  # (G, B, h) of each row's values, times the strength
    cached_prompts: tuple[Tensor, ...] | None = None  # `SequentialBackbone.prompt_keys_values` of these very groups

    def adapt(self, hidden: Tensor, adapter: int) -> Tensor:
        """(G or 1, B, T, d) X -> (G, B, T, d) LayerNorm(X W_down) W_up + X (eq. 2)."""
        width = self.parts.down.shape[-1]
        if not width:
            return hidden
        rows = hidden.flatten(1, 2)  # (G, B T, d)
        inner = F.layer_norm(rows @ self.parts.down[:, adapter], (width,))  # (G, B T, r)
        inner = torch.addcmul(self.parts.norm_shift[:, adapter], inner, self.parts.norm_scale[:, adapter])
        return torch.baddbmm(rows, inner, self.parts.up[:, adapter]).view_as(hidden)

    def transport(self, hidden: Tensor) -> Tensor:
        """(G, B, T, d) vectors of the last layer -> the same after each row's transport."""
        if not self.parts.transport_inner.shape[-1]:
            return hidden
        rows = hidden.flatten(1, 2)  # (G, B T, d)
        units = torch.baddbmm(self.parts.transport_bias, rows, self.parts.transport_inner).relu()  # (G, B T, h)
        units = (units.unflatten(1, hidden.shape[1:3]) * self.transport_gain[:, :, None]).flatten(1, 2)
        return torch.baddbmm(rows, units, self.parts.transport_outer, alpha=-1).view_as(hidden)

    def without_transport(self) -> "GatheredEliminators":
        """The same eliminators without their transport."""
        return replace(self, parts=replace(self.parts, transport_inner=self.parts.transport_inner[..., :0]))

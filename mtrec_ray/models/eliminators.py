"""Eliminators: prompts, adapters and transport on a frozen backbone (paper B, 2.3).

Legend: `K` combinations, `m` attributes, `A` values and unknowns of all attributes, `V` vectors, several a user, `N`
titles, `d` width, `r` adapter width, `S` adapters (two a layer), `h` transport units; in a forward `G` groups of rows
with one eliminator each, `B` users of a group, `T` columns, `R` prompt rows of a group, `P` of them before a history.

In training K groups have the same B histories, in serving G rows have a combination and a history each. A pack starts
as in paper B, without a gate on the prompts; the gate, the decay of the personal prompts and the transport are ours. A
personal prompt raises NDCG but can write the attribute value it is made of into the vector.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.models.shapes import EliminatorConfig
from mtrec_ray.models.transport import Hidden, Transport, fit_transport_maps

PROMPT_STD = 0.02  # of initial prompts: 0.3 already costs the backbone 8% of its NDCG
CLOSED_GATE = -4.0  # where our method starts: without a gate, untrained prompts cost 1-10% of NDCG@10
PERSONAL_DECAY = 3e-3  # fraction a personal prompt loses each step


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


class StackedEliminators(nn.Module):
    """Parameters of K combinations, stacked: one forward serves all.

    Up projections and transport gains start at zero; so does the gate, which lets the prompts in and is not trained
    unless it was closed. `attributes` holds the number of values of each attribute, in the lake's order; `width` and
    `num_layers` are the backbone's.
    """

    value_starts: Tensor  # (m,) first row of each attribute in a table of values
    unknown_rows: Tensor  # (m,) the unknown value's row, counted from there

    def __init__(
        self,
        config: EliminatorConfig,
        attributes: Mapping[str, int],
        combinations: Sequence[Combination],
        width: int,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        self.attributes = dict(attributes)
        self.combinations = tuple(combinations)
        num, adapters, r = len(self.combinations), 2 * num_layers, config.adapter_width
        counts = torch.tensor([values + 1 for values in self.attributes.values()])  # + unknown
        rows, units = int(counts.sum()), config.transport_units
        self.prompts = nn.Parameter(torch.empty(num, config.num_prompts, width))
        self.personal = nn.Parameter(torch.empty(num, rows if config.personal_prompt else 0, width))  # (K, A, d)
        self.down = nn.Parameter(torch.empty(num, adapters, width, r))  # (K, S, d, r)
        self.up = nn.Parameter(torch.zeros(num, adapters, r, width))
        self.gate = nn.Parameter(torch.zeros(num, num_layers), requires_grad=False)
        self.norm_scale = nn.Parameter(torch.ones(num, adapters, 1, r))
        self.norm_shift = nn.Parameter(torch.zeros(num, adapters, 1, r))
        self.transport_inner = nn.Parameter(torch.empty(num, width, units), requires_grad=False)
        self.transport_bias = nn.Parameter(torch.empty(num, 1, units), requires_grad=False)
        self.transport_gain = nn.Parameter(torch.zeros(num, rows, units), requires_grad=False)  # (K, A, h)
        self.transport_outer = nn.Parameter(torch.empty(num, units, width), requires_grad=False)
        self.transport_strength = nn.Parameter(torch.zeros(num, 1, 1 if units else 0), requires_grad=False)
        self.register_buffer("value_starts", counts.cumsum(0) - counts, persistent=False)
        self.register_buffer("unknown_rows", counts - 1, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw what does not start at a constant; a combination's draws depend on its name alone."""
        (width, r), units = self.down.shape[-2:], self.config.transport_units
        bound = (6 / (width + max(r, 1))) ** 0.5
        for k, combination in enumerate(self.combinations):
            generator = combination_generator(seed, combination)
            self.prompts[k].normal_(0, PROMPT_STD, generator=generator)
            self.personal[k].normal_(0, PROMPT_STD, generator=generator)
            self.down[k].uniform_(-bound, bound, generator=generator)
            self.transport_inner[k] = torch.randn(width, units, generator=generator) * width**-0.5
            self.transport_bias[k] = torch.randn(1, units, generator=generator) * 0.5
            self.transport_outer[k] = torch.randn(units, width, generator=generator) * 0.1

    @torch.no_grad()
    def close_gate(self) -> None:
        """Hide the prompts at first and train the gate, so that the pack starts at the backbone."""
        self.gate.fill_(CLOSED_GATE).requires_grad_(True)

    @property
    def transport(self) -> Transport:
        """The maps behind the last layer."""
        return Transport(**{f.name: self.get_parameter(f"transport_{f.name}") for f in fields(Transport)})

    def fit_transport(
        self,
        vectors: Tensor,
        attribute_index: Tensor,
        user: Tensor,
        fold: Tensor,
        titles: Tensor,
        *,
        weight: float,
        steps: int,
        seed: int,
        find_strength: bool,
    ) -> None:
        """Fit the transport further, so that users of different selected values become alike.

        (K, V, d) vectors before the transport, (V, m) values, -1 unknown, (V,) int64 user and its fold, (N, d) titles;
        for the others see `transport`.
        """
        sizes, chosen = self.attributes, self.combinations
        rows = [(name, value < size) for name, size in sizes.items() for value in range(size + 1)]  # (A,)
        selected = torch.tensor([[name in one for name in sizes] for one in chosen])  # (K, m)
        movable = torch.tensor([[known and name in one for name, known in rows] for one in chosen])  # (K, A)
        hidden = Hidden(
            vectors=vectors,
            values=attribute_index,
            rows=self._value_rows(attribute_index),
            user=user,
            selected=selected.to(vectors.device),
            movable=movable[:, :, None].to(vectors),
            num_values=list(sizes.values()),
            titles=titles,
            weight=weight,
        )
        fitted = fit_transport_maps(hidden, self.transport, fold, steps, seed, find_strength=find_strength)
        with torch.no_grad():
            for name, value in vars(fitted).items():
                self.get_parameter(f"transport_{name}").copy_(value)

    @torch.no_grad()
    def with_identity(self) -> "StackedEliminators":
        """A copy with one more combination, of no attribute, that leaves the backbone unchanged."""
        combinations, shape = [*self.combinations, ()], (self.prompts.shape[-1], self.gate.shape[-1])
        wider = StackedEliminators(self.config, self.attributes, combinations, *shape)
        for name, parameter in wider.named_parameters():
            parameter[:-1] = self.get_parameter(name)
            parameter[-1] = -torch.inf if name == "gate" else 0
        return wider.to(self.prompts.device).eval().requires_grad_(False)

    def for_all(self, attribute_index: Tensor) -> GatheredEliminators:
        """(B, m) values, -1 unknown -> every combination for each user: K groups of B rows."""
        gain = self.transport_gain[:, self._value_rows(attribute_index)].sum(2)  # (K, B, h)
        return GatheredEliminators(
            prompt_table=torch.cat([self.prompts, self.personal], 1),
            prompt_index=self._prompt_rows(attribute_index),
            parts=CombinationParts(**self.parts),
            transport_gain=gain * self.transport_strength,
        )

    def for_rows(self, combination_index: Tensor, attribute_index: Tensor) -> GatheredEliminators:
        """(B,) combinations, (B, m) values -> one eliminator a row: B groups of one row."""
        rows = self._prompt_rows(attribute_index)  # (B, P)
        table = torch.cat([self.prompts, self.personal], 1)[combination_index[:, None], rows]  # (B, P, d)
        gain = self.transport_gain[combination_index[:, None], self._value_rows(attribute_index)].sum(1)  # (B, h)
        return GatheredEliminators(
            prompt_table=table,
            prompt_index=torch.arange(table.shape[1], device=table.device)[None],
            parts=CombinationParts(**{name: part[combination_index] for name, part in self.parts.items()}),
            transport_gain=gain[:, None] * self.transport_strength[combination_index],  # (B, 1, h)
        )

    @property
    def parts(self) -> dict[str, Tensor]:
        """What does not depend on the users, by field of `CombinationParts`."""
        return {f.name: self.get_parameter(f.name) for f in fields(CombinationParts)}

    def _prompt_rows(self, attribute_index: Tensor) -> Tensor:
        """(B, m) -> (B, P) rows of the table: all task prompts, then the user's values."""
        task = torch.arange(self.config.num_prompts, device=attribute_index.device).expand(len(attribute_index), -1)
        if not self.config.personal_prompt:
            return task
        return torch.cat([task, self.config.num_prompts + self._value_rows(attribute_index)], 1)

    def _value_rows(self, attribute_index: Tensor) -> Tensor:
        """(B, m) -> (B, m) rows of a table of values."""
        return self.value_starts + torch.where(attribute_index < 0, self.unknown_rows, attribute_index)


def combination_generator(seed: int, combination: Combination) -> torch.Generator:
    """A generator that depends on the seed and the combination's own name alone."""
    digest = hashlib.blake2b(f"{seed}/{combination_name(combination)}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

"""Eliminators: prompts and adapters that make a frozen backbone forget a combination of attributes (paper B, 2.3).

Legend: `K` combinations of a pack, `m` attributes, `R` prompt rows a combination owns, `P` prompt rows in front of a
history, `G` groups of rows that share an eliminator, `B` rows of a group, `T` columns, `d` width, `r` adapter width,
`S` adapter places (two a layer).

A pack holds its combinations stacked on a leading dimension. Training runs one batch of users through all of them
(G = K, the same B histories); serving gives every row its own combination (G = rows, B = 1). Both are one forward.
The gate before the prompts, the pull on the personal prompts and the map are ours, the rest is paper B's.

A personal prompt keeps accuracy (on MovieLens-100K it spared 5-7% of NDCG) but can write the label it is made of into
the vector: trained fast (RMSprop 1e-3) it fitted the few users of a rare value, and a fresh attacker read the shift on
others. Slow training and averaged weights prevent that; a pull of the personal prompts towards zero is the brake.
Behind the last layer a map moves each value's users to where the others are (transport.py): fitted apart, on vectors
that prompts and adapters have left, and trained around like the frozen backbone.
What a combination starts from is drawn from a generator seeded by its own name, whatever else is in the pack.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.models.sequential import SUBLAYERS, Sublayer
from mtrec_ray.models.transport import Hidden, Transport, fit, untrained


@dataclass(frozen=True)
class EliminatorConfig:
    """Shape of an eliminator; a part left out is an ablation."""

    num_prompts: int = 10  # m_1 in the paper; 0 leaves the task prompt out
    personal_prompt: bool = True
    adapter_width: int = 8  # r; 0 leaves the adapters out
    transport_units: int = 16  # h of the map behind the last layer (transport.py); 0 leaves it out
    prompt_std: float = 0.02  # of the normal draws prompts start from: 0.3 already costs the backbone 8% of its NDCG
    initial_gate: float = -4.0  # see `StackedEliminators.init_weights`
    personal_decay: float = 3e-3  # share a personal prompt loses each step, see the file's legend

    def __post_init__(self) -> None:
        if not (self.num_prompts or self.personal_prompt or self.adapter_width):
            raise ValueError("an eliminator needs a prompt, a personal prompt or adapters; all three are left out")


class StackedEliminators(nn.Module):
    """Parameters of K combinations, stacked.

    Args:
        attributes: number of values of each attribute, in the lake's order.
        combinations: the attributes each eliminator is to hide.
    """

    value_starts: Tensor  # (m,) first row of each attribute in a table of values
    unknown_rows: Tensor  # (m,) the unknown value's row, counted from there

    def __init__(
        self,
        config: EliminatorConfig,
        attributes: Mapping[str, int],
        combinations: Sequence[Combination],
        *,
        width: int,
        num_layers: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.attributes = dict(attributes)
        self.combinations = tuple(combinations)
        num, places, r = len(self.combinations), 2 * num_layers, config.adapter_width
        counts = [values + 1 for values in self.attributes.values()]  # + unknown
        self.prompts = nn.Parameter(torch.empty(num, config.num_prompts, width))  # (K, 10, d)
        personal = sum(counts) if config.personal_prompt else 0
        self.personal = nn.Parameter(torch.empty(num, personal, width))  # (K, values and unknowns, d)
        self.down = nn.Parameter(torch.empty(num, places, width, r))  # (K, S, d, r)
        self.up = nn.Parameter(torch.empty(num, places, r, width))  # (K, S, r, d)
        self.gate = nn.Parameter(torch.empty(num, num_layers))  # (K, layers) added to the prompts' attention scores
        self.norm_scale = nn.Parameter(torch.empty(num, places, 1, r))
        self.norm_shift = nn.Parameter(torch.empty(num, places, 1, r))
        rows, units = sum(counts), config.transport_units
        self.transport_inner = nn.Parameter(torch.empty(num, width, units), requires_grad=False)
        self.transport_bias = nn.Parameter(torch.empty(num, 1, units), requires_grad=False)
        self.transport_gain = nn.Parameter(torch.empty(num, rows, units), requires_grad=False)
        self.transport_outer = nn.Parameter(torch.empty(num, units, width), requires_grad=False)
        self.transport_strength = nn.Parameter(torch.empty(num, 1, 1 if units else 0), requires_grad=False)
        starts = [sum(counts[:a]) for a in range(len(counts))]
        unknown = [count - 1 for count in counts]
        self.register_buffer("value_starts", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.register_buffer("unknown_rows", torch.tensor(unknown, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Start at the backbone itself: small prompts behind a closed gate, adapters whose up projection is zero.

        Untrained prompts whose scores are near zero take as much attention as the events they stand before: without
        the gate they cost 10% of NDCG@10 on short synthetic histories and 1-2% on MovieLens-100K before the first
        step; on the synthetic ones training did not win it back.
        """
        generators = [combination_generator(seed, combination) for combination in self.combinations]
        for k, generator in enumerate(generators):
            for table in (self.prompts[k], self.personal[k]):
                table.normal_(0, self.config.prompt_std, generator=generator)
            bound = (6 / (self.down.shape[-2] + max(self.down.shape[-1], 1))) ** 0.5
            self.down[k].uniform_(-bound, bound, generator=generator)
        self.up.zero_()
        self.gate.fill_(self.config.initial_gate)
        self.norm_scale.fill_(1)
        self.norm_shift.zero_()
        if self.config.transport_units:
            num, rows, units = self.transport_gain.shape
            self._set_transport(untrained(num, rows, self.transport_inner.shape[1], units, generators))

    @property
    def transport(self) -> Transport:
        """The maps behind the last layer."""
        return Transport(
            inner=self.transport_inner,
            bias=self.transport_bias,
            gain=self.transport_gain,
            outer=self.transport_outer,
            strength=self.transport_strength,
        )

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
        """Make the selected values' users alike from now on, going on from the maps that are there.

        Args:
            vectors: (K, V, d) before the maps.
            attribute_index: (V, m) values, -1 unknown.
            user: (V,) int64.
            fold: (V,) of the user.
            titles: (N, d) vectors of the catalogue.
            weight, steps, seed, find_strength: see `transport.fit`.
        """
        selected = [[name in chosen for name in self.attributes] for chosen in self.combinations]
        movable = [
            [
                float(name in chosen and value < size)
                for name, size in self.attributes.items()
                for value in range(size + 1)
            ]
            for chosen in self.combinations
        ]
        hidden = Hidden(
            vectors=vectors,
            values=attribute_index,
            rows=self._value_rows(attribute_index),
            user=user,
            selected=torch.tensor(selected, device=vectors.device),
            movable=torch.tensor(movable, device=vectors.device)[:, :, None],
            num_values=list(self.attributes.values()),
            titles=titles,
            weight=weight,
        )
        self._set_transport(fit(hidden, self.transport, fold, steps, seed, find_strength=find_strength))

    @torch.no_grad()
    def _set_transport(self, transport: Transport) -> None:
        for name, value in vars(transport).items():
            self.get_parameter(f"transport_{name}").copy_(value)

    @torch.no_grad()
    def shrink_personal(self) -> None:
        """One step's pull of the personal prompts towards zero, apart from the optimizer's own scaling."""
        self.personal.mul_(1 - self.config.personal_decay)

    def for_all(self, attribute_index: Tensor) -> "GatheredEliminators":
        """(B, m) users' values, -1 unknown -> every combination for each of them: G = K."""
        table = torch.cat([self.prompts, self.personal], 1)  # (K, R, d)
        gain = self.transport_gain[:, self._value_rows(attribute_index)].sum(2) * self.transport_strength  # (K, B, h)
        return GatheredEliminators(table, self._prompt_rows(attribute_index)[None], *self.shared(), transport_gain=gain)

    @torch.no_grad()
    def with_identity(self) -> "StackedEliminators":
        """The same pack with one combination more, of no attribute, that leaves the backbone as it is."""
        wider = StackedEliminators(
            self.config,
            self.attributes,
            [*self.combinations, ()],
            width=self.prompts.shape[-1],
            num_layers=self.gate.shape[-1],
        )
        for name, parameter in wider.named_parameters():
            parameter[:-1] = self.get_parameter(name)
            parameter[-1] = -torch.inf if name == "gate" else 0
        return wider.to(self.prompts.device).eval().requires_grad_(False)

    def for_rows(self, combination_index: Tensor, attribute_index: Tensor) -> "GatheredEliminators":
        """(B,) each row's combination, (B, m) its values -> one eliminator a row: G = B rows of one history."""
        rows = self._prompt_rows(attribute_index)  # (B, P)
        table = torch.cat([self.prompts, self.personal], 1)[combination_index[:, None], rows]  # (B, P, d)
        own = torch.arange(table.shape[1], device=table.device).expand(1, 1, -1)
        gain = self.transport_gain[combination_index[:, None], self._value_rows(attribute_index)].sum(1)  # (B, h)
        gain = gain[:, None] * self.transport_strength[combination_index]  # (B, 1, h)
        shared = (parameter[combination_index] for parameter in self.shared())
        return GatheredEliminators(table, own, *shared, transport_gain=gain)

    def shared(self) -> tuple[Tensor, ...]:
        """What does not depend on the users, in `GatheredEliminators`' order."""
        adapters = (self.down, self.up, self.norm_scale, self.norm_shift)
        return self.gate, *adapters, self.transport_inner, self.transport_bias, self.transport_outer

    def _prompt_rows(self, attribute_index: Tensor) -> Tensor:
        """(B, m) -> (B, P) rows of the table: all task prompts, then the user's values."""
        task = torch.arange(self.config.num_prompts, device=attribute_index.device).expand(len(attribute_index), -1)
        if not self.config.personal_prompt:
            return task
        return torch.cat([task, self.config.num_prompts + self._value_rows(attribute_index)], 1)

    def _value_rows(self, attribute_index: Tensor) -> Tensor:
        """(B, m) -> (B, m) rows of a table of values."""
        return self.value_starts + torch.where(attribute_index < 0, self.unknown_rows, attribute_index)


@dataclass(frozen=True)
class GatheredEliminators:
    """Eliminators laid out for one forward (`sequential.EliminatorRows`).

    Table and index of the prompts are empty where `cached_prompts` stand in their place.
    """

    prompt_table: Tensor  # (G, R, d)
    prompt_index: Tensor  # (1, B, P)
    prompt_gate: Tensor  # (G, layers)
    down: Tensor  # (G, S, d, r)
    up: Tensor  # (G, S, r, d)
    norm_scale: Tensor  # (G, S, 1, r)
    norm_shift: Tensor  # (G, S, 1, r)
    transport_inner: Tensor  # (G, d, h)
    transport_bias: Tensor  # (G, 1, h)
    transport_outer: Tensor  # (G, h, d)
    transport_gain: Tensor  # (G, B, h) of each row's values, times the share
    cached_prompts: tuple[Tensor, ...] | None = None  # a layer: (G, B, H, P, 2 d / H)

    def adapt(self, hidden: Tensor, layer: int, sublayer: Sublayer) -> Tensor:
        """(G, B, T, d) -> LayerNorm(X W_down) W_up + X of the same shape (eq. 2)."""
        if not self.down.shape[-1]:
            return hidden
        place = 2 * layer + SUBLAYERS.index(sublayer)
        rows = hidden.flatten(1, 2)  # (G, B T, d)
        inner = F.layer_norm(rows @ self.down[:, place], (self.down.shape[-1],))  # (G, B T, r)
        inner = torch.addcmul(self.norm_shift[:, place], inner, self.norm_scale[:, place])
        return torch.baddbmm(rows, inner, self.up[:, place]).view_as(hidden)

    def finish(self, hidden: Tensor) -> Tensor:
        """(G, B, T, d) vectors of the last layer -> the same moved to where other values' users are."""
        if not self.transport_inner.shape[-1]:
            return hidden
        rows = hidden.flatten(1, 2)  # (G, B T, d)
        units = torch.baddbmm(self.transport_bias, rows, self.transport_inner).relu()  # (G, B T, h)
        units = (units.unflatten(1, hidden.shape[1:3]) * self.transport_gain[:, :, None]).flatten(1, 2)
        return torch.baddbmm(rows, units, self.transport_outer, alpha=-1).view_as(hidden)

    def without_transport(self) -> "GatheredEliminators":
        """The same rows, their vectors left where the last layer put them."""
        return replace(self, transport_inner=self.transport_inner[..., :0])


def combination_generator(seed: int, combination: Combination) -> torch.Generator:
    """A generator that depends on the seed and the combination's own name alone."""
    digest = hashlib.blake2b(f"{seed}/{combination_name(combination)}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

"""Eliminators: prompts and adapters that make a frozen backbone forget a combination of attributes (paper B, 2.3).

Legend: `K` combinations of a pack, `m` attributes, `R` prompt rows a combination owns, `P` prompt rows in front of a
history, `G` groups of rows that share an eliminator, `B` rows of a group, `T` columns, `d` width, `r` adapter width,
`S` adapter places (two a layer).

A pack holds its combinations stacked on a leading dimension. Training runs one batch of users through all of them
(G = K, the same B histories); serving gives every row its own combination (G = rows, B = 1). Both are one forward.
A personal prompt keeps accuracy (on MovieLens-100K it spared 5-7% of NDCG) but can write the label it is made of into
the vector: trained fast (RMSprop 1e-3) it fitted the few users of a rare value, and a fresh attacker read the shift on
others. Slow training and averaged weights prevent that; a pull of the personal prompts towards zero is the brake.
What a combination starts from is drawn from a generator seeded by its own name, whatever else is in the pack.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.offsets import match_means
from mtrec_ray.models.sequential import SUBLAYERS, Sublayer

Combination = tuple[str, ...]


@dataclass(frozen=True)
class EliminatorConfig:
    """Shape of an eliminator; a part left out is an ablation."""

    num_prompts: int = 10  # m_1 in the paper; 0 leaves the task prompt out
    personal_prompt: bool = True
    adapter_width: int = 16  # r; 0 leaves the adapters out
    offset_rank: int = 2  # directions an attribute's offsets may use (offsets.py); 0 leaves the offsets out
    prompt_std: float = 0.02  # of the normal draws prompts start from: 0.3 already costs the backbone 8% of its NDCG
    initial_gate: float = -4.0  # see `EliminatorPack.init_weights`
    personal_decay: float = 3e-3  # share a personal prompt loses each step, see the file's legend

    def __post_init__(self) -> None:
        if not (self.num_prompts or self.personal_prompt or self.adapter_width):
            raise ValueError("an eliminator needs a prompt, a personal prompt or adapters; all three are left out")


class EliminatorPack(nn.Module):
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
        self.offset_amounts = nn.Parameter(torch.empty(num, sum(counts), config.offset_rank), requires_grad=False)
        directions = torch.empty(num, len(counts), config.offset_rank, width)
        self.offset_directions = nn.Parameter(directions, requires_grad=False)  # (K, m, r, d)
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
        for k, combination in enumerate(self.combinations):
            generator = combination_generator(seed, combination)
            for table in (self.prompts[k], self.personal[k]):
                table.normal_(0, self.config.prompt_std, generator=generator)
            bound = (6 / (self.down.shape[-2] + max(self.down.shape[-1], 1))) ** 0.5
            self.down[k].uniform_(-bound, bound, generator=generator)
        self.up.zero_()
        self.gate.fill_(self.config.initial_gate)
        self.norm_scale.fill_(1)
        self.norm_shift.zero_()
        self.offset_amounts.zero_()
        self.offset_directions.zero_()

    @torch.no_grad()
    def set_offsets(self, vectors: Tensor, attribute_index: Tensor, fold: Tensor) -> None:
        """Take from now on what makes the values' means equal, as `match_means` finds it.

        Args:
            vectors: (K, V, d) without offsets.
            attribute_index: (V, m).
            fold: (V,).
        """
        names, starts = list(self.attributes), self.value_starts.tolist()
        self.offset_amounts.zero_()
        for k, combination in enumerate(self.combinations):
            chosen = [names.index(name) for name in combination]
            sizes = [self.attributes[name] for name in combination]
            found = match_means(vectors[k], attribute_index[:, chosen], fold, sizes, self.config.offset_rank)
            for a, (amounts, directions) in zip(chosen, found, strict=True):
                size, rank = amounts.shape
                self.offset_amounts[k, starts[a] : starts[a] + size, :rank] = amounts.float()
                self.offset_directions[k, a, :rank] = directions.float()

    def offsets(self, attribute_index: Tensor) -> Tensor:
        """(B, m) values -> (K, B, d) what is taken from a vector; nothing for an unknown value."""
        amounts = self.offset_amounts[:, self._value_rows(attribute_index)]  # (K, B, m, r)
        return amounts.flatten(2) @ self.offset_directions.flatten(1, 2)

    @torch.no_grad()
    def shrink_personal(self) -> None:
        """One step's pull of the personal prompts towards zero, apart from the optimizer's own scaling."""
        self.personal.mul_(1 - self.config.personal_decay)

    @property
    def num_parameters(self) -> int:
        """Of one eliminator."""
        return sum(parameter[0].numel() for parameter in self.parameters())

    def for_all(self, attribute_index: Tensor) -> "PackRows":
        """(B, m) users' values, -1 unknown -> every combination for each of them: G = K."""
        table = torch.cat([self.prompts, self.personal], 1)  # (K, R, d)
        return PackRows(
            table, self._prompt_rows(attribute_index)[None], *self._shared(), offsets=self.offsets(attribute_index)
        )

    @torch.no_grad()
    def with_identity(self) -> "EliminatorPack":
        """The same pack with one combination more, of no attribute, that leaves the backbone as it is."""
        wider = EliminatorPack(
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

    def for_rows(
        self, combination_index: Tensor, attribute_index: Tensor, cached_prompts: tuple[Tensor, ...] | None = None
    ) -> "PackRows":
        """(B,) each row's combination, (B, m) its values -> one eliminator a row: G = B rows of one history.

        With the prompts' keys and values of these rows at hand (`SequentialBackbone.prompt_layers`) none are made.
        """
        if cached_prompts is None:
            rows = self._prompt_rows(attribute_index)  # (B, P)
            table = torch.cat([self.prompts, self.personal], 1)[combination_index[:, None], rows]  # (B, P, d)
        else:
            table = self.prompts[:0]
        own = torch.arange(table.shape[1], device=table.device).expand(1, 1, -1)
        amounts = self.offset_amounts[combination_index[:, None], self._value_rows(attribute_index)]  # (B, m, r)
        offsets = amounts.flatten(1)[:, None] @ self.offset_directions[combination_index].flatten(1, 2)  # (B, 1, d)
        shared = (parameter[combination_index] for parameter in self._shared())
        return PackRows(table, own, *shared, offsets=offsets, cached_prompts=cached_prompts)

    def _shared(self) -> tuple[Tensor, ...]:
        """What does not depend on the users, in `PackRows`' order."""
        return self.gate, self.down, self.up, self.norm_scale, self.norm_shift

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
class PackRows:
    """Eliminators laid out for one forward (`sequential.EliminatorRows`)."""

    prompt_table: Tensor  # (G, R, d)
    prompt_index: Tensor  # (1, B, P)
    prompt_gate: Tensor  # (G, layers)
    down: Tensor  # (G, S, d, r)
    up: Tensor  # (G, S, r, d)
    norm_scale: Tensor  # (G, S, 1, r)
    norm_shift: Tensor  # (G, S, 1, r)
    offsets: Tensor  # (G, B, d)
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
        """(G, B, T, d) vectors of the last layer -> the same with every value's users around one mean."""
        return hidden - self.offsets[:, :, None]


def combination_generator(seed: int, combination: Combination) -> torch.Generator:
    """A generator that depends on the seed and the combination's own name alone."""
    digest = hashlib.blake2b(f"{seed}/{'+'.join(combination)}".encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))

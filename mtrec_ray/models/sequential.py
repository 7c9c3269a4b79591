"""SASRec and BERT4Rec behind one interface, with the hooks of an eliminator.

Legend: `B` batch rows, `L` history length, `T` columns of a history tensor (L, one more for BERT4Rec), `d` width,
`H` heads, `P` prompt rows, `G` groups of rows with their own eliminator (1 without), `Q` columns read.

A history is left-aligned: its oldest event is column 0, as in a crop, and -1 fills the end, which no event sees behind
a causal mask. Prompts have no position. They attend to each other, never to the history.

Attention over prompts and history is computed in two parts joined by one softmax: the history counts as one more prompt
whose score is the log-sum-exp of its scores and whose value is its attention output. In the first layer the history's
part depends on the frozen backbone alone, so it is computed once for all groups.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.eliminators import GatheredEliminators
from mtrec_ray.models.shapes import SequentialConfig


class SequentialBackbone(nn.Module):
    """(B, T) title indices -> (B, T, d) vectors that score titles by dot product.

    SASRec (Kang and McAuley 2018) is causal: the vector at column t is the user's after event t. BERT4Rec (Sun et al.
    2019) is bidirectional, with a mask token at the target. Sublayers are post-norm without an output projection, as
    in the code of paper B's authors (ReChorus).
    """

    causal_mask: Tensor  # (T, T)

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        self.config = config
        self.bidirectional = config.kind == "bert4rec"
        self.num_columns = config.history + self.bidirectional
        self.titles = nn.Embedding(config.num_titles + self.bidirectional, config.width)  # the last row: mask token
        self.positions = nn.Parameter(torch.empty(self.num_columns, config.width))
        layers = nn.ModuleList(Layer(config, number) for number in range(config.num_layers))
        self.layers = cast("Sequence[Layer]", layers)
        self.dropout = ByteDropout(config.dropout)
        causal = torch.full((self.num_columns, self.num_columns), float("-inf")).triu_(1)
        self.register_buffer("causal_mask", causal, persistent=False)
        self._remembered: tuple[Tensor, Tensor] | None = None

    @property
    def mask_token(self) -> int:
        return self.config.num_titles

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) tables, Xavier matrices, zero biases, unit norms."""
        for table in (self.titles.weight, self.positions):
            table.normal_(0, 0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, history: Tensor, *, eliminators: GatheredEliminators | None = None, read: Tensor | None = None
    ) -> Tensor:
        """(B, T) histories or, one a group, (G, 1, T) -> (B, T, d), with eliminators (G, B, T, d).

        `read` (B, Q) or (G, 1, Q) gives the columns wanted of the last layer, Q in place of T; None means all.
        """
        histories = history if history.dim() == 3 else history[None]  # (G or 1, B, T)
        titles = histories.clamp(min=0)
        hidden = self.dropout(self.titles(titles) + self.positions[: titles.shape[-1]])  # (G or 1, B, T, d)
        mask, known = self._attention_mask(histories), self._remembered_keys_values(titles)
        prompts: Sequence[Tensor | None] = [None] * len(self.layers)
        if eliminators is not None:
            prompts = eliminators.cached_prompts or self.prompt_keys_values(eliminators)
        for layer, of_prompts in zip(self.layers, prompts, strict=True):
            wanted = read if layer is self.layers[-1] else None
            hidden = layer(hidden, mask, of_prompts, eliminators, read=wanted, keys_values=known)
            known = None  # those of the first layer
        if eliminators is not None:
            return eliminators.transport(hidden)
        return hidden if history.dim() == 3 else hidden[0]

    def user_vectors(self, history: Tensor, *, eliminators: GatheredEliminators | None = None) -> Tensor:
        """(..., L) histories of at least one event -> (B, d) or (G, B, d)."""
        lengths = (history >= 0).sum(-1, keepdim=True)  # (..., 1)
        if self.bidirectional:
            history = F.pad(history, (0, 1), value=-1).scatter(-1, lengths, self.mask_token)
            return self(history, eliminators=eliminators, read=lengths).squeeze(-2)
        return self(history, eliminators=eliminators, read=lengths - 1).squeeze(-2)

    def title_vectors(self) -> Tensor:
        """(N, d) vectors of the catalogue."""
        return self.titles.weight[: self.config.num_titles]

    def prompt_keys_values(self, eliminators: GatheredEliminators) -> tuple[Tensor, ...]:
        """Keys and values of the prompts in each layer, (G, B, H, P, 2 d / H)."""
        table, rows = eliminators.prompt_table, eliminators.prompt_index
        first = self.layers[0]
        found = [first.heads(first.key_value(table)[:, rows])]  # the table is small
        prompts = table[:, rows] if len(self.layers) > 1 else table  # (G, B, P, d)
        for layer, next_layer in pairwise(self.layers):
            prompts = layer(prompts, prompts.new_zeros(()), None, eliminators, keys_values=found[-1])
            found.append(next_layer.heads(next_layer.key_value(prompts)))
        return tuple(found)

    @torch.no_grad()
    def remember_titles(self) -> "SequentialBackbone":
        """Cache the first layer's keys and values of each title, (N, 2 d), of frozen weights."""
        key_value = self.layers[0].key_value
        self._remembered = F.linear(self.titles.weight, key_value.weight), key_value(self.positions)
        return self

    def _remembered_keys_values(self, titles: Tensor) -> Tensor | None:
        """(G or 1, B, H, T, 2 d / H) of the first layer, if cached: linear in title and position."""
        if self._remembered is None or self.training:
            return None
        of_titles, of_positions = self._remembered
        return self.layers[0].heads(F.embedding(titles, of_titles) + of_positions[: titles.shape[-1]])

    def _attention_mask(self, histories: Tensor) -> Tensor:
        """Added to scores: (T, T) causal, or (G or 1, B, 1, 1, T) that hides the filler."""
        if self.bidirectional:
            hidden = (histories < 0)[:, :, None, None]
            return torch.zeros(hidden.shape, device=histories.device).masked_fill_(hidden, float("-inf"))
        return self.causal_mask[: histories.shape[-1], : histories.shape[-1]]


class Layer(nn.Module):
    """Self-attention and feed-forward with residual, layer norm and adapters, if any (eq. 2)."""

    def __init__(self, config: SequentialConfig, number: int) -> None:
        super().__init__()
        self.number, self.num_heads = number, config.num_heads
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.attention_norm = nn.LayerNorm(config.width)
        self.expand = nn.Linear(config.width, config.width)
        self.contract = nn.Linear(config.width, config.width)
        self.feed_forward_norm = nn.LayerNorm(config.width)
        self.activation = F.gelu if config.kind == "bert4rec" else F.relu
        self.dropout = ByteDropout(config.dropout)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        prompts: Tensor | None,
        eliminators: GatheredEliminators | None,
        *,
        read: Tensor | None = None,
        keys_values: Tensor | None = None,
    ) -> Tensor:
        """(G or 1, B, T, d) -> (G, B, T or Q, d).

        Args:
            mask: (), (T, T) or (G or 1, B, 1, 1, T), added to scores.
            prompts: keys and values, (G, B, H, P, 2 d / H).
            read: (B, Q) or (G, 1, Q) columns wanted.
            keys_values: those of `hidden`, (G or 1, B, H, T, 2 d / H), if they are known.
        """
        keys_values = self.heads(self.key_value(hidden)) if keys_values is None else keys_values
        keys, values = keys_values.chunk(2, dim=-1)  # (G or 1, B, H, T, d / H)
        if read is not None:
            columns = read if read.dim() == 3 else read[None]  # (G or 1, B, Q)
            hidden = hidden.gather(2, columns[..., None].expand(len(hidden), -1, -1, hidden.shape[-1]))
            mask = mask[columns][:, :, None] if mask.dim() == 2 else mask  # (G or 1, B, 1, Q or 1, T)
        queries = self.heads(self.query(hidden)) * keys.shape[-1] ** -0.5  # (G or 1, B, H, T or Q, d / H)
        scores = queries @ keys.transpose(-1, -2) + mask  # (G or 1, B, H, T or Q, T)
        if prompts is None or eliminators is None:
            attended = scores.softmax(-1) @ values
        else:
            attended = _attend_to_prompts(queries, scores, values, prompts, eliminators.parts.gate[:, self.number])
        hidden = self.attention_norm(hidden + self.dropout(attended.transpose(-2, -3).flatten(-2)))
        hidden = hidden if eliminators is None else eliminators.adapt(hidden, 2 * self.number)
        inner = self.dropout(self.activation(self.expand(hidden)))
        hidden = self.feed_forward_norm(hidden + self.dropout(self.contract(inner)))
        return hidden if eliminators is None else eliminators.adapt(hidden, 2 * self.number + 1)

    def heads(self, rows: Tensor) -> Tensor:
        """(..., T, n d) -> (..., H, T, n d / H)."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


def _attend_to_prompts(queries: Tensor, scores: Tensor, values: Tensor, prompts: Tensor, gate: Tensor) -> Tensor:
    """(G, B, H, T or Q, d / H); the gate (G,) is added to the scores of prompts."""
    log_weights = scores.log_softmax(-1)
    attended = log_weights.exp() @ values  # (G or 1, B, H, T or Q, d / H)
    history_score = scores[..., :1] - log_weights[..., :1]  # log-sum-exp: every query sees column 0
    prompt_keys, prompt_values = prompts.chunk(2, dim=-1)  # (G, B, H, P, d / H)
    prompt_scores = queries @ prompt_keys.transpose(-1, -2) + gate[:, None, None, None, None]  # (G, B, H, T or Q, P)
    joined = torch.cat([prompt_scores, history_score.expand(*prompt_scores.shape[:-1], 1)], -1)
    of_prompts, of_history = joined.softmax(-1).split([prompt_scores.shape[-1], 1], -1)
    return of_prompts @ prompt_values + of_history * attended


class ByteDropout(nn.Module):
    """Dropout with one random byte an element, an eighth of the usual; `p` in 1/256."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = min(255, round(p * 256))

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.threshold:
            return hidden
        words = torch.empty(-(-hidden.numel() // 8), dtype=torch.int64, device=hidden.device)
        drawn = words.random_(-(2**63), None).view(torch.int8)[: hidden.numel()].view_as(hidden)
        return hidden * (drawn >= self.threshold - 128) * (256 / (256 - self.threshold))

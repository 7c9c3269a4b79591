"""SASRec and BERT4Rec behind one interface, with the places where an eliminator takes hold.

Legend: `B` batch rows, `L` history length, `T` columns of a history tensor (L, one more for BERT4Rec), `d` width,
`H` heads, `P` prompt rows, `G` groups of rows with their own eliminator (1 without), `Q` positions read.

A history is left-aligned: its oldest event is column 0, -1 fills what is left behind. A window cut anywhere from a long
history starts at column 0 too, so a short history looks like the first columns of every window the model was trained
on; and behind a causal mask the filler is invisible to every real position, with no padding mask at all. Prompts stand
in front of the history without a position of their own, so position embeddings do not know whether they are there.

An attention over prompts and history is computed in two parts that meet in one softmax: the history counts as one more
prompt whose score is the log-sum-exp of its scores and whose value is its attention output. In the first layer the
history's part depends on the frozen backbone alone, so it is computed once for all groups. Prompts read each other,
never the history, in both kinds.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SUBLAYERS = ("attention", "feed_forward")
Sublayer = Literal["attention", "feed_forward"]


@dataclass(frozen=True)
class SequentialConfig:
    """Shape of a backbone; the defaults are paper B's as its authors ran them."""

    num_titles: int
    kind: Literal["sasrec", "bert4rec"] = "sasrec"
    history: int = 20  # events a user's vector is made of
    width: int = 64
    num_layers: int = 1
    num_heads: int = 1
    dropout: float = 0.3

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


class EliminatorRows(Protocol):
    """What the backbone asks of eliminators gathered for `G` groups of rows (see `eliminators.GatheredEliminators`)."""

    @property
    def prompt_table(self) -> Tensor:
        """(G, R, d) every prompt row a group can use."""
        ...

    @property
    def prompt_index(self) -> Tensor:
        """(G or 1, B, P) rows of the table that stand in front of each history."""
        ...

    @property
    def cached_prompts(self) -> tuple[Tensor, ...] | None:
        """What `SequentialBackbone.prompt_layers` gave for these very groups, to be used instead of the table."""
        ...

    @property
    def prompt_gate(self) -> Tensor:
        """(G, layers) added to the scores of prompts."""
        ...

    def adapt(self, hidden: Tensor, layer: int, sublayer: Sublayer) -> Tensor:
        """(G or 1, B, T, d) output of a sublayer -> (G, B, T, d)."""
        ...

    def finish(self, hidden: Tensor) -> Tensor:
        """(G, B, T, d) vectors of the last layer -> the same."""
        ...


class SequentialBackbone(nn.Module):
    """(B, T) title indices -> (B, T, d) vectors; the vector at a user's last position scores titles by dot product.

    SASRec (Kang and McAuley 2018): causal; the vector at column t is the user's after event t. BERT4Rec (Sun et al.
    2019): every column sees every other, and the vector is read at a mask token that stands for the wanted event.
    Sublayers are post-norm without an output projection, as in the authors' code (ReChorus).
    """

    causal_mask: Tensor  # (T, T)

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        self.config = config
        self.bidirectional = config.kind == "bert4rec"
        self.num_columns = config.history + self.bidirectional
        self.titles = nn.Embedding(config.num_titles + self.bidirectional, config.width)  # the last row: mask token
        self.positions = nn.Parameter(torch.empty(self.num_columns, config.width))
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.dropout = ByteDropout(config.dropout)
        causal = torch.full((self.num_columns, self.num_columns), float("-inf")).triu_(1)
        self.register_buffer("causal_mask", causal, persistent=False)
        self._remembered: tuple[Tensor, Tensor] | None = None

    @property
    def mask_token(self) -> int:
        return self.config.num_titles

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) tables, Xavier matrices, zero biases, unit norms; draws from `generator` alone."""
        for table in (self.titles.weight, self.positions):
            table.normal_(0, 0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def forward(
        self, history: Tensor, *, eliminators: EliminatorRows | None = None, read: Tensor | None = None
    ) -> Tensor:
        """Vectors of the columns in `read`.

        Args:
            history: (B, T) or, with one history a group, (G, 1, T) title indices, left-aligned, -1 behind the last.
            eliminators: what every group of rows is to forget; None is the backbone itself.
            read: (B, Q) or (G, 1, Q) columns wanted of the last layer; None means all.

        Returns (B, Q or T, d), with eliminators (G, B, Q or T, d).
        """
        histories = history if history.dim() == 3 else history[None]  # (G or 1, B, T)
        titles = histories.clamp(min=0)
        hidden = self.titles(titles) + self.positions[: titles.shape[-1]]  # (G or 1, B, T, d)
        hidden = self.dropout(hidden)
        mask = self._attention_mask(histories)
        prompts = repeat(None) if eliminators is None else eliminators.cached_prompts or self.prompt_layers(eliminators)
        known = self._known_keys_values(titles)
        for number, (layer, of_prompts) in enumerate(zip(self.layers, prompts, strict=False)):
            wanted = read if number + 1 == len(self.layers) else None
            hidden = layer(hidden, mask, of_prompts, eliminators, number, read=wanted, keys_values=known)
            known = None
        if eliminators is not None:
            return eliminators.finish(hidden)
        return hidden if history.dim() == 3 else hidden[0]

    def prompt_layers(self, eliminators: EliminatorRows) -> Iterator[Tensor]:
        """Each layer's keys and values of the prompts, (G, B, H, P, 2 d / H): no history has a part in them."""
        prompts, index = eliminators.prompt_table, eliminators.prompt_index
        for number, layer in enumerate(cast("Iterable[Layer]", self.layers)):
            keys_values = layer.key_value(prompts)
            if number == 0:
                keys_values = _take_rows(keys_values, index)  # (G, B, P, 2d) from the table's few rows
            keys_values = layer.heads(keys_values)
            yield keys_values
            if number + 1 < len(self.layers):
                prompts = _take_rows(prompts, index) if number == 0 else prompts  # (G, B, P, d)
                prompts = layer.prompts_above(prompts, keys_values, eliminators, number)

    def user_vectors(self, history: Tensor, *, eliminators: EliminatorRows | None = None) -> Tensor:
        """(..., L) histories of at least one event -> the vectors that score titles, (B, d) or (G, B, d)."""
        lengths = (history >= 0).sum(-1, keepdim=True)  # (..., 1)
        if self.bidirectional:
            history = F.pad(history, (0, 1), value=-1).scatter(-1, lengths, self.mask_token)
            return self(history, eliminators=eliminators, read=lengths).squeeze(-2)
        return self(history, eliminators=eliminators, read=lengths - 1).squeeze(-2)

    @torch.no_grad()
    def remember_titles(self) -> "SequentialBackbone":
        """Keep the first layer's keys and values of each title, (N, 2 d), for weights that will not change any more."""
        key_value = cast("Layer", self.layers[0]).key_value
        self._remembered = F.linear(self.titles.weight, key_value.weight), key_value(self.positions)
        return self

    def _known_keys_values(self, titles: Tensor) -> Tensor | None:
        """(G or 1, B, T, 2 d) of the first layer, where they are remembered: they are linear in title and position."""
        if self._remembered is None or self.training:
            return None
        of_titles, of_positions = self._remembered
        return F.embedding(titles, of_titles) + of_positions[: titles.shape[-1]]

    def title_vectors(self) -> Tensor:
        """(N, d) vectors of the catalogue."""
        return self.titles.weight[: self.config.num_titles]

    def _attention_mask(self, histories: Tensor) -> Tensor:
        """What is added to scores: (T, T) causal, or (G or 1, B, 1, 1, T) that hides the filler."""
        if self.bidirectional:
            hidden = (histories < 0)[:, :, None, None, :]
            return torch.zeros(hidden.shape, device=histories.device).masked_fill_(hidden, float("-inf"))
        return self.causal_mask[: histories.shape[-1], : histories.shape[-1]]


class ByteDropout(nn.Module):
    """Dropout whose mask takes a random byte an element: an eighth of the generator's work. `p` is rounded to 1/256."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.threshold = min(255, round(p * 256))

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or not self.threshold:
            return hidden
        words = torch.empty(-(-hidden.numel() // 8), dtype=torch.int64, device=hidden.device)
        drawn = words.random_(-(2**63), None).view(torch.int8)[: hidden.numel()].view_as(hidden)
        return hidden * (drawn >= self.threshold - 128) * (256 / (256 - self.threshold))


class Layer(nn.Module):
    """Self-attention and feed-forward, each with residual and layer norm; adapters act on what each returns (eq. 2)."""

    def __init__(self, config: SequentialConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
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
        eliminators: EliminatorRows | None,
        number: int,
        *,
        read: Tensor | None,
        keys_values: Tensor | None = None,
    ) -> Tensor:
        """(G or 1, B, T, d), the prompts' keys and values (G, B, H, P, 2 d / H) -> (G, B, T or Q, d).

        `keys_values` are those of `hidden`, (G or 1, B, T, 2 d), where they are known.
        """
        own = self.key_value(hidden) if keys_values is None else keys_values
        keys, values = self.heads(own).chunk(2, dim=-1)  # (G or 1, B, H, T, d / H)
        if read is not None:
            hidden, mask = _take_columns(hidden, mask, read)  # (G or 1, B, Q, d)
        queries = self.heads(self.query(hidden)) * keys.shape[-1] ** -0.5  # (G or 1, B, H, T or Q, d / H)
        scores = queries @ keys.transpose(-1, -2) + mask  # (G or 1, B, H, T or Q, T)
        if prompts is None or eliminators is None:
            return self._feed_forward(self._after_attention(hidden, scores.softmax(-1) @ values))
        log_weights = scores.log_softmax(-1)
        attended = log_weights.exp() @ values  # (G or 1, B, H, T or Q, d / H)
        history_score = scores[..., :1] - log_weights[..., :1]  # log-sum-exp: no query is blind to column 0
        prompt_keys, prompt_values = prompts.chunk(2, dim=-1)  # (G, B, H, P, d / H)
        gate = eliminators.prompt_gate[:, number, None, None, None, None]
        prompt_scores = queries @ prompt_keys.transpose(-1, -2) + gate  # (G, B, H, T or Q, P)
        attended = _join(prompt_scores, prompt_values, history_score, attended)  # (G, B, H, T or Q, d / H)
        return self._whole(hidden, attended, eliminators, number)

    def prompts_above(self, prompts: Tensor, keys_values: Tensor, eliminators: EliminatorRows, number: int) -> Tensor:
        """(G, B, P, d) prompts, who read each other -> the same one layer up."""
        keys, values = keys_values.chunk(2, dim=-1)
        queries = self.heads(self.query(prompts)) * keys.shape[-1] ** -0.5
        return self._whole(prompts, (queries @ keys.transpose(-1, -2)).softmax(-1) @ values, eliminators, number)

    def _whole(self, hidden: Tensor, attended: Tensor, eliminators: EliminatorRows, number: int) -> Tensor:
        hidden = eliminators.adapt(self._after_attention(hidden, attended), number, "attention")
        return eliminators.adapt(self._feed_forward(hidden), number, "feed_forward")

    def _after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        merged = attended.transpose(-2, -3).flatten(-2)  # (G or 1, B, T, d)
        return self.attention_norm(hidden + self.dropout(merged))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.expand(hidden)))
        return self.feed_forward_norm(hidden + self.dropout(self.contract(inner)))

    def heads(self, rows: Tensor) -> Tensor:
        """(..., T, n d) -> (..., H, T, n d / H)."""
        return rows.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


def _join(prompt_scores: Tensor, prompt_values: Tensor, history_score: Tensor, attended: Tensor) -> Tensor:
    """Attention over prompts and history from the history's own score and output, see the file's legend."""
    scores = torch.cat([prompt_scores, history_score.expand(*prompt_scores.shape[:-1], 1)], -1)  # (G, B, H, T, P + 1)
    of_prompts, of_history = scores.softmax(-1).split([prompt_scores.shape[-1], 1], -1)
    return of_prompts @ prompt_values + of_history * attended


def _take_columns(hidden: Tensor, mask: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of `hidden` (G or 1, B, T, d) and of a (T, T) mask at `read` (B, Q) or (G, 1, Q)."""
    columns = read if read.dim() == 3 else read[None]  # (G or 1, B, Q)
    index = columns[..., None].expand(len(hidden), -1, -1, hidden.shape[-1])
    taken = hidden.gather(2, index)
    return taken, mask[columns][:, :, None] if mask.dim() == 2 else mask  # (G or 1, B, 1, Q, T)


def _take_rows(table: Tensor, index: Tensor) -> Tensor:
    """(G, R, d) rows at (G or 1, B, P) -> (G, B, P, d)."""
    if index.shape[0] == 1:
        return table[:, index[0]]
    return table[torch.arange(len(table), device=table.device)[:, None, None], index]

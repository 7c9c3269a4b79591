"""SASRec and BERT4Rec of one layer and one head, with the hooks of an eliminator.

Legend: `B` batch rows, `L` history length, `T` columns of a history tensor (L, one more for BERT4Rec), `d` width,
`P` prompt rows, `G` groups of rows with their own eliminator (1 without), `Q` columns read.

A history is left-aligned: its oldest event is column 0, as in a crop, and -1 fills the end, which no event sees behind
a causal mask. Prompts have no position and do not depend on the history.

Attention over prompts and history is computed in two parts joined by one softmax: the history counts as one more prompt
whose score is the log-sum-exp of its scores and whose value is its attention output. The history's part depends on the
frozen backbone alone, so it is computed once for all groups.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtrec_ray.models.gathered_eliminators import GatheredEliminators


@dataclass(frozen=True)
class SequentialConfig:
    """Shape of a backbone; the defaults are paper B's as its authors ran them."""

    num_titles: int
    kind: Literal["sasrec", "bert4rec"] = "sasrec"
    history: int = 20  # events
    width: int = 64
    dropout: float = 0.3


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
        width = config.width
        self.titles = nn.Embedding(config.num_titles + self.bidirectional, width)  # the last row: mask token
        self.positions = nn.Parameter(torch.empty(self.num_columns, width))
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.activation = F.gelu if self.bidirectional else F.relu
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
        for linear in (self.query, self.key_value, self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
        self.attention_norm.reset_parameters()
        self.feed_forward_norm.reset_parameters()

    def forward(
        self, history: Tensor, *, eliminators: GatheredEliminators | None = None, read: Tensor | None = None
    ) -> Tensor:
        """(B, T) histories or, one a group, (G, 1, T) -> (B, T, d), with eliminators (G, B, T, d).

        `read` (B, Q) or (G, 1, Q) gives the columns wanted, Q in place of T; None means all.
        """
        histories = history if history.dim() == 3 else history[None]  # (G or 1, B, T)
        titles = histories.clamp(min=0)
        hidden = self.dropout(self.titles(titles) + self.positions[: titles.shape[-1]])  # (G or 1, B, T, d)
        keys, values = self._keys_values(titles, hidden).chunk(2, dim=-1)  # (G or 1, B, T, d)
        mask = self._attention_mask(histories)
        if read is not None:
            columns = read if read.dim() == 3 else read[None]  # (G or 1, B, Q)
            hidden = hidden.gather(2, columns[..., None].expand(len(hidden), -1, -1, hidden.shape[-1]))
            mask = mask[columns] if mask.dim() == 2 else mask  # (G or 1, B, Q or 1, T)
        queries = self.query(hidden) * hidden.shape[-1] ** -0.5  # (G or 1, B, T or Q, d)
        scores = queries @ keys.transpose(-1, -2) + mask  # (G or 1, B, T or Q, T)
        if eliminators is None:
            hidden = self._feed_forward(self._add_attended(hidden, scores.softmax(-1) @ values))
            return hidden if history.dim() == 3 else hidden[0]
        hidden = self._add_attended(hidden, self._attend_to_prompts(queries, scores, values, eliminators))
        hidden = eliminators.adapt(self._feed_forward(eliminators.adapt(hidden, 0)), 1)
        return eliminators.transport(hidden)

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

    def prompt_keys_values(self, eliminators: GatheredEliminators) -> Tensor:
        """(G, B, P, 2 d) keys and values of the prompts."""
        return self.key_value(eliminators.prompt_table)[:, eliminators.prompt_index]  # the table is small

    @torch.no_grad()
    def remember_titles(self) -> "SequentialBackbone":
        """Cache the keys and values of each title, (N, 2 d), of frozen weights."""
        self._remembered = F.linear(self.titles.weight, self.key_value.weight), self.key_value(self.positions)
        return self

    def _keys_values(self, titles: Tensor, hidden: Tensor) -> Tensor:
        """(G or 1, B, T, 2 d) of the history; the cached ones are linear in title and position."""
        if self._remembered is None or self.training:
            return self.key_value(hidden)
        of_titles, of_positions = self._remembered
        return F.embedding(titles, of_titles) + of_positions[: titles.shape[-1]]

    def _attention_mask(self, histories: Tensor) -> Tensor:
        """Added to scores: (T, T) causal, or (G or 1, B, 1, T) that hides the filler."""
        if self.bidirectional:
            hidden = (histories < 0)[:, :, None]
            return torch.zeros(hidden.shape, device=histories.device).masked_fill_(hidden, float("-inf"))
        return self.causal_mask[: histories.shape[-1], : histories.shape[-1]]

    def _attend_to_prompts(
        self, queries: Tensor, scores: Tensor, values: Tensor, eliminators: GatheredEliminators
    ) -> Tensor:
        """Attention over prompts and history, (G, B, T or Q, d)."""
        prompts = eliminators.cached_prompts
        prompts = self.prompt_keys_values(eliminators) if prompts is None else prompts
        log_weights = scores.log_softmax(-1)
        attended = log_weights.exp() @ values  # (G or 1, B, T or Q, d)
        history_score = scores[..., :1] - log_weights[..., :1]  # log-sum-exp: every query sees column 0
        prompt_keys, prompt_values = prompts.chunk(2, dim=-1)  # (G, B, P, d)
        gate = eliminators.parts.gate[:, :, None, None]
        prompt_scores = queries @ prompt_keys.transpose(-1, -2) + gate  # (G, B, T or Q, P)
        joined = torch.cat([prompt_scores, history_score.expand(*prompt_scores.shape[:-1], 1)], -1)
        of_prompts, of_history = joined.softmax(-1).split([prompt_scores.shape[-1], 1], -1)
        return of_prompts @ prompt_values + of_history * attended

    def _add_attended(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return self.attention_norm(hidden + self.dropout(attended))

    def _feed_forward(self, hidden: Tensor) -> Tensor:
        inner = self.dropout(self.activation(self.expand(hidden)))
        return self.feed_forward_norm(hidden + self.dropout(self.contract(inner)))


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

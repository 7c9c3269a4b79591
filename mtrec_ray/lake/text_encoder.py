"""A transformer that turns title texts into vectors, and its fine-tuning.

Fine-tuning is contrastive: a title's text is to be closer to that of a title that the same user watched than to the
others of its batch (`MultipleNegativesRankingLoss` of sentence-transformers, symmetric, with cosine similarity).

Legend: `B` texts of a batch, `L` tokens, `d` width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mtrec_ray.errors import UserError
from mtrec_ray.lake.config import TextConfig
from mtrec_ray.lake.title_pairs import TextPair, batches_without_repeats

BATCH_SIZE = 64  # Titles per forward pass
MAX_TOKENS = 128  # Longer texts are truncated
LEARNING_RATE = 5e-5
WARM_UP = 0.1  # Fraction of the steps in which the rate rises; then it falls to zero


def ranking_loss(num_steps: int) -> Any:
    """The class of the loss; UserError without sentence-transformers, which is optional."""
    try:
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    except ImportError as error:
        found = f"text.fine_tune_steps = {num_steps} needs sentence-transformers 6.2 or later ({error})"
        raise UserError(f"{found}: pip install 'mtrec_ray[text]', or set text.fine_tune_steps=0") from error
    return MultipleNegativesRankingLoss


class TextEncoder(nn.Module):
    """The mean of a transformer's last token vectors (paper A, 3.1)."""

    def __init__(self, tokenizer: Any, transformer: nn.Module):
        super().__init__()
        self.tokenizer = tokenizer
        self.transformer = transformer

    @staticmethod
    def load(config: TextConfig) -> "TextEncoder":
        """Of a Hugging Face name or folder; UserError if unloadable."""
        from safetensors import SafetensorError
        from transformers import AutoModel, AutoTokenizer

        assert config.model is not None
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.model)
            return TextEncoder(tokenizer, AutoModel.from_pretrained(config.model))
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(
                f"text model {config.model!r} cannot be loaded ({str(error).splitlines()[0]}): connect to its hub "
                "once, name a local folder with --set text.model=DIR, or leave text out with --set text.model=null"
            ) from error

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """(B, L) each, on the encoder's device."""
        options = {"padding": True, "truncation": True, "max_length": MAX_TOKENS, "return_tensors": "pt"}
        return dict(self.tokenizer(list(texts), **options).to(next(self.parameters()).device))

    def forward(self, tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`sentence_embedding` (B, d), as the losses of sentence-transformers read it."""
        states = self.transformer(**tokens).last_hidden_state  # (B, L, d)
        mask = tokens["attention_mask"].unsqueeze(-1).to(states.dtype)  # (B, L, 1)
        return {"sentence_embedding": (states * mask).sum(1) / mask.sum(1)}

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(texts, d) float32."""
        self.eval()
        batches = [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]
        return np.concatenate([self(self.tokens(b))["sentence_embedding"].float().cpu().numpy() for b in batches])

    def fine_tune(self, pairs: Sequence[TextPair], num_steps: int, seed: int) -> Iterator[int]:
        """Train on `num_steps` batches of pairs; yields the number of each finished step.

        Where the pairs end, the first come again. On a CPU, the same seed gives the same weights.
        """
        from transformers import get_linear_schedule_with_warmup

        directions = ("query_to_doc", "doc_to_query")
        loss = ranking_loss(num_steps)(self, directions=directions, partition_mode="per_direction")
        self.float().train()
        optimizer = torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)
        schedule = get_linear_schedule_with_warmup(optimizer, round(WARM_UP * num_steps), num_steps)
        batches = batches_without_repeats(pairs)
        torch.manual_seed(seed)  # of dropout
        for step in range(1, num_steps + 1):
            first, second = zip(*next(batches), strict=True)
            optimizer.zero_grad()
            loss([self.tokens(first), self.tokens(second)], torch.empty(0)).backward()
            nn.utils.clip_grad_norm_(self.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            yield step

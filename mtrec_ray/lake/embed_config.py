"""Settings of `mtrec lake embed`."""

from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed, advanced
from mtrec_ray.lake.window import WindowConfig


class InteractionConfig(Config):
    """User and title vectors from the discoveries of the training window.

    The defaults were chosen on validation users of five real markets: without folds, with in-sample vectors, the
    baseline lost a fifth of its PR-AUC.
    """

    width: int = Field(default=256, ge=0)
    """Numbers per vector."""
    title_power: float = advanced(0.35, ge=0, le=1)
    """A title's column is divided by (its users)^title_power before the decomposition."""
    user_power: float = advanced(0.5, ge=0, le=1)
    """A user's row is divided by (its titles)^user_power."""
    singular_power: float = advanced(1.0)
    """A title's vector is its row of V S^p, a user's its history times V S^(p - 1)."""
    folds: int = Field(default=3, ge=0)
    """Cross-fitted vectors per user: the k-th leaves out the titles of fold k, for training on them; 0 = none."""
    seed: Seed = 0
    """Seed of the decomposition and of the folds."""

    @model_validator(mode="after")
    def _folds(self) -> "InteractionConfig":
        if self.folds == 1:
            raise ValueError("interactions.folds = 1 would leave every title out of every vector: set 0, or 2 or more")
        return self


class TextConfig(Config):
    """Title text through a transformer."""

    model: str | None = "bert-base-uncased"
    """Hugging Face name or local folder (paper A: a 768 wide BERT); null leaves text out."""
    batch_size: int = advanced(64, ge=1)
    """Titles per forward pass."""
    max_tokens: int = advanced(128, ge=8)
    """Longer texts are truncated."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""


class EmbedConfig(Config):
    """Embeddings for a lake whose source has none."""

    lake: str
    """Folder or URI of the lake; its tables are replaced atomically at the end."""
    overwrite: bool = False
    """Replace existing embeddings."""
    window: WindowConfig = WindowConfig()
    interactions: InteractionConfig = InteractionConfig()
    text: TextConfig = TextConfig()
    max_categories: int = advanced(64, ge=0)
    """Most frequent values used of each categorical column (genres, ...), one number each; 0 leaves categories out."""

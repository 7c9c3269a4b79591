"""Settings of `mtrec lake embed`."""

from typing import Literal

from pydantic import Field, field_validator

from mtrec_ray.config import Config, Seed
from mtrec_ray.lake.window import WindowConfig


class InteractionConfig(Config):
    """User and title vectors from the discoveries of the training window."""

    width: int = Field(default=256, ge=1)
    """Numbers per vector."""
    folds: int = Field(default=3, ge=0)
    """Cross-fitted vectors per user: the k-th leaves out the titles of fold k, for training on them; 0 = none, which
    cost the baseline a fifth of its PR-AUC on five real markets."""
    seed: Seed = 0
    """Seed of the decomposition and of the folds."""

    @field_validator("folds")
    @classmethod
    def _not_one(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold would leave every title out of every vector: set 0, or 2 or more")
        return folds


class TextConfig(Config):
    """Title text through a transformer."""

    model: str | None = "bert-base-uncased"
    """Hugging Face name or local folder (Gampa et al. 2023: a 768 wide BERT); null leaves text out."""
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

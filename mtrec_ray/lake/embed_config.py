"""Settings of `mtrec lake embed`."""

from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed
from mtrec_ray.lake.window import WindowConfig


class InteractionConfig(Config):
    """User and title vectors from who discovered what in the training window.

    Defaults were chosen on validation users of five real markets, with the baseline on top: title_power 0.35 to 0.4
    beat 0.25, 0.5 and 0; width 256 beat 128; 2 to 4 folds were alike, 8 a little worse, and no folds (in-sample
    vectors) lost a fifth of the PR-AUC. Normalising vectors to unit length did not help.
    """

    width: int = Field(default=256, ge=0)
    """Numbers per vector; 0 leaves interactions out."""
    title_power: float = Field(default=0.35, ge=0, le=1)
    """A title's column is divided by (its users)^title_power before the decomposition."""
    user_power: float = Field(default=0.5, ge=0, le=1)
    """A user's row is divided by (its titles)^user_power."""
    singular_power: float = 1.0
    """A title's vector is its row of V S^p, a user's its history times V S^(p - 1)."""
    folds: int = Field(default=3, ge=0)
    """Cross-fitted vectors per user: the k-th leaves out fold k's titles and is trained on with just them; 0 = none."""
    seed: Seed = 0
    """Seed of the decomposition and of the folds."""

    @model_validator(mode="after")
    def _folds(self) -> "InteractionConfig":
        if self.folds == 1:
            raise ValueError(
                "interactions.folds = 1 would leave every title out of every vector: take 0, or 2 and more"
            )
        return self


class TextConfig(Config):
    """Title text through a transformer."""

    model: str | None = "bert-base-uncased"
    """Hugging Face name or local folder (paper A: a 768 wide BERT); null leaves text out."""
    batch_size: int = Field(default=64, ge=1)
    """Titles per forward."""
    max_tokens: int = Field(default=128, ge=8)
    """Longer texts are cut."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""


class EmbedConfig(Config):
    """Representations for a lake whose source brings none."""

    lake: str
    """Folder or URI of the lake; its tables are replaced in one step at the end."""
    overwrite: bool = False
    """Replace embeddings that the lake already has."""
    window: WindowConfig = WindowConfig()
    interactions: InteractionConfig = InteractionConfig()
    text: TextConfig = TextConfig()
    max_categories: int = Field(default=64, ge=0)
    """Most frequent values kept of each categorical column (genres, ...), one number each; 0 leaves categories out."""

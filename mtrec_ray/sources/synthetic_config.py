"""Settings of the synthetic source."""

from datetime import date
from typing import Literal

from pydantic import Field

from mtrec_ray.config import Config, advanced


class SyntheticConfig(Config):
    """A streaming service with planted tastes; with the defaults, training takes seconds."""

    users: int = Field(default=20_000, ge=1, le=99_999_999)
    """Users over all territories."""
    territories: int = Field(default=24, ge=4, le=250)
    """Territories, in four regions."""
    titles: int = Field(default=300, ge=2)
    """Titles."""
    days: int = Field(default=90, ge=1)
    """Length of the training window in days."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Days after the window."""
    first_day: date = advanced(date(2022, 1, 1))
    """First day of the window, UTC."""
    user_width: int = advanced(64, ge=1)
    """Width of the user embeddings (Gampa et al. 2023: 512)."""
    title_width: int = advanced(64, ge=1)
    """Width of the title embeddings (Gampa et al. 2023: 768 and categoricals)."""
    events_per_user: float = Field(default=20.0, gt=0)
    """Mean events of an active user in the window."""
    evaluation_boost: float = advanced(3.0, gt=0)
    """Events of an evaluation day relative to a day of the window: tests need enough of them."""
    size_exponent: float = advanced(1.0, ge=0)
    """Zipf exponent of the territories' sizes; 0 = all alike, 1 = heavy tail."""
    popularity_spread: float = advanced(1.0, ge=0)
    """Standard deviation of the titles' popularity in logits."""
    taste_scale: float = advanced(2.0, ge=0)
    """Standard deviation of the taste part of the logits."""
    taste_groups: Literal["regions", "shuffled"] = advanced("regions")
    """Which territories have a taste in common: those of a region, or a balanced random four."""
    attribute_correlation: float = Field(default=0.7, ge=0, le=1)
    """Correlation of each sensitive attribute with a direction of the taste."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers."""

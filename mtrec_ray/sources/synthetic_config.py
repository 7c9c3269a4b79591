"""Settings of the synthetic source."""

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced

REGIONS = ("AMERICAS", "EUROPE", "ASIA_PACIFIC", "AFRICA_MIDDLE_EAST")


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
    active_days: int = advanced(90, ge=1)
    """Active users have an event in this many last days of the window, others have none."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Days after the window."""
    first_day: date = advanced(date(2022, 1, 1))
    """First day of the window, UTC."""
    user_width: int = advanced(64, ge=1)
    """Width of the user embeddings (paper A: 512)."""
    title_width: int = advanced(64, ge=1)
    """Width of the title embeddings (paper A: 768 and categoricals)."""
    embedding_noise: float = advanced(0.2, ge=0)
    """Standard deviation of the noise in embeddings; that of the signal is 1."""
    events_per_user: float = Field(default=20.0, gt=0)
    """Mean events of an active user in the window."""
    activity_spread: float = advanced(0.8, ge=0)
    """Standard deviation of the logarithm of a user's events."""
    evaluation_boost: float = advanced(3.0, gt=0)
    """Events of an evaluation day relative to a day of the window: tests need enough of them."""
    inactive_rate: float = advanced(0.05, ge=0, le=1)
    """Events of an inactive user on an evaluation day, relative to an active one."""
    active_share_low: float = advanced(0.3, ge=0, le=1)
    """Smallest fraction of active users of a territory."""
    active_share_high: float = advanced(0.9, ge=0, le=1)
    """Largest fraction of active users of a territory."""
    size_exponent: float = advanced(1.0, ge=0)
    """Zipf exponent of the territories' sizes; 0 = all alike, 1 = heavy tail."""
    local_title_share: float = advanced(0.3, ge=0, lt=1)
    """Fraction of titles offered in one territory only."""
    local_boost: float = advanced(1.0)
    """Logits by which users prefer their local titles."""
    popularity_spread: float = advanced(1.0, ge=0)
    """Standard deviation of the titles' popularity in logits."""
    taste_scale: float = advanced(2.0, ge=0)
    """Standard deviation of the taste part of the logits."""
    group_taste: float = advanced(0.7, ge=0, le=1)
    """How far the groups' tastes differ: 0 = one taste for all, 1 = nothing in common."""
    taste_groups: Literal["regions", "shuffled"] = advanced("regions")
    """Which territories have a taste in common: those of a region, or a balanced random four."""
    attribute_correlation: float = Field(default=0.7, ge=0, le=1)
    """Correlation of each sensitive attribute with a direction of the taste."""
    unknown_attribute_share: float = advanced(0.1, ge=0, le=1)
    """Fraction of users whose value of an attribute is unknown."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "SyntheticConfig":
        low, high = self.active_share_low, self.active_share_high
        if low > high:
            raise ValueError(f"active_share_low ({low}) exceeds active_share_high ({high})")
        return self

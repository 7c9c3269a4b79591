"""Settings of the pair streams."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.lake.config import WindowConfig


class SampleConfig(Config):
    """Who is sampled and which pairs are drawn (Gampa et al. 2023, 3.2 and 4.1)."""

    seed: int = advanced(0)
    """Seed of the sample and the negatives; the user split has its own."""
    split_seed: int = advanced(0)
    """Seed of the user split; the same for all compared runs, or test users are trained on."""
    test_fraction: float = advanced(0.2, ge=0, lt=1)
    """Fraction of users that are test users, never trained on."""
    validation_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of users held out for validation while training, and for choices; never trained on."""
    random_fraction: float = advanced(0.5, gt=0, le=1)
    """Fraction of the remaining users in the random sample R."""
    active_fraction: float = Field(default=0.5, ge=0)
    """Size of the added active set A as a multiple of R; 0 turns upsampling off."""
    active_days: int = advanced(90, ge=1)
    """A user is active if it has an event in this many last days of the window."""
    tau: float = advanced(1.0, ge=0, le=1)
    """How added users are spread over territories: 1 in proportion to active users, 0 equally."""
    upsample: Literal["active", "control"] = advanced("active")
    """`control` adds random users, active or not, with as many positives as the active set has."""
    alpha: Annotated[float, Field(allow_inf_nan=False)] | Literal["auto"] = 10.0
    """Negatives per positive on average; `auto` = users of R / users of R with a positive on a mean day."""

    @model_validator(mode="after")
    def _contradictions(self) -> "SampleConfig":
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("sample.test_fraction + sample.validation_fraction must leave users to train on (sum < 1)")
        if self.alpha != "auto" and self.alpha <= 0:
            raise ValueError(f"sample.alpha = {self.alpha} must be above 0 (negatives per positive), or `auto`")
        if self.upsample == "control" and self.active_fraction == 0:
            raise ValueError("sample.upsample = control has no effect with sample.active_fraction = 0: set one of them")
        return self


class PairsConfig(Config):
    """What `mtrec pairs show` counts."""

    lake: str
    """Folder or URI of the lake."""
    sample: SampleConfig = SampleConfig()
    window: WindowConfig = WindowConfig()

"""Settings of `mtrec train backbone`."""

from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed, advanced
from mtrec_ray.streams.sequences import SequenceConfig
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.trainers.runner_config import RunnerConfig, check_lanes


class SequentialModelConfig(Config):
    """A sequential backbone as paper B's authors ran it."""

    kind: Literal["sasrec", "bert4rec"] = "sasrec"
    """`sasrec` is causal; `bert4rec` is bidirectional with a mask token at the target."""
    history: int = Field(default=20, ge=2)
    """Last events that a user's vector is computed from."""
    width: int = Field(default=64, ge=1)
    """Width of vectors."""
    num_layers: int = advanced(1, ge=1)
    """Layers of attention and feed-forward."""
    num_heads: int = advanced(1, ge=1)
    """Attention heads; divides the width."""
    dropout: float = advanced(0.3, ge=0, lt=1)
    """Dropout probability, in steps of 1/256."""


class BackboneOptimConfig(Config):
    """Adam on crops of histories, BPR loss, early stopping on the validation event's NDCG@10."""

    lr: float = Field(default=3e-3, gt=0)
    """Learning rate."""
    batch_crops: int = advanced(64, ge=1)
    """Mean crops of a global batch, over all workers, empty ones counted."""
    num_negatives: int = Field(default=128, ge=1)
    """Negatives drawn per batch. MovieLens-100K, validation NDCG@10: 32 gave 0.494, 128 0.507."""
    mask_fraction: float = advanced(0.3, gt=0, lt=1)
    """Fraction of a crop's events that bert4rec has to predict."""
    averaging: float = advanced(0.995, ge=0, lt=1)
    """Decay of the weights' running mean, which is validated and kept; +0.010 NDCG@10 there."""
    epochs: int = Field(default=200, ge=1)
    """Passes over all positions, at most."""
    evaluate_every: int = advanced(4, ge=1)
    """Validate every N epochs."""
    patience: int = advanced(5, ge=1)
    """Validations without a better NDCG@10 before the run stops."""
    validation_users: int = advanced(10_000, ge=1)
    """Users, drawn by hash, whose validation event is predicted."""
    lanes: int = advanced(8, ge=1)
    """Parallel readers of a batch, at least as many as workers; part of a run's identity."""


class BackboneConfig(Config):
    """One training run of a sequential backbone (paper B, 2.2)."""

    lake: str
    """Folder or URI of the lake."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run (letters, digits and . _ + -); an unfinished run of that name resumes."""
    runs: str = "runs"
    """Folder or URI that holds the runs."""
    seed: Seed = 0
    """Seed of the weights, the order of crops, negatives and dropout."""
    model: SequentialModelConfig = SequentialModelConfig()
    sequences: SequenceConfig = SequenceConfig()
    optim: BackboneOptimConfig = BackboneOptimConfig()
    runner: RunnerConfig = RunnerConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _contradictions(self) -> "BackboneConfig":
        if self.model.width % self.model.num_heads:
            raise ValueError(
                f"model.width = {self.model.width} is not a multiple of model.num_heads = {self.model.num_heads}"
            )
        if self.model.kind == "sasrec" and self.optim.mask_fraction != BackboneOptimConfig().mask_fraction:
            raise ValueError("optim.mask_fraction has no effect on sasrec: drop it")
        check_lanes(self.runner, self.optim.lanes)
        return self

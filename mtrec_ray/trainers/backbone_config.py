"""Settings of `mtrec train backbone`."""

from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed
from mtrec_ray.streams.sequences import SequenceConfig
from mtrec_ray.trainers.runner_config import RunnerConfig, check_lanes


class SequentialModelConfig(Config):
    """A sequential backbone as paper B's authors ran it."""

    kind: Literal["sasrec", "bert4rec"] = "sasrec"
    """`sasrec` looks back alone, `bert4rec` both ways with a mask token where the wanted event stands."""
    history: int = Field(default=20, ge=2)
    """Events that a user's vector is made of."""
    width: int = Field(default=64, ge=1)
    """Numbers of a vector."""
    num_layers: int = Field(default=1, ge=1)
    """Layers of attention and feed-forward."""
    num_heads: int = Field(default=1, ge=1)
    """Attention heads; divides the width."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of numbers dropped in training, in steps of 1/256."""


class BackboneOptimConfig(Config):
    """Adam on windows of histories, BPR loss, early stopping on the validation event's NDCG@10."""

    lr: float = Field(default=3e-3, gt=0)
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of Adam."""
    batch_crops: int = Field(default=64, ge=1)
    """Windows of a global batch on average, over all workers, those counted that an epoch's cut leaves empty: a half
    where histories are much shorter than model.history, few where they are long."""
    num_negatives: int = Field(default=128, ge=1)
    """Titles drawn a batch, negatives of each of its positions; with 32 of them and batches of 128 windows validation
    NDCG@10 was 0.494 on MovieLens-100K, so it is 0.507, in half the epochs."""
    mask_share: float = Field(default=0.3, gt=0, lt=1)
    """Share of a window's events that bert4rec has to guess."""
    averaging: float = Field(default=0.995, ge=0, lt=1)
    """Decay of the running mean of the weights, which is what is validated and kept; 0 keeps the last weights.
    It gained 0.010 of validation NDCG@10 at the same epoch on MovieLens-100K."""
    epochs: int = Field(default=200, ge=1)
    """Most passes over all positions."""
    evaluate_every: int = Field(default=4, ge=1)
    """Epochs between two looks at the validation event."""
    patience: int = Field(default=5, ge=1)
    """Looks without a better NDCG@10 before the run stops."""
    validation_users: int = Field(default=10_000, ge=1)
    """Users, drawn by hash, whose validation event is looked at."""
    lanes: int = Field(default=8, ge=1)
    """Parallel readers of a batch: fixes which windows share one, whatever the number of workers (at most so many)."""


class BackboneConfig(Config):
    """One training run of a sequential backbone (paper B, 2.2)."""

    lake: str
    """Folder or URI of the lake."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run (letters, digits and . _ + -); the same name goes on where it was stopped."""
    runs: str = "runs"
    """Folder or URI that holds the runs."""
    seed: Seed = 0
    """Seed of the weights, of the order of windows, of negatives and dropout."""
    model: SequentialModelConfig = SequentialModelConfig()
    sequences: SequenceConfig = SequenceConfig()
    optim: BackboneOptimConfig = BackboneOptimConfig()
    runner: RunnerConfig = RunnerConfig()

    @model_validator(mode="after")
    def _contradictions(self) -> "BackboneConfig":
        if self.model.kind == "sasrec" and self.optim.mask_share != BackboneOptimConfig().mask_share:
            raise ValueError("optim.mask_share has no effect on sasrec: drop it")
        check_lanes(self.runner, self.optim.lanes)
        return self

"""Settings of `mtrec train backbone`."""

from typing import Literal

from pydantic import Field, model_validator

from mtrec_ray.config import advanced
from mtrec_ray.files import AbsoluteUri
from mtrec_ray.models.shapes import SequentialModelConfig
from mtrec_ray.streams.sequences import SequenceConfig
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.trainers.runner_config import RunConfig, RunnerConfig, SequenceOptimConfig


class BackboneOptimConfig(SequenceOptimConfig):
    """Adam on crops of histories, early stopping on the validation event's NDCG@10."""

    loss: Literal["softmax", "bpr"] = "softmax"
    """`softmax` over the target and uniform negatives, or `bpr`, paper B's."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate."""
    num_negatives: int = advanced(512, ge=1)
    """Negatives drawn per batch; all titles where there are no more. MovieLens-1M, NDCG@10 over all titles after four
    epochs of `softmax`: 128 gave 0.124, 512 0.147, 2,048 0.149 in twice the time."""
    epochs: int = Field(default=200, ge=1)
    """Passes over all positions, at most."""
    evaluate_every: int = advanced(2, ge=1)
    """Validate, and keep the best weights, every N epochs."""


class BackboneConfig(RunConfig):
    """One training run of a sequential backbone (paper B, 2.2)."""

    lake: AbsoluteUri
    """Folder or URI of the lake."""
    model: SequentialModelConfig = SequentialModelConfig()
    sequences: SequenceConfig = SequenceConfig()
    optim: BackboneOptimConfig = BackboneOptimConfig()
    runner: RunnerConfig = RunnerConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _contradictions(self) -> "BackboneConfig":
        width, num_heads = self.model.width, self.model.num_heads
        if width % num_heads:
            raise ValueError(f"model.width = {width} is not a multiple of model.num_heads = {num_heads}")
        self.runner.check_lanes(self.optim.lanes)
        return self

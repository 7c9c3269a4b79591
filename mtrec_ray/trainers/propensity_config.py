"""Settings of `mtrec train propensity`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed, advanced
from mtrec_ray.lake.window import WindowConfig
from mtrec_ray.models.group_block_names import GroupBlockName
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.trainers.runner_config import RunnerConfig, check_lanes


class ModelConfig(Config):
    """Two-tower model (paper A, 3.3 and 4.2)."""

    d: int = advanced(512, ge=1)
    """Width of every layer."""
    group_block: GroupBlockName | None = advanced(None)
    """Block of a territory group; null: dense (paper A) for mtl, none for a baseline."""
    groups: str | None = None
    """Territory groups: one, each, regions (mtl's default), or a YAML file of groups."""
    final_activation: Literal["none", "relu"] = advanced("none")
    """`relu` with final_batch_norm is paper A literally (every propensity is at least 1/2)."""
    final_batch_norm: bool = advanced(False)
    """Batch normalisation after the last layer of each tower."""


class OptimConfig(Config):
    """Adam on batches of users with all their pairs (paper A, 4.2)."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate; null: 1e-3 (paper A), 1e-4 on a lake with interaction vectors."""
    decay: Literal["none", "linear"] = advanced("linear")
    """`linear`: the learning rate falls to zero over each period; `none` (paper A)."""
    block_lr: float | None = advanced(None, gt=0)
    """Learning rate of the group blocks' matrices; null: `lr`."""
    block_vector_lr: float | None = advanced(None, gt=0)
    """Learning rate of their vectors; null: 3e-3 for shift and film, else `block_lr`."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the training window's pairs."""
    day_epochs: int = advanced(1, ge=1)
    """Passes over each later day's pairs with --incremental."""
    batch_pairs: int = advanced(8192, ge=1)
    """Mean pairs of a global batch, over all workers."""
    lanes: int = advanced(8, ge=1)
    """Parallel readers of a batch, at least as many as workers; part of a run's identity."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = advanced("auto")
    """Type of matrix products; `auto`: bfloat16 on GPU, float32 on CPU."""
    snapshot: Literal["last", "best"] = advanced("last")
    """A period's snapshot: its last weights, or those of its best `val/pr_auc/weighted`."""

    def learning_rates(self, group_block: str | None, aligned: bool) -> tuple[float, float, float]:
        """First learning rates of the towers, the group block's matrices and its vectors.

        Chosen on validation users of five real markets. Towers that start as the dot product of interaction vectors
        (`aligned`) lose it at a larger rate: PR-AUC in the largest market fell by 7% at 1e-4, by 12% at 3e-4. A shift's
        few numbers hardly move within a run at the towers' rate.
        """
        lr = self.lr or (1e-4 if aligned else 1e-3)
        block_lr = self.block_lr or lr
        return lr, block_lr, self.block_vector_lr or (3e-3 if group_block in ("shift", "film") else block_lr)


class PropensityConfig(Config):
    """One training run of a propensity model."""

    lake: str
    """Folder or URI of the lake."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run (letters, digits and . _ + -); an unfinished run of that name resumes."""
    runs: str = "runs"
    """Folder or URI that holds the runs."""
    kind: Literal["baseline", "mtl"] = "mtl"
    """`baseline`: one global model; `mtl`: a block per territory group."""
    seed: Seed = 0
    """Seed of the weights and of the order of batches."""
    incremental: bool = False
    """Also train on each evaluation day, after it was evaluated (paper A)."""
    model: ModelConfig = ModelConfig()
    sample: SampleConfig = SampleConfig()
    window: WindowConfig = advanced(WindowConfig())
    optim: OptimConfig = OptimConfig()
    runner: RunnerConfig = RunnerConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _mtl_defaults(cls, document: Any) -> Any:
        if not isinstance(document, dict) or document.get("kind", "mtl") != "mtl":
            return document
        model = document.get("model", {})
        if not isinstance(model, dict):
            return document
        given = {key: value for key, value in model.items() if value is not None}
        return document | {"model": {"group_block": "dense", "groups": "regions"} | given}

    @model_validator(mode="after")
    def _contradictions(self) -> "PropensityConfig":
        for key in ("groups", "group_block"):
            if self.kind == "baseline" and getattr(self.model, key) is not None:
                raise ValueError(f"model.{key} has no effect on a baseline: drop it or set kind=mtl")
        block = self.model.group_block
        for key, idle in (("block_lr", (None, "shift", "film")), ("block_vector_lr", (None, "low_rank"))):
            if getattr(self.optim, key) is not None and block in idle:
                raise ValueError(f"optim.{key} has no effect on {block or 'a baseline'}: drop it")
        if self.optim.day_epochs != OptimConfig().day_epochs and not self.incremental:
            raise ValueError("optim.day_epochs has no effect without incremental: drop it")
        if self.optim.snapshot == "best" and not self.sample.validation_fraction:
            raise ValueError("optim.snapshot = best needs validation users: set sample.validation_fraction, as 0.05")
        check_lanes(self.runner, self.optim.lanes)
        return self

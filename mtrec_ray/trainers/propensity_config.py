"""Settings of `mtrec train propensity`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, Seed
from mtrec_ray.lake.window import WindowConfig
from mtrec_ray.models.group_block_names import GroupBlockName
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.trainers.runner_config import RunnerConfig, check_lanes


class ModelConfig(Config):
    """Two-tower model (paper A, 3.3 and 4.2)."""

    d: int = Field(default=512, ge=1)
    """Width of every layer."""
    group_block: GroupBlockName | None = None
    """Block of a territory group on top of the user tower; `dense` (paper A) is mtl's default, null a baseline's."""
    groups: str | None = None
    """Territory groups: one, each, regions (paper A's; mtl's default), or path or URI of YAML lists by group name."""
    final_activation: Literal["none", "relu"] = "none"
    """`relu` with final_batch_norm is paper A taken literally (no probability below one half); `none`: a linear last
    layer, a scale and a bias."""
    final_batch_norm: bool = False
    """Batch normalisation after the last layer of each tower."""


class OptimConfig(Config):
    """Adam on batches of whole users (paper A, 4.2)."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate at each period's first step; null: 1e-3 (paper A), or 1e-4 on a lake with interaction vectors."""
    decay: Literal["none", "linear"] = "linear"
    """`linear`: the learning rate falls to zero over each period; `none`: it stays (paper A)."""
    block_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the group blocks' matrices; null: `lr`."""
    block_vector_lr: float | None = Field(default=None, gt=0)
    """Learning rate of their vectors (shift, scale, bias); null: 3e-3 for shift and film, else that of the matrices."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of Adam."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the window's pairs."""
    day_epochs: int = Field(default=1, ge=1)
    """Passes over each later day's pairs with --incremental."""
    batch_pairs: int = Field(default=8192, ge=1)
    """Pairs of a global batch on average, over all workers."""
    lanes: int = Field(default=8, ge=1)
    """Parallel readers of a batch: fixes which users share one, whatever the number of workers (at most so many)."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Matrix products: `auto` = bfloat16 on GPU, float32 on CPU."""

    def learning_rates(self, group_block: str | None, aligned: bool) -> tuple[float, float, float]:
        """First learning rates of the towers, of the group block's matrices and of its vectors.

        Found on validation users of five real markets: towers that start as the dot product of interaction vectors
        (`aligned`) unlearn the top of its ranking at a larger rate (PR-AUC over the full catalogue fell by 7% in the
        largest market at 1e-4, by 12% at 3e-4), while the few numbers of a group's shift do not move in a run's length
        at the towers' rate.
        """
        lr = self.lr or (1e-4 if aligned else 1e-3)
        block_lr = self.block_lr or lr
        return lr, block_lr, self.block_vector_lr or (3e-3 if group_block in ("shift", "film") else block_lr)


class PropensityConfig(Config):
    """One training run of a propensity model."""

    lake: str
    """Folder or URI of the lake."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")
    """Name of the run (letters, digits and . _ + -); the same name goes on where it was stopped."""
    runs: str = "runs"
    """Folder or URI that holds the runs."""
    kind: Literal["baseline", "mtl"] = "mtl"
    """`baseline` is one global model, `mtl` has a block per territory group."""
    seed: Seed = 0
    """Seed of the weights and of the order of batches."""
    incremental: bool = False
    """After the window, train on each evaluation day in turn; a day is evaluated before it is trained on (paper A)."""
    model: ModelConfig = ModelConfig()
    sample: SampleConfig = SampleConfig()
    window: WindowConfig = WindowConfig()
    optim: OptimConfig = OptimConfig()
    runner: RunnerConfig = RunnerConfig()

    @model_validator(mode="before")
    @classmethod
    def _mtl_defaults(cls, document: Any) -> Any:
        if (
            isinstance(document, dict)
            and document.get("kind", "mtl") == "mtl"
            and isinstance(document.get("model", {}), dict)
        ):
            given = {key: value for key, value in document.get("model", {}).items() if value is not None}
            document = document | {"model": {"group_block": "dense", "groups": "regions"} | given}
        return document

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
        check_lanes(self.runner, self.optim.lanes)
        return self

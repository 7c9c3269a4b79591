"""Settings of `mtrec train propensity`."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.files import AbsoluteUri
from mtrec_ray.lake.config import WindowConfig
from mtrec_ray.models.shapes import GroupBlockName
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.trainers.runner_config import RunConfig, RunnerConfig

VECTOR_LR = 3e-3
"""A block's few numbers of a group or territory hardly move within a run at the towers' rate (validation users)."""
ALIGNED_LR = 1e-4
"""Towers that start as a dot product lose it at larger rates: at 3e-4 PR-AUC in the largest market fell by 12%."""


class ModelConfig(Config):
    """Two-tower model (paper A, 3.3 and 4.2)."""

    d: int = advanced(512, ge=1)
    """Width of every layer."""
    group_block: GroupBlockName | None = advanced(None)
    """What is on top of the user tower: `dense` a layer per territory group (paper A), `hierarchical` the same and a
    vector per territory, the smaller the fewer its discoveries; null: dense, none in a baseline."""
    prior: bool = advanced(True)
    """Add what is popular where, and since when, and who is active, to the logits; False: towers alone (paper A)."""
    groups: str | None = None
    """Territory groups: one, each, regions (mtl's default), regions:N, or a YAML file of groups. regions:N (paper A)
    packs regions into N groups with about as much viewing and as many minor territories each."""
    territory_input: Literal["none", "territory", "region"] = advanced("none")
    """One-hot column of the user's territory or region beside the user's vector, for baselines that know it too."""


class OptimConfig(Config):
    """Adam on users with all their pairs (paper A, 4.2)."""

    lr: float | None = Field(default=None, gt=0)
    """Learning rate, falling to zero over each period; null: 1e-3, 1e-4 on a lake with interaction vectors."""
    block_lr: float | None = advanced(None, gt=0)
    """Learning rate of the group block's matrices; null: `lr`."""
    block_vector_lr: float | None = advanced(None, gt=0)
    """Learning rate of the group block's other parameters; null: 3e-3, `block_lr` for the dense block."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the training window's pairs; with --incremental one more over each later day's."""
    batch_pairs: int = advanced(8192, ge=1)
    """Mean pairs of a global batch, over all workers."""
    lanes: int = advanced(8, ge=1)
    """Parallel readers of a batch, at least as many as workers; part of a run's identity."""
    snapshot: Literal["last", "best"] = advanced("last")
    """Weights kept of a period: its last, or those of its best `val/pr_auc/weighted`."""

    def learning_rates(self, group_block: GroupBlockName | None, aligned: bool) -> tuple[float, float, float]:
        """Learning rates at the start of each period: (towers, block matrices, block vectors).

        `aligned`: the towers start as the dot product of interaction vectors.
        """
        lr = self.lr or (ALIGNED_LR if aligned else 1e-3)
        block_lr = self.block_lr or lr
        return lr, block_lr, self.block_vector_lr or (block_lr if group_block in (None, "dense") else VECTOR_LR)


PAPER: dict[str, dict[str, Any]] = {
    "model": {"d": 512, "prior": False},
    "optim": {"lr": 1e-3, "block_lr": None, "block_vector_lr": None, "batch_pairs": 8192, "snapshot": "last"},
}
"""What `preset: paper` decides; towers, start and head follow from it (`TwoTowerConfig.paper`)."""
PAPER_BLOCK = {"group_block": "dense"}


class PropensityConfig(RunConfig):
    """One training run of a propensity model."""

    lake: AbsoluteUri
    """Folder or URI of the lake."""
    kind: Literal["baseline", "mtl"] = "mtl"
    """Model: `baseline` is the same for all territories; `mtl` adds a block per territory group."""
    preset: Literal["ours", "paper"] = advanced("ours")
    """`paper`: model and optimiser of paper A literally. Batch normalisation and ReLU behind every layer, a random
    start, a plain dot product, Adam at a constant 1e-3; groups: regions:4 unless given. Its data are sample.alpha=auto
    and `--incremental`, which compared runs have alike. A train/loss that stays at 0.693 is a collapsed model."""
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
    def _defaults(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        is_paper = document.get("preset") == "paper"
        defaults = {section: dict(values) for section, values in PAPER.items()} if is_paper else {"model": {}}
        if document.get("kind", "mtl") == "mtl":
            defaults["model"] |= PAPER_BLOCK | {"groups": "regions:4" if is_paper else "regions"}
        for section, values in defaults.items():
            given = document.get(section, {})
            if isinstance(given, dict):
                given = {key: value for key, value in given.items() if value is not None}
                document = document | {section: values | given}
        return document

    @model_validator(mode="after")
    def _contradictions(self) -> "PropensityConfig":
        for key in ("groups", "group_block"):
            if self.kind == "baseline" and getattr(self.model, key) is not None:
                raise ValueError(f"model.{key} has no effect on a baseline: drop it or set kind=mtl")
        if self.preset == "paper":
            self._check_paper()
        for key in ("block_lr", "block_vector_lr"):
            if self.kind == "baseline" and getattr(self.optim, key) is not None:
                raise ValueError(f"optim.{key} has no effect on a baseline: drop it")
        if self.optim.snapshot == "best" and not self.sample.validation_fraction:
            raise ValueError("optim.snapshot = best needs validation users: set sample.validation_fraction, as 0.05")
        self.runner.check_lanes(self.optim.lanes)
        return self

    def _check_paper(self) -> None:
        block = {"model": PAPER["model"] | PAPER_BLOCK} if self.kind == "mtl" else {}
        for section, values in (PAPER | block).items():
            for name, value in values.items():
                if (given := getattr(getattr(self, section), name)) != value:
                    contradicts = f"{section}.{name} = {given} contradicts preset = paper"
                    raise ValueError(f"{contradicts}, which has {value}: drop one of them")

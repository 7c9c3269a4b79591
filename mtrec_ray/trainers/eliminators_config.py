"""Settings of `mtrec train eliminators`."""

from collections import Counter
from itertools import chain, combinations
from typing import Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.combinations import Combination, combination_name
from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.files import AbsoluteUri
from mtrec_ray.models.shapes import EliminatorConfig
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.trainers.runner_config import RunConfig, RunnerConfig, SequenceOptimConfig

MAX_ATTRIBUTES_FOR_ALL = 12


class AdversaryConfig(Config):
    """Adversarial training of eliminators and discriminators (paper B, 2.4)."""

    weight: float = Field(default=0.1, ge=0)
    """Weight of hiding against accuracy (lambda of eq. 5): larger hides more and costs accuracy.
    Paper B uses 1 (`pfrec`)."""
    generator_lr: float = advanced(2e-4, gt=0)
    """RMSprop's learning rate of the eliminator; at 1e-3 the personal prompt writes its label. `pfrec`: 1e-4, which the
    discriminators have too."""
    discriminator_steps: int = advanced(1, ge=1)
    """Steps of the discriminators, a batch each, for one of the eliminator. `pfrec`: 5, as in the code of paper B's
    authors; at 1 its discriminators lag behind, and the personal prompt writes its value."""
    averaging: float = advanced(0.99, ge=0, lt=1)
    """Decay of the weights' running mean, which is validated and kept; 0 keeps the newest."""
    class_power: float = advanced(0.5, ge=0, le=1)
    """Weight n^-power of a value that n users have: 0 counts users equally, 1 values."""


class TransportConfig(Config):
    """Fit of the transport, the map behind the last layer (mtrec_ray/models/transport.py)."""

    weight: float = advanced(100.0, ge=0)
    """Weight of what remains of an attribute, against the change of scores."""
    passes: int = advanced(60, ge=1)
    """Passes over the vectors before training; a planted gender's AUC was 0.61 at 30, 0.57 at 60."""
    later_passes: int = advanced(12, ge=1)
    """Passes over the vectors at each validation."""


class EliminatorOptimConfig(SequenceOptimConfig):
    """Batches (paper B: of 256), length of training, and the minimum accuracy."""

    epochs: int = Field(default=12, ge=1)
    """Passes over the train split's positions; longer training hid no more."""
    evaluate_every: int = advanced(2, ge=1)
    """Validate, and keep weights that are accurate enough, every N epochs."""
    min_ndcg_ratio: float = Field(default=0.985, gt=0, le=1)
    """Minimum NDCG@10 relative to the backbone; transport strength is reduced until it holds."""
    leakage_budget: float = Field(default=0.3, ge=0, le=1)
    """The more the backbone leaks, the more NDCG@10 may fall: by up to this x (2 AUC - 1)^2, AUC of a linear probe.
    Used where it allows more than min_ndcg_ratio."""


PFREC = {
    "shape": {"transport_units": 0},
    "adversary": {"weight": 1.0, "generator_lr": 1e-4, "discriminator_steps": 5, "averaging": 0.0, "class_power": 0.0},
    "optim": {"batch_crops": 16, "epochs": 200, "evaluate_every": 1},
}
"""Defaults of `method: pfrec`: paper B's settings (3.1), its 256 instances a batch as crops of 20 hold them, and the
steps of the discriminators in the code of its authors."""
UNUSED = {
    "filter": ("shape", "transport"),
    "fine_tuning": ("shape", "transport"),
    "pfrec": (
        "shape.transport_units",
        "adversary.averaging",
        "adversary.class_power",
        *(f"transport.{name}" for name in TransportConfig.model_fields),
        "optim.min_ndcg_ratio",
        "optim.leakage_budget",
    ),
    "closed_form": (
        "shape",
        "transport",
        "adversary",
        *(f"optim.{name}" for name in EliminatorOptimConfig.model_fields if name != "validation_users"),
        "pack_size",
        "jobs_at_once",
        "runner.workers",
        "runner.use_gpu",
        "runner.checkpoint_every_s",
    ),
}
"""Settings, or sections of them, that a method has no use for: paper B has not what our own method adds."""


class EliminatorsConfig(RunConfig):
    """Eliminators of some or all combinations of a backbone's attributes."""

    backbone: AbsoluteUri
    """Folder or URI of the backbone's run."""
    combinations: str = "all"
    """`all`, or a list as gender+age,occupation."""
    method: Literal["eliminator", "closed_form", "pfrec", "filter", "fine_tuning"] = "eliminator"
    """`closed_form` fits a map for each attribute value, in seconds, instead of training each combination. `pfrec` is
    paper B literally: lambda 1, both rates 1e-4, and up to 200 epochs, until what a probe reads of users who are not
    trained on has not fallen for 10. `filter` (Li et al. 2021) and `fine_tuning` are for comparison."""
    pack_size: int = advanced(8, ge=1)
    """Combinations trained in one job, in one batched forward."""
    jobs_at_once: int | None = advanced(None, ge=1)
    """Jobs side by side; null: as many as the cluster's CPUs or GPUs hold."""
    shape: EliminatorConfig = EliminatorConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    transport: TransportConfig = TransportConfig()
    optim: EliminatorOptimConfig = EliminatorOptimConfig()
    runner: RunnerConfig = RunnerConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, document: Any) -> Any:
        if not isinstance(document, dict) or document.get("method") != "pfrec":
            return document
        for section, values in PFREC.items():
            given = document.get(section, {})
            if isinstance(given, dict):
                document = document | {section: values | given}
        return document

    @model_validator(mode="after")
    def _contradictions(self) -> "EliminatorsConfig":
        self.runner.check_lanes(self.optim.lanes)
        changed = PFREC if self.method == "pfrec" else {}
        for key in UNUSED.get(self.method, ()):
            section, _, name = key.partition(".")
            own, default = getattr(self, section), type(self).model_fields[section].default
            if name:
                own, default = getattr(own, name), changed.get(section, {}).get(name, getattr(default, name))
            if own != default:
                raise ValueError(f"{key} has no effect with method = {self.method}: drop it")
        return self


def parse_combinations(text: str, attributes: dict[str, list[str]]) -> list[Combination]:
    """The named combinations, each with its attributes in the lake's order.

    Raises:
        UserError: an attribute that the lake lacks or that has one value only, a combination named twice, or too many.
    """
    if not attributes:
        raise UserError("the lake has no sensitive attribute: there is nothing to eliminate")
    names = list(attributes)
    if text.strip() != "all":
        chosen = [_combination(part.strip(), names) for part in text.split(",")]
    elif len(names) > MAX_ATTRIBUTES_FOR_ALL:
        found = f"combinations=all with {len(names)} attributes means {2 ** len(names) - 1:,} eliminators"
        raise UserError(f"{found}: name those you need, as in combinations=gender+age,gender")
    else:
        chosen = list(chain.from_iterable(combinations(names, size) for size in range(1, len(names) + 1)))
    (most_named, times), *_ = Counter(chosen).most_common(1)
    if times > 1:
        raise UserError(f"combination {combination_name(most_named)} is named twice")
    for name in chain.from_iterable(chosen):
        if len(attributes[name]) < 2:
            found = f"attribute {name!r} has one value only ({attributes[name]}), there is nothing to hide in it"
            raise UserError(f"{found}: leave it out of combinations")
    return chosen


def _combination(text: str, names: list[str]) -> Combination:
    parts = [part.strip() for part in text.split("+")]
    if "" in parts:
        raise UserError(f"combinations: {text!r} has an empty part; write them as gender+age,gender")
    if unknown := [part for part in parts if part not in names]:
        raise UserError(f"combinations: the lake has no attribute {unknown[0]!r}; it has {', '.join(names)}")
    if len(set(parts)) < len(parts):
        raise UserError(f"combinations: {text!r} names an attribute twice")
    return tuple(name for name in names if name in parts)

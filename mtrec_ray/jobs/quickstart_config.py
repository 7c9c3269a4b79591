"""Settings of `mtrec quickstart` and the variants it compares."""

from typing import Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config
from mtrec_ray.sources.registry import SourceName

BASELINE = "baseline"

VARIANTS: dict[str, dict[str, Any]] = {
    BASELINE: {"kind": "baseline", "sample": {"active_fraction": 0.0}},
    "baseline+upsampling": {"kind": "baseline"},
    "baseline+control": {"kind": "baseline", "sample": {"upsample": "control"}},
    "mtl+upsampling": {"kind": "mtl", "model": {"group_block": "dense"}},
    "mtl-slow+upsampling": {
        "kind": "mtl",
        "model": {"group_block": "dense"},
        "optim": {"block_lr": 3e-5, "block_vector_lr": 3e-3},
    },
    "mtl-shift+upsampling": {"kind": "mtl", "model": {"group_block": "shift"}},
}
"""Laid over `train`: paper A's three, the control with as many random positives, and two of ours, chosen on validation
users of five real markets: a dense block whose matrix learns slowly and whose bias fast, and the bias alone."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "synthetic": {
        "train": {"model": {"d": 128}, "optim": {"epochs": 4}},
        "backbone": {"optim": {"epochs": 8, "evaluate_every": 2}},
        "eliminators": {"optim": {"epochs": 2, "evaluate_every": 1}, "transport": {"passes": 6, "later_passes": 2}},
        "audit": {"max_users": 2000, "num_folds": 3, "num_permutations": 8, "lists": False},
    },
    "xmarket": {
        "train": {"model": {"groups": "each"}, "sample": {"random_fraction": 0.2, "active_fraction": 0.75}},
    },
    "movielens": {
        "train": {
            "model": {"groups": "regions"},
            "sample": {"test_fraction": 0.3},
            "optim": {"lr": 1e-3, "epochs": 20},  # a small lake: 31 steps an epoch
        },
    },
    "parquet": {},
}
"""What a source changes in the defaults."""

TAKEN = {
    "build": {"overwrite"},
    "embed": {"lake"},
    "train": {"lake", "runs", "name", "kind", "seed"},
    "evaluate": {"runs", "out"},
    "backbone": {"lake", "runs", "name", "seed"},
    "eliminators": {"backbone", "runs", "name", "seed"},
    "audit": {"run", "out"},
}
"""Settings of each section that the quickstart decides itself."""

VariantName = Literal[
    "baseline",
    "baseline+upsampling",
    "baseline+control",
    "mtl+upsampling",
    "mtl-slow+upsampling",
    "mtl-shift+upsampling",
]


class QuickstartConfig(Config):
    """Everything from raw files to gains, audit and bundle."""

    dataset: SourceName = "synthetic"
    """Where the raw data comes from."""
    raw: str | None = None
    """Folder of the raw files, with parquet also a URI; synthetic has none."""
    out: str = "quickstart"
    """Folder of the lake, the runs and the report; started again with the same folder, it resumes."""
    seeds: int = Field(default=1, ge=1)
    """Seeds of sample, weights and order; figures are paired means over them."""
    variants: list[VariantName] = ["baseline", "baseline+upsampling", "mtl+upsampling", "mtl-slow+upsampling"]
    """Variants to compare with the baseline."""
    source: dict[str, Any] = {}
    """Settings of the data source, as `mtrec lake build SOURCE --help` lists them."""
    build: dict[str, Any] = {}
    """Settings of the build, as `mtrec lake build --help` lists them."""
    embed: dict[str, Any] = {}
    """Settings of `mtrec lake embed`; text.model is null by default, so that nothing is downloaded."""
    train: dict[str, Any] = {}
    """Settings of `mtrec train propensity`, for all variants."""
    evaluate: dict[str, Any] = {}
    """Settings of `mtrec evaluate propensity`."""
    fairness: bool = True
    """Also make backbone, eliminators, audit and bundle, if the lake has sensitive attributes."""
    backbone: dict[str, Any] = {}
    """Settings of `mtrec train backbone`."""
    eliminators: dict[str, Any] = {}
    """Settings of `mtrec train eliminators`."""
    audit: dict[str, Any] = {}
    """Settings of `mtrec audit`."""

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers of the largest training hold."""
        from mtrec_ray.jobs.quickstart_steps import make_steps

        return make_steps(self).num_cpus

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        if "lake" in document:
            raise ValueError("section 'lake' is called 'source' now: write source.users for lake.users")
        if isinstance(document.get("source"), str):
            raise ValueError(f"source = {document['source']!r} is called dataset now: source holds its settings")
        preset = PRESETS.get(document.get("dataset", "synthetic"), {})
        sections = {"source": {}, "build": {}, "embed": {"text": {"model": None}}, "train": {}, "evaluate": {}}
        sections |= {"backbone": {}, "eliminators": {}, "audit": {}}
        for name, default in sections.items():
            if not isinstance(document.get(name, {}), dict):
                raise ValueError(f"{name} = {document[name]!r} must be a section of settings")
            taken = TAKEN.get(name, set()) & set(document.get(name, {}))
            if taken:
                raise ValueError(f"{name}.{min(taken)} has no effect: the quickstart sets it")
            document = document | {name: merged(merged(default, preset.get(name, {})), document.get(name, {}))}
        return document


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result

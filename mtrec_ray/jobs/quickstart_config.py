"""Settings of `mtrec quickstart` and the variants it compares."""

from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from mtrec_ray.config import Config, validate_config
from mtrec_ray.files import absolute, join
from mtrec_ray.jobs.config import AuditConfig, BundleConfig, EvaluateConfig
from mtrec_ray.lake.config import EmbedConfig, LakeBuildConfig
from mtrec_ray.reports.config import ReportConfig
from mtrec_ray.sources.source import SourceName
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.runner_config import RunnerConfig

BASELINE = "baseline"

# Laid over `train`: paper A's three, the control with as many random positives, and two of ours, chosen on validation
# users: a dense block whose matrix learns slowly and whose bias fast, and territories within their groups.
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
    "mtl-hierarchical+upsampling": {"kind": "mtl", "model": {"group_block": "hierarchical"}},
}
PAPER_A = [BASELINE, "baseline+upsampling", "mtl+upsampling"]

# What the quickstart changes in the defaults: always; unless it is `full`; for a source.
COMMON: dict[str, Any] = {"embed": {"text": {"model": None}}}
SMALL: dict[str, Any] = {
    "variants": PAPER_A,
    "train": {"runner": {"workers": 0}},
    "backbone": {"runner": {"workers": 0}},
    "audit": {"num_folds": 3, "num_permutations": 6, "lists": False, "histories": False},
}
PRESETS: dict[str, dict[str, Any]] = {
    "synthetic": {
        "train": {"model": {"d": 128}, "optim": {"epochs": 4}},
        "backbone": {"optim": {"epochs": 8, "evaluate_every": 2}},
    },
    "parquet": {"train": {"model": {"groups": "each"}}},
    "xmarket": {"train": {"model": {"groups": "each"}, "sample": {"random_fraction": 0.2, "active_fraction": 0.75}}},
    "movielens": {
        "train": {
            "model": {"groups": "regions"},
            "sample": {"test_fraction": 0.3},
            "optim": {"lr": 1e-3, "epochs": 5},  # after 20, validation users' NDCG@10 is .300 instead of .332
        }
    },
}
SMALL_SERVICE: dict[str, Any] = {
    "source": {"users": 12_000, "territories": 8, "attribute_correlation": 0.6},
    "backbone": {"sequences": {"audit_fraction": 0.15}},
}
FULL_SERVICE: dict[str, Any] = {
    "eliminators": {"optim": {"epochs": 2, "evaluate_every": 1}, "transport": {"passes": 6, "later_passes": 2}},
    "audit": {"max_users": 2000, "num_folds": 3, "num_permutations": 8, "lists": False, "histories": False},
}

TAKEN: dict[str, set[str]] = {  # sections, and the settings of each that the quickstart decides itself
    "source": set(),
    "build": {"overwrite"},
    "embed": {"lake"},
    "train": {"lake", "runs", "name", "kind", "seed"},
    "evaluate": {"runs", "out"},
    "backbone": {"lake", "runs", "name", "seed"},
    "eliminators": {"backbone", "runs", "name", "seed"},
    "audit": {"run", "out", "card"},
}

if TYPE_CHECKING:
    VariantName = str
else:
    VariantName = Literal[tuple(VARIANTS)]


class QuickstartConfig(Config):
    """Everything from raw files to gains, audit, bundle and report."""

    dataset: SourceName = "synthetic"
    """Where the raw data comes from."""
    raw: str | None = None
    """Folder of the raw files, with parquet also a URI; synthetic has none."""
    out: str = "quickstart"
    """Folder of the lake, the runs and the report. Started again with the same folder, it keeps the lake and what is
    trained, and evaluates, audits and draws anew."""
    full: bool = False
    """On all CPUs by Ray, with a larger planted service, more variants, trained eliminators and a longer audit. Without
    it, all runs in this process, and eliminators are closed-form maps."""
    seeds: int = Field(default=1, ge=1)
    """Seeds of sample, weights and order; metrics are paired means over them."""
    variants: list[VariantName] = [*PAPER_A, "mtl-slow+upsampling"]
    """Variants to compare with the baseline; unless `full`, those of paper A."""
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
        return max(runner.num_cpus for runner in make_steps(self).runners)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, document: Any) -> Any:
        if not isinstance(document, dict):
            return document
        preset = _preset_of(document)
        document = {"variants": preset.pop("variants")} | document if "variants" in preset else document
        for name, taken in TAKEN.items():
            given = document.get(name, {})
            if not isinstance(given, dict):
                raise ValueError(f"{name} = {given!r} must be a section of settings")
            if taken & given.keys():
                raise ValueError(f"{name}.{min(taken & given.keys())} has no effect: the quickstart sets it")
            document = document | {name: merged(preset.get(name, {}), given)}
        return document


def _preset_of(document: dict[str, Any]) -> dict[str, Any]:
    """What is laid under a document's own settings."""
    dataset, full = document.get("dataset", "synthetic"), document.get("full") in (True, "true")
    eliminators = document.get("eliminators", {})
    chosen = eliminators.get("method", "closed_form") if isinstance(eliminators, dict) else None
    here = {"method": "closed_form"} if chosen == "closed_form" else {"runner": {"workers": 0}}
    layers = [COMMON, PRESETS.get(dataset, {}), *([] if full else [SMALL, {"eliminators": here}])]
    if dataset == "synthetic":
        layers.append(FULL_SERVICE if full else SMALL_SERVICE)
    return reduce(merged, layers)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, section by section."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, dict) and isinstance(inner, dict) else value
    return result


@dataclass(frozen=True)
class QuickstartSteps:
    """The settings of each step's own command."""

    folder: str
    lake: str
    build: LakeBuildConfig
    embed: EmbedConfig
    trainings: list[PropensityConfig]  # one per variant and seed, the baseline's first
    evaluation: EvaluateConfig
    backbone: BackboneConfig
    eliminators: EliminatorsConfig
    audit: AuditConfig
    bundle: BundleConfig

    def report(self, with_fairness: bool) -> ReportConfig:
        """What the report draws."""
        results = [join(training.runs, training.name) for training in self.trainings] + [str(self.evaluation.out)]
        if with_fairness:
            results += [join(self.backbone.runs, self.backbone.name), self.bundle.run, str(self.audit.out)]
        return ReportConfig(results=results, out=join(self.folder, "report.html"))

    @property
    def in_process(self) -> bool:
        """Whether no training has workers of its own."""
        return not any(runner.workers for runner in self.runners)

    @property
    def runners(self) -> list[RunnerConfig]:
        fitted_here = self.eliminators.method == "closed_form"
        return [self.trainings[0].runner, self.backbone.runner, *[self.eliminators.runner] * (not fitted_here)]


def make_steps(config: QuickstartConfig) -> QuickstartSteps:
    """Raises UserError where a setting does not fit its step."""
    folder = absolute(config.out)
    lake, runs, evaluation, audit = (join(folder, name) for name in ("lake", "runs", "evaluation", "audit"))
    trainings = training_configs(config, lake, runs)
    run = {"runs": runs, "seed": 0}
    uris = [join(runs, training.name) for training in trainings]
    multi_task = [uri for uri, training in zip(uris, trainings, strict=True) if training.kind == "mtl"]
    bundle = {"run": join(runs, "eliminators"), "audit": audit, "out": join(folder, "bundle")}
    bundle |= {"propensity": multi_task[0], "evaluation": evaluation} if multi_task else {}
    build = {"dataset": config.dataset, "raw": config.raw, "source": config.source, "build": config.build}
    eliminators = {"backbone": join(runs, "backbone"), "name": "eliminators"}
    return QuickstartSteps(
        folder=folder,
        lake=lake,
        build=validate_config(LakeBuildConfig, build | {"out": lake}),
        embed=validate_config(EmbedConfig, config.embed | {"lake": lake}),
        trainings=trainings,
        evaluation=validate_config(EvaluateConfig, config.evaluate | {"runs": uris, "out": evaluation}),
        backbone=validate_config(BackboneConfig, config.backbone | run | {"lake": lake, "name": "backbone"}),
        eliminators=validate_config(EliminatorsConfig, config.eliminators | run | eliminators),
        audit=validate_config(
            AuditConfig, config.audit | {"run": bundle["run"], "out": audit, "card": join(folder, "card.html")}
        ),
        bundle=validate_config(BundleConfig, bundle),
    )


def training_configs(config: QuickstartConfig, lake: str, runs: str) -> list[PropensityConfig]:
    """One validated config per variant and seed, the baseline's first."""
    names = [BASELINE, *(name for name in config.variants if name != BASELINE)]
    configs = []
    for name in names:
        for seed in range(config.seeds):
            fixed = {"lake": lake, "runs": runs, "name": f"{name}-s{seed}", "seed": seed, "sample": {"seed": seed}}
            settings = merged(merged(config.train, VARIANTS[name]), fixed)
            model = settings.get("model")
            if settings["kind"] == "baseline" and isinstance(model, dict):
                settings = settings | {"model": {k: v for k, v in model.items() if k != "groups"}}
            configs.append(validate_config(PropensityConfig, settings))
    return configs

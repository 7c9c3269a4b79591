"""The settings of every step of a quickstart, all validated before the first step starts."""

from dataclasses import dataclass

from mtrec_ray.config import validate_config
from mtrec_ray.files import absolute, join
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.lakes import LakeBuildConfig
from mtrec_ray.jobs.quickstart_config import BASELINE, VARIANTS, QuickstartConfig, merged
from mtrec_ray.lake.embed_config import EmbedConfig
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.runner_config import RunnerConfig


@dataclass(frozen=True)
class QuickstartSteps:
    """The settings of each step's own command."""

    folder: str
    build: LakeBuildConfig
    embed: EmbedConfig
    trainings: list[PropensityConfig]
    """One per variant and seed, the baseline's first."""
    evaluation: EvaluateConfig
    backbone: BackboneConfig
    eliminators: EliminatorsConfig
    audit: AuditConfig
    bundle: BundleConfig

    @property
    def lake(self) -> str:
        return self.embed.lake

    @property
    def runners(self) -> list[RunnerConfig]:
        return [self.trainings[0].runner, self.backbone.runner, self.eliminators.runner]

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers of the largest training hold."""
        return max(runner.num_cpus for runner in self.runners)


def make_steps(config: QuickstartConfig) -> QuickstartSteps:
    """Raises UserError where a setting does not fit its step."""
    folder = absolute(config.out)
    lake, runs, report, audit = (join(folder, name) for name in ("lake", "runs", "report", "audit"))
    trainings = training_configs(config, lake, runs)
    run = {"runs": runs, "seed": 0}
    uris = [join(runs, training.name) for training in trainings]
    multi_task = [uri for uri, training in zip(uris, trainings, strict=True) if training.kind == "mtl"]
    bundle = {"run": join(runs, "eliminators"), "audit": audit, "out": join(folder, "bundle")}
    bundle |= {"propensity": multi_task[0], "evaluation": report} if multi_task else {}
    build = {"dataset": config.dataset, "raw": config.raw, "source": config.source, "build": config.build}
    eliminators = {"backbone": join(runs, "backbone"), "name": "eliminators"}
    return QuickstartSteps(
        folder=folder,
        build=validate_config(LakeBuildConfig, build | {"out": lake}),
        embed=validate_config(EmbedConfig, config.embed | {"lake": lake}),
        trainings=trainings,
        evaluation=validate_config(EvaluateConfig, config.evaluate | {"runs": uris, "out": report}),
        backbone=validate_config(BackboneConfig, config.backbone | run | {"lake": lake, "name": "backbone"}),
        eliminators=validate_config(EliminatorsConfig, config.eliminators | run | eliminators),
        audit=validate_config(AuditConfig, config.audit | {"run": bundle["run"], "out": audit}),
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

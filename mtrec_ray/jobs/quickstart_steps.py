"""The settings of every step of a quickstart, validated together before the first of them begins."""

import math
from dataclasses import dataclass

from mtrec_ray.config import validate_config
from mtrec_ray.files import absolute, join
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.quickstart_config import BASELINE, VARIANTS, QuickstartConfig, merged
from mtrec_ray.lake.embed_config import EmbedConfig
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.runner_config import RunnerConfig


@dataclass(frozen=True)
class QuickstartSteps:
    """What each step's own command would be told."""

    folder: str
    embed: EmbedConfig
    trainings: list[PropensityConfig]
    """One per variant and seed, the baseline's first."""
    evaluation: EvaluateConfig
    backbone: BackboneConfig
    eliminators: EliminatorsConfig
    audit: AuditConfig

    @property
    def lake(self) -> str:
        return self.embed.lake

    @property
    def runners(self) -> list[RunnerConfig]:
        return [self.trainings[0].runner, self.backbone.runner, self.eliminators.runner]

    @property
    def num_cpus(self) -> int:
        """Logical CPUs that the workers of the largest training hold."""
        return max(math.ceil(runner.workers * runner.cpus_per_worker) for runner in self.runners)


def make_steps(config: QuickstartConfig) -> QuickstartSteps:
    """Raises UserError where a setting does not fit its step."""
    folder = absolute(config.out)
    lake, runs = join(folder, "lake"), join(folder, "runs")
    trainings = training_configs(config, lake, runs)
    places = {"runs": runs, "seed": 0}
    of_backbone = {"backbone": join(runs, "backbone"), "name": "eliminators"}
    uris = [join(runs, training.name) for training in trainings]
    return QuickstartSteps(
        folder=folder,
        embed=validate_config(EmbedConfig, config.embed | {"lake": lake}),
        trainings=trainings,
        evaluation=validate_config(EvaluateConfig, config.evaluate | {"runs": uris}),
        backbone=validate_config(BackboneConfig, config.backbone | places | {"lake": lake, "name": "backbone"}),
        eliminators=validate_config(EliminatorsConfig, config.eliminators | places | of_backbone),
        audit=validate_config(AuditConfig, config.audit | {"run": join(runs, "eliminators")}),
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

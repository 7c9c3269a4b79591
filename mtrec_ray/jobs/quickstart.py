"""`mtrec quickstart`: from raw files to gain table and bundle in one command, every step as its own command does it.

1. build the lake      2. embed it, if its source brings no vectors
3. train each variant  4. evaluate all of them on the same users
5. train a backbone    6. train an eliminator for every combination of attributes
7. audit them          8. bundle them with a multi-task model

Each step is skipped when a former start has finished it, so a killed quickstart goes on.
"""

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from mtrec_ray.bundle.manifest import MANIFEST
from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join, read_json, write_json
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.jobs.audit_report import show_audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.jobs.evaluate import Evaluation, evaluate_propensity
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.quickstart_config import BASELINE, VARIANTS, QuickstartConfig, merged
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.embed_config import EmbedConfig
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake
from mtrec_ray.sources.registry import make_source
from mtrec_ray.training.backbone import train_backbone
from mtrec_ray.training.backbone_config import BackboneConfig
from mtrec_ray.training.config import PropensityConfig
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.eliminators_config import EliminatorsConfig
from mtrec_ray.training.propensity import train_propensity


@dataclass(frozen=True)
class Quickstart:
    """What came of it; the last two are None where the lake has no sensitive attribute."""

    evaluation: Evaluation
    audit: tuple[dict[str, Any], list[RenderableType]] | None
    """Flat figures and tables."""
    bundle: str | None
    """URI."""


def quickstart(config: QuickstartConfig, progress: ProgressCallback | None = None) -> Quickstart:
    """Build, embed, train every variant for every seed, evaluate; then hide every combination of attributes, and audit.

    Raises:
        UserError: settings or raw files that do not fit; all settings are checked before the first step.
    """
    folder = absolute(config.out)
    lake_uri, runs = join(folder, "lake"), join(folder, "runs")
    trainings = training_configs(config, lake_uri, runs)
    embed = validate_config(EmbedConfig, config.embed | {"lake": lake_uri})
    places = {"runs": runs, "seed": 0}
    backbone = validate_config(BackboneConfig, config.backbone | places | {"lake": lake_uri, "name": "backbone"})
    of_backbone = {"backbone": join(runs, "backbone"), "name": "eliminators"}
    eliminators = validate_config(EliminatorsConfig, config.eliminators | places | of_backbone)
    auditing = validate_config(AuditConfig, config.audit | {"run": join(runs, "eliminators")})
    _same_settings(config, folder)
    if not exists(join(lake_uri, MANIFEST_NAME)):
        build_lake(make_source(config.source, config.lake, config.raw), lake_uri, progress=progress)
    if not Lake.open(lake_uri).manifest.embeddings.user_width:
        embed_lake(embed, progress)
    for training in trainings:
        train_propensity(training, _named(progress, training.name))
    evaluation = validate_config(EvaluateConfig, config.evaluate | {"runs": [join(runs, t.name) for t in trainings]})
    evaluated = evaluate_propensity(evaluation, progress)
    if not (config.fairness and Lake.open(lake_uri).manifest.attributes):
        return Quickstart(evaluated, None, None)
    train_backbone(backbone, _named(progress, "backbone"))
    train_eliminators(eliminators, progress)
    audited = show_audit(audit(auditing, progress), join(folder, "audit"), auditing.num_bootstrap, auditing.seed)
    multi_task = [training.name for training in trainings if training.kind == "mtl"]
    bundle = {"run": auditing.run, "audit": join(folder, "audit"), "out": join(folder, "bundle")}
    bundle |= {"propensity": join(runs, multi_task[0])} if multi_task else {}
    if not exists(join(folder, "bundle", MANIFEST)):
        make_bundle(validate_config(BundleConfig, bundle), progress)
    return Quickstart(evaluated, audited, bundle["out"])


def _same_settings(config: QuickstartConfig, folder: str) -> None:
    """Remember what the lake is made of; UserError where a former start made it of something else."""
    made_of = config.model_dump(mode="json", include={"source", "raw", "lake", "embed"})
    uri = join(folder, "quickstart.json")
    if not exists(uri):
        write_json(uri, made_of)
    former = read_json(uri)
    changed = [
        f"{key} = {former.get(key)!r} (now {value!r})" for key, value in made_of.items() if former.get(key) != value
    ]
    if changed:
        raise UserError(f"{folder!r} holds a quickstart with {'; '.join(changed)}: choose another --out")


def training_configs(config: QuickstartConfig, lake: str, runs: str) -> list[PropensityConfig]:
    """One validated config per variant and seed, the baseline's first."""
    names = [BASELINE, *(name for name in config.variants if name != BASELINE)]
    configs = []
    for name in names:
        for seed in range(config.seeds):
            fixed = {"lake": lake, "runs": runs, "name": f"{name}-s{seed}", "seed": seed, "sample": {"seed": seed}}
            settings = merged(merged(config.train, VARIANTS[name]), fixed)
            if settings["kind"] == "baseline":
                settings = settings | {"model": {k: v for k, v in settings.get("model", {}).items() if k != "groups"}}
            configs.append(validate_config(PropensityConfig, settings))
    return configs


def _named(progress: ProgressCallback | None, name: str) -> ProgressCallback | None:
    return (lambda what, done, total: progress(f"{name}: {what}", done, total)) if progress else None

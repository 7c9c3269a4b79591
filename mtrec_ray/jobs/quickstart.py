"""`mtrec quickstart`: from raw files to the gain table in one command, every step the same as its own command's.

1. build the lake      2. embed it, if its source brings no vectors
3. train each variant  4. evaluate all of them on the same users

Each step is skipped when a former start has finished it, so a killed quickstart goes on.
"""

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join, read_json, write_json
from mtrec_ray.jobs.evaluate import Evaluation, evaluate_propensity
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.quickstart_config import BASELINE, VARIANTS, QuickstartConfig, merged
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.embed_config import EmbedConfig
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake
from mtrec_ray.sources.registry import make_source
from mtrec_ray.training.config import PropensityConfig
from mtrec_ray.training.propensity import train_propensity


def quickstart(config: QuickstartConfig, progress: ProgressCallback | None = None) -> Evaluation:
    """Build, embed, train every variant for every seed, evaluate.

    Raises:
        UserError: settings or raw files that do not fit; all settings are checked before the first step.
    """
    folder = absolute(config.out)
    lake_uri = join(folder, "lake")
    trainings = training_configs(config, lake_uri, join(folder, "runs"))
    embed = validate_config(EmbedConfig, config.embed | {"lake": lake_uri})
    _same_settings(config, folder)
    if not exists(join(lake_uri, MANIFEST_NAME)):
        build_lake(make_source(config.source, config.lake, config.raw), lake_uri, progress=progress)
    if not Lake.open(lake_uri).manifest.embeddings.user_width:
        embed_lake(embed, progress)
    for training in trainings:
        train_propensity(training, _named(progress, training.name))
    runs = [join(folder, "runs", training.name) for training in trainings]
    evaluation = validate_config(EvaluateConfig, config.evaluate | {"runs": runs})
    return evaluate_propensity(evaluation, progress)


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

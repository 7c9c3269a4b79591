"""`mtrec quickstart`: from raw files to gain table and bundle in one command, every step as its own command does it.

1. build the lake      2. embed it, if its source brings no vectors
3. train each variant  4. evaluate all of them on the same users
5. train a backbone    6. train an eliminator for every combination of attributes
7. audit them          8. bundle them with a multi-task model

Steps 1 to 3, 5 and 6 are skipped when a former start has finished them, so a killed quickstart goes on; the others read
what is there, and the bundle is made again where that changed it.
"""

from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback, stderr_console
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, read_json, write_json
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.audit_report import show_audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.jobs.evaluate import days_and_cohorts, evaluate_propensity
from mtrec_ray.jobs.quickstart_config import QuickstartConfig
from mtrec_ray.jobs.quickstart_steps import QuickstartSteps, make_steps
from mtrec_ray.jobs.report import show_report
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.sources.registry import make_source
from mtrec_ray.training.backbone import new_run as new_backbone
from mtrec_ray.training.backbone import train_backbone
from mtrec_ray.training.eliminators import make_packs, train_eliminators
from mtrec_ray.training.fit import check_resources
from mtrec_ray.training.propensity import new_run, train_propensity

Report = tuple[dict[str, Any], list[RenderableType]]
"""Flat figures and tables."""


@dataclass(frozen=True)
class Quickstart:
    """What came of it; the last two are None where the lake has no sensitive attribute."""

    gains: Report
    audit: Report | None
    bundle: str | None
    """URI."""


def quickstart(config: QuickstartConfig, progress: ProgressCallback | None = None) -> Quickstart:
    """Build, embed, train every variant for every seed, evaluate; then hide every combination of attributes, and audit.

    Raises:
        UserError: settings or raw files that do not fit; all settings are checked before the first step, and against
            the lake before the first training.
    """
    steps = make_steps(config)
    lake = _make_lake(config, steps, progress)
    with_fairness = config.fairness and bool(lake.manifest.attributes)
    _check_against_lake(steps, lake, with_fairness)
    for training in steps.trainings:
        train_propensity(training, _named(progress, training.name))
    report = join(steps.folder, "report")
    gains = show_report(evaluate_propensity(steps.evaluation, progress), report)
    if not with_fairness:
        return Quickstart(gains, None, None)
    for table in gains[1]:
        stderr_console().print(table)  # the end, where results are printed, is as far away again
    train_backbone(steps.backbone, _named(progress, "backbone"))
    train_eliminators(steps.eliminators, progress)
    auditing, folder = steps.audit, join(steps.folder, "audit")
    audited = show_audit(audit(auditing, progress), folder, auditing.num_bootstrap, auditing.seed)
    bundle = {"run": auditing.run, "audit": folder, "out": join(steps.folder, "bundle")}
    multi_task = [uri for uri, t in zip(steps.evaluation.runs, steps.trainings, strict=True) if t.kind == "mtl"]
    bundle |= {"propensity": multi_task[0], "evaluation": report} if multi_task else {}
    make_bundle(validate_config(BundleConfig, bundle), progress, again=True)
    return Quickstart(gains, audited, bundle["out"])


def _make_lake(config: QuickstartConfig, steps: QuickstartSteps, progress: ProgressCallback | None) -> Lake:
    """The lake with its embeddings, made as far as no former start did."""
    there = exists(join(steps.lake, MANIFEST_NAME))
    embedded = there and Lake.open(steps.lake).manifest.embeddings.user_width > 0
    source = None if there else make_source(config.source, config.lake, config.raw)  # wrong ones leave no trace
    _same_settings(config, steps.folder, ["source", "raw", "lake"] * there + ["embed"] * embedded)
    if source is not None:
        build_lake(source, steps.lake, progress=progress)
    if not Lake.open(steps.lake).manifest.embeddings.user_width:
        embed_lake(steps.embed, progress)
    return Lake.open(steps.lake)


def _same_settings(config: QuickstartConfig, folder: str, used: list[str]) -> None:
    """Remember what the lake is made of; UserError where it is made already and `used` settings are others now."""
    made_of = config.model_dump(mode="json", include={"source", "raw", "lake", "embed"})
    uri = join(folder, "quickstart.json")
    former = read_json(uri) if exists(uri) else made_of
    changed = [f"{key} = {former.get(key)!r} (now {made_of[key]!r})" for key in used if former.get(key) != made_of[key]]
    if changed:
        raise UserError(f"{folder!r} holds a quickstart with {'; '.join(changed)}: choose another --out")
    write_json(uri, made_of)


def _check_against_lake(steps: QuickstartSteps, lake: Lake, with_fairness: bool) -> None:
    """UserError for what would otherwise be told after hours: settings that do not fit the lake, cluster or runs."""
    for training in steps.trainings:
        calendar = resolve_calendar(lake, training.window)
        new_run(training, lake, calendar).resume_or_new()
        days_and_cohorts(steps.evaluation, lake, calendar, training.sample)
    for runner in steps.runners if with_fairness else steps.runners[:1]:
        check_resources(runner)
    if with_fairness:
        new_backbone(steps.backbone, lake).resume_or_new()
        make_packs(steps.eliminators, lake.manifest.attributes)


def _named(progress: ProgressCallback | None, name: str) -> ProgressCallback | None:
    return (lambda stage, *counts: progress(f"{name}: {stage}", *counts)) if progress else None

"""`mtrec quickstart`: raw files to gain table and bundle; each step as its own command.

1. build the lake      2. embed it, if its source brings no vectors
3. train each variant  4. evaluate all of them on the same users
5. train a backbone    6. train an eliminator for every combination of attributes
7. audit them          8. bundle them with a multi-task model

A stopped quickstart resumes: steps 1 to 3, 5 and 6 are skipped once they are done, the others run again.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pandas as pd
from rich.console import Console, RenderableType

from mtrec_ray.console import JobResult, ProgressCallback
from mtrec_ray.errors import check_version
from mtrec_ray.files import exists, join, read_json, write_json
from mtrec_ray.identity import Identity, check_same
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.evaluate import days_and_cohorts, evaluate_propensity
from mtrec_ray.jobs.quickstart_config import LEGEND, QuickstartConfig, QuickstartSteps, make_steps
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake
from mtrec_ray.sources.source import make_source
from mtrec_ray.training.backbone_run import new_backbone_run
from mtrec_ray.training.eliminators import make_packs, train_eliminators
from mtrec_ray.training.fit import check_resources, train_backbone, train_propensity
from mtrec_ray.training.propensity_run import new_propensity_run

VERSION = 2  # of quickstart.json


@dataclass(frozen=True)
class QuickstartResult:
    """Gains, and what followed where the lake has sensitive attributes."""

    parts: dict[str, JobResult]  # `evaluation` and `audit`
    bundle: str | None = None  # URI

    @property
    def metrics(self) -> pd.DataFrame:
        """Rows of both parts, with column `job`."""
        return pd.concat([part.metrics.assign(job=name) for name, part in self.parts.items()], ignore_index=True)

    def document(self) -> dict[str, Any]:
        return {"version": 1, "bundle": self.bundle} | {name: part.document() for name, part in self.parts.items()}

    def tables(self) -> list[RenderableType]:
        gains, *others = [part.tables() for part in self.parts.values()]
        return [*gains, LEGEND, *chain.from_iterable(others)]


def quickstart(config: QuickstartConfig, progress: ProgressCallback | None = None) -> QuickstartResult:
    """Run all steps.

    UserError for settings or raw files that do not fit, before the first step, or before the first training where only
    the lake shows it.
    """
    steps = make_steps(config)
    lake = _make_lake(config, steps, progress)
    with_fairness = config.fairness and bool(lake.manifest.attributes)
    _check_against_lake(steps, lake, with_fairness)
    for training in steps.trainings:
        train_propensity(training, _named(progress, training.name))
    gains = evaluate_propensity(steps.evaluation, progress)
    if not with_fairness:
        return QuickstartResult({"evaluation": gains})
    for table in gains.tables():
        Console(stderr=True).print(table)  # early: the results are printed when everything is done
    train_backbone(steps.backbone, _named(progress, "backbone"))
    train_eliminators(steps.eliminators, progress)
    audited = audit(steps.audit, progress)
    make_bundle(steps.bundle, progress, replace=True)
    return QuickstartResult({"evaluation": gains, "audit": audited}, steps.bundle.out)


def _make_lake(config: QuickstartConfig, steps: QuickstartSteps, progress: ProgressCallback | None) -> Lake:
    """The lake with its embeddings, made as far as an earlier start did not."""
    built = exists(join(steps.lake, MANIFEST_NAME))
    embedded = built and Lake.open(steps.lake).manifest.embeddings.user_width > 0
    source = None if built else make_source(config.dataset, steps.build.source, config.raw)  # wrong ones leave no trace
    _same_settings(config, steps.folder, ["dataset", "raw", "source", "build"] * built + ["embed"] * embedded)
    if source is not None:
        build_lake(source, steps.lake, steps.build.build, progress=progress)
    if not Lake.open(steps.lake).manifest.embeddings.user_width:
        embed_lake(steps.embed, progress)
    return Lake.open(steps.lake)


def _same_settings(config: QuickstartConfig, folder: str, used: list[str]) -> None:
    """Record what the lake is made from; UserError if `used` settings have changed."""
    made_from = config.model_dump(mode="json", include={"dataset", "raw", "source", "build", "embed"})
    uri = join(folder, "quickstart.json")
    former = read_json(uri) if exists(uri) else {"version": VERSION} | made_from
    check_version(f"the quickstart in {folder!r}", former.get("version", 1), VERSION, "choose another --out")
    before, now = (Identity({key: of[key] for key in used}) for of in (former, made_from))
    check_same(f"the quickstart in {folder!r}", before, now)
    write_json(uri, {"version": VERSION} | made_from)


def _check_against_lake(steps: QuickstartSteps, lake: Lake, with_fairness: bool) -> None:
    """UserError for settings that do not fit the lake, the cluster or existing runs."""
    for training in steps.trainings:
        calendar = training.window.resolve(lake.manifest.calendar)
        new_propensity_run(training, lake, calendar).resume_or_new()
        days_and_cohorts(steps.evaluation, lake, calendar, training.sample)
    for runner in steps.runners if with_fairness else steps.runners[:1]:
        check_resources(runner)
    if with_fairness:
        new_backbone_run(steps.backbone, lake).resume_or_new()
        make_packs(steps.eliminators, lake.manifest.attributes)


def _named(progress: ProgressCallback | None, name: str) -> ProgressCallback | None:
    return (lambda stage, *counts: progress(f"{name}: {stage}", *counts)) if progress else None

"""`mtrec quickstart`: from raw files to report; each step as its own command.

1. build the lake      2. embed it, if its source brings no vectors
3. train each variant  4. evaluate all of them on the same users
5. train a backbone    6. make an eliminator for every combination of attributes
7. audit them          8. bundle them with a multi-task model
9. draw the report

A stopped quickstart resumes: steps 1 to 3, 5 and 6 are skipped once they are done, the others run again.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import RenderableType

from mtrec_ray.console import JobResult, ProgressCallback
from mtrec_ray.errors import check_version
from mtrec_ray.evaluation.terminal_tables import average_gain_table
from mtrec_ray.files import exists, join, read_json, write_json
from mtrec_ray.identity import Identity, check_same
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.audit_report import Audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.evaluate import days_and_cohorts, evaluate_propensity
from mtrec_ray.jobs.quickstart_config import QuickstartConfig, QuickstartSteps, make_steps
from mtrec_ray.jobs.quickstart_summary import (
    LEGEND,
    Stages,
    audit_sentences,
    gain_sentences,
    leakage_table,
    next_steps,
    paragraph,
    say,
)
from mtrec_ray.jobs.report import PropensityEvaluation
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.cluster import tasks_in_process
from mtrec_ray.lake.embed import embed_lake
from mtrec_ray.lake.manifest import MANIFEST_NAME, Lake
from mtrec_ray.reports.report import make_report
from mtrec_ray.sources.source import make_source
from mtrec_ray.training.backbone_run import new_backbone_run
from mtrec_ray.training.eliminators import make_packs, train_eliminators
from mtrec_ray.training.fit import check_resources, train_backbone, train_propensity
from mtrec_ray.training.propensity_run import new_propensity_run

DRAWING = "Report: one page with every figure, and each as SVG, PNG and CSV"
VERSION = 3  # of quickstart.json


@dataclass(frozen=True)
class QuickstartResult:
    """Gains, and what followed where the lake has sensitive attributes."""

    gains: PropensityEvaluation
    report: str  # URI of the page
    about: str  # what the figures rest on
    audit: Audit | None = None
    bundle: str | None = None  # URI

    @property
    def parts(self) -> dict[str, JobResult]:
        """`evaluation`, and `audit` where there is one."""
        found: dict[str, JobResult] = {"evaluation": self.gains}
        return found | ({"audit": self.audit} if self.audit else {})

    @property
    def metrics(self) -> pd.DataFrame:
        """Rows of both parts, with column `job`."""
        return pd.concat([part.metrics.assign(job=name) for name, part in self.parts.items()], ignore_index=True)

    def document(self) -> dict[str, Any]:
        parts = {name: part.document() for name, part in self.parts.items()}
        return {"version": 1, "bundle": self.bundle, "report": self.report} | parts

    def tables(self) -> list[RenderableType]:
        shown: list[RenderableType] = [average_gain_table(self.gains.report), LEGEND]
        sentences = paragraph("Gain", gain_sentences(self.gains.report, self.about))
        if self.audit:
            shown.append(leakage_table(self.audit.document()))
            sentences += paragraph("Audit", audit_sentences(self.audit.document(), self.about))
        return [*shown, *sentences, "\n".join(next_steps(self.bundle, self.report, "planted" in self.about))]


def quickstart(config: QuickstartConfig, progress: ProgressCallback | None = None) -> QuickstartResult:
    """Run all steps, in this process unless the settings are `full`.

    UserError for settings or raw files that do not fit, before the first step, or before the first training where only
    the lake shows it.
    """
    steps = make_steps(config)
    with tasks_in_process() if steps.in_process else nullcontext():
        return _run_steps(config, steps, progress)


def _run_steps(config: QuickstartConfig, steps: QuickstartSteps, progress: ProgressCallback | None) -> QuickstartResult:
    stage = Stages(8 if config.fairness else 4)
    stage(f"The lake: {_described(config)}, checked and written to {steps.lake}")
    lake = _make_lake(config, steps, progress)
    with_fairness = config.fairness and bool(lake.manifest.attributes)
    stage.number = 8 if with_fairness else 4
    if config.fairness and not with_fairness:
        say("      It has no sensitive attributes, so 4 steps follow each other, without audit and bundle.")
    _check_against_lake(steps, lake, with_fairness)
    stage(f"Propensity models: {', '.join(dict.fromkeys(config.variants))}. Which helps local titles?")
    for training in steps.trainings:
        train_propensity(training, _named(progress, training.name))
    stage("Evaluation: who watches which title on the days after, for users that no model was trained on")
    gains = evaluate_propensity(steps.evaluation, progress)
    about = _about(config)
    for sentence in gain_sentences(gains.report, about):
        say(f"      {sentence}")  # early: the tables are printed when everything is done
    if not with_fairness:
        stage(DRAWING)
        return QuickstartResult(gains, make_report(steps.report(with_fairness), progress).out, about)
    stage("Backbone: a sequential model predicts the next title; it stays as it is from now on")
    train_backbone(steps.backbone, _named(progress, "backbone"))
    stage(f"Eliminators: each hides a combination of {', '.join(lake.manifest.attributes)} in the user vectors")
    train_eliminators(steps.eliminators, progress)
    stage("Audit: attackers try to read what is hidden, from users that no eliminator saw")
    audited = audit(steps.audit, progress)
    stage("Bundle: what the endpoint serves, with the figures that its gates read")
    make_bundle(steps.bundle, progress, replace=True)
    stage(DRAWING)
    report = make_report(steps.report(with_fairness), progress)
    return QuickstartResult(gains, report.out, about, audited, steps.bundle.out)


def _described(config: QuickstartConfig) -> str:
    if config.dataset != "synthetic":
        return f"{config.dataset} data of {config.raw}"
    return "a planted streaming service, whose regions differ in taste and whose tastes tell of gender and age"


def _about(config: QuickstartConfig) -> str:
    seeds = "one seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"{seeds}, planted data" if config.dataset == "synthetic" else seeds


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

"""From an evaluation to what is shown and written: runs that differ in nothing but the seed become one variant."""

import re
from typing import Any

from rich.console import RenderableType

from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.tables import gain_rich_table, metric_rich_table, title_rich_table, write_tables
from mtrec_ray.jobs.evaluate import Evaluation
from mtrec_ray.training.run import RunRecord


def make_report(evaluation: Evaluation) -> EvaluationReport:
    """Variants in the order of their first run, references after them."""
    names = variant_names(evaluation.records)
    runs = [
        EvaluatedRun(variant, evaluation.results_of(record.config.name), record.config.seed)
        for record, variant in zip(evaluation.records, names, strict=True)
    ]
    seeds = [run.seed for run in runs if run.variant == runs[0].variant]
    runs += [EvaluatedRun(name, evaluation.results_of(name), seed) for name in evaluation.references for seed in seeds]
    titles = evaluation.lake.titles
    labels = [_title_label(titles, index) for index in evaluation.titles]
    return EvaluationReport(runs, evaluation.lake.territory_names(), labels)


def show_report(evaluation: Evaluation, out: str | None = None) -> tuple[dict[str, Any], list[RenderableType]]:
    """The flat metrics and the terminal tables; also written to `out` as CSV and JSON."""
    report = make_report(evaluation)
    tables: list[RenderableType] = []
    for cohort in report.cohorts:
        metrics = ["pr_auc", *(["ndcg@10"] if evaluation.lake.manifest.files.get("candidates") else [])]
        tables += [metric_rich_table(report, metric, cohort) for metric in metrics]
        if len(report.variants) > 1:
            tables.append(gain_rich_table(report, cohort))
    if report.titles and len(report.variants) > 1:
        tables.append(title_rich_table(report))
    if out:
        write_tables(report, out)
    return report.flat_metrics(), tables


def variant_names(records: list[RunRecord]) -> list[str]:
    """Name of each run's variant: a run's own name, or the common one of runs that differ in their seeds alone."""
    signatures = [_signature(record) for record in records]
    shared: dict[str, list[str]] = {}
    for signature, record in zip(signatures, records, strict=True):
        shared.setdefault(signature, []).append(record.config.name)
    return [
        record.config.name
        if len(shared[signature]) == 1
        else re.sub(r"[-_.]?(s|seed)?[-_.]?\d+$", "", shared[signature][0])
        for signature, record in zip(signatures, records, strict=True)
    ]


def _signature(record: RunRecord) -> str:
    config = record.config.model_copy(update={"name": "", "seed": 0, "runner": type(record.config.runner)()})
    return config.model_copy(update={"sample": config.sample.model_copy(update={"seed": 0})}).model_dump_json()


def _title_label(titles, index: int) -> str:
    title_id, name = titles["title_id"][index].as_py(), titles["name"][index].as_py()
    return f"{name} ({title_id})" if name else title_id

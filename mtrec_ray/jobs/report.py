"""From an evaluation to what is shown and written: runs that differ in nothing but the seed become one variant."""

import re
from typing import Any

from rich.console import RenderableType

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.tables import write_tables
from mtrec_ray.evaluation.terminal import gain_rich_table, metric_rich_table, title_rich_table
from mtrec_ray.jobs.evaluate import Evaluation
from mtrec_ray.training.run import RunRecord


def make_report(evaluation: Evaluation) -> EvaluationReport:
    """Variants in the order of their first run, references after them; UserError where seeds cannot be paired."""
    names = variant_names(evaluation.records)
    runs = [
        EvaluatedRun(variant, evaluation.results_of(record.config.name), record.config.seed)
        for record, variant in zip(evaluation.records, names, strict=True)
    ]
    seeds = [run.seed for run in runs if run.variant == runs[0].variant]
    runs += [EvaluatedRun(name, evaluation.results_of(name), seed) for name in evaluation.references for seed in seeds]
    titles = evaluation.lake.titles
    labels = [_title_label(titles, index) for index in evaluation.titles]
    try:
        return EvaluationReport(runs, evaluation.lake.territory_names(), labels)
    except ValueError as error:
        raise UserError(str(error)) from error


def show_report(evaluation: Evaluation, out: str | None = None) -> tuple[dict[str, Any], list[RenderableType]]:
    """The flat metrics and the terminal tables; also written to `out` as CSV and JSON."""
    report = make_report(evaluation)
    tables: list[RenderableType] = []
    for cohort in report.cohorts:
        tables.append(gain_rich_table(report, cohort))
        if "candidates" in evaluation.lake.manifest.files:
            tables.append(metric_rich_table(report, "ndcg@10", cohort))
    if report.titles and len(report.variants) > 1:
        tables.append(title_rich_table(report))
    if out:
        write_tables(report, out)
    return report.flat_metrics(), tables


def variant_names(records: list[RunRecord]) -> list[str]:
    """Each run's variant: its name without a seed suffix such as `-s1`, common to runs that differ in seeds alone."""
    first_name: dict[str, str] = {}
    for record in records:
        first_name.setdefault(_signature(record), record.config.name)
    short = {signature: re.sub(r"[-_.](s|seed)?\d+$", "", name) for signature, name in first_name.items()}
    distinct = len(set(short.values())) == len(short)
    return [(short if distinct else first_name)[_signature(record)] for record in records]


def _signature(record: RunRecord) -> str:
    """The run's settings without name, seeds, and where and how it was carried out."""
    config = record.config
    plain = {"name": "", "runs": "", "seed": 0, "runner": type(config.runner)()}
    sample = config.sample.model_copy(update={"seed": 0})
    return config.model_copy(update=plain | {"sample": sample}).model_dump_json()


def _title_label(titles, index: int) -> str:
    title_id, name = titles["title_id"][index].as_py(), titles["name"][index].as_py()
    return name or title_id

"""From an evaluation to what is shown and written: runs that differ in nothing but the seed become one variant."""

import re
from collections import Counter
from typing import Any

import pyarrow as pa
from rich.console import RenderableType

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.score_plots import title_score_figure, write_figure
from mtrec_ray.evaluation.tables import write_tables
from mtrec_ray.evaluation.terminal import gain_rich_table, metric_rich_table, title_rich_table
from mtrec_ray.files import join
from mtrec_ray.jobs.evaluate import Evaluation
from mtrec_ray.training.propensity_run import PropensityRecord


def make_report(evaluation: Evaluation) -> EvaluationReport:
    """Variants in the order of their first run, references after them; UserError where seeds cannot be paired."""
    names = variant_names(evaluation.records)
    runs = [
        EvaluatedRun(variant, evaluation.results_of(record.config.name), record.config.seed)
        for record, variant in zip(evaluation.records, names, strict=True)
    ]
    seeds = [run.seed for run in runs if run.variant == runs[0].variant]
    for name, scorers in evaluation.references.items():
        runs += [EvaluatedRun(name, evaluation.results_of(scorers[seed]), seed) for seed in seeds]
    labels = _title_labels(evaluation.lake.titles.take(pa.array(evaluation.titles, pa.int64())))
    try:
        return EvaluationReport(runs, evaluation.lake.territory_names(), labels)
    except ValueError as error:
        raise UserError(str(error)) from error


def show_report(evaluation: Evaluation, out: str | None = None) -> tuple[dict[str, Any], list[RenderableType]]:
    """The flat metrics, what they are of, and the terminal tables; also written to `out` as CSV, JSON and figures."""
    report = make_report(evaluation)
    of = measured(evaluation)
    tables: list[RenderableType] = []
    for cohort in report.cohorts:
        tables.append(gain_rich_table(report, cohort))
        if "candidates" in evaluation.lake.manifest.files:
            tables.append(metric_rich_table(report, "ndcg@10", cohort))
    if report.titles and len(report.variants) > 1:
        tables.append(title_rich_table(report))
    if out:
        write_tables(report, out, of)
        write_score_figures(evaluation, report, out)
    return report.flat_metrics() | of, tables


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """Beside the flat metrics: `runs`, each run's variant and the hash of its weights, and the `protocol`."""
    names = variant_names(evaluation.records)
    runs = {
        record.config.name: {"variant": variant, "weights_hash": evaluation.weights[record.config.name]}
        for record, variant in zip(evaluation.records, names, strict=True)
    }
    return {"runs": runs, "protocol": {"num_negatives": evaluation.num_negatives, "users": evaluation.cohorts[0]}}


def write_score_figures(evaluation: Evaluation, report: EvaluationReport, out: str, count: int = 4) -> None:
    """Paper A, figure 2: how the models score the titles with the most positives, local and global, on the last day."""
    day, cohort = report.cohort_days()[-1], report.primary_cohort
    first_runs: dict[str, str] = {}  # of each variant
    for name, record in zip(variant_names(evaluation.records), evaluation.records, strict=True):
        first_runs.setdefault(name, record.config.name)
    results = {name: evaluation.results[run, day, cohort] for name, run in first_runs.items()}
    positives, local = report.counts("title_positives"), report.title_is_local
    ranked = sorted(range(len(positives)), key=lambda slot: -positives[slot])
    kinds = ([s for s in ranked if local is None or local[s] == kind] for kind in (True, False))
    chosen = [slot for kind in kinds for slot in kind[: count // 2]]
    for slot in dict.fromkeys(chosen):
        histograms = {name: result.title_histograms[slot] for name, result in results.items()}
        if any(histogram.sum() for histogram in histograms.values()):
            scope = "" if local is None else " (local)" if local[slot] else " (global)"
            figure = title_score_figure(histograms, report.settings.grid, report.titles[slot] + scope)
            write_figure(figure, join(out, f"scores-{slot + 1:02d}.png"))


def variant_names(records: list[PropensityRecord]) -> list[str]:
    """Each run's variant: its name without a seed suffix such as `-s1`, common to runs that differ in seeds alone."""
    first_name: dict[str, str] = {}
    for record in records:
        first_name.setdefault(_signature(record), record.config.name)
    short = {signature: re.sub(r"[-_.](s|seed)?\d+$", "", name) for signature, name in first_name.items()}
    distinct = len(set(short.values())) == len(short)
    return [(short if distinct else first_name)[_signature(record)] for record in records]


def _signature(record: PropensityRecord) -> str:
    """The run's settings without name, seeds, and where and how it was carried out."""
    config = record.config
    plain = {"name": "", "runs": "", "seed": 0, "runner": type(config.runner)()}
    sample = config.sample.model_copy(update={"seed": 0})
    return config.model_copy(update=plain | {"sample": sample}).model_dump_json()


def _title_labels(titles: pa.Table) -> list[str]:
    """Name of each title, with its id where there is no name or more than one title has it."""
    ids, names = titles["title_id"].to_pylist(), titles["name"].to_pylist()
    repeated = {name for name, count in Counter(names).items() if count > 1}
    return [
        name if name and name not in repeated else f"{name} ({title_id})" if name else title_id
        for title_id, name in zip(ids, names, strict=True)
    ]

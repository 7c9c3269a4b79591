"""Result of `mtrec evaluate propensity`: tables, JSON document, CSV files and plots."""

import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import RenderableType

from mtrec_ray.evaluation.report import EvaluationReport
from mtrec_ray.evaluation.score_counts import GRID
from mtrec_ray.evaluation.tables import evaluation_document, evaluation_tables, write_csv_files
from mtrec_ray.evaluation.terminal_tables import rich_tables
from mtrec_ray.files import join, write_file, write_json
from mtrec_ray.training.propensity_run import PropensityRecord

EVALUATION_FILE, EVALUATION_VERSION = "metrics.json", 1
NUM_PLOTS, NUM_BARS = 4, 40


@dataclass(frozen=True)
class PropensityEvaluation:
    """A `JobResult`: metrics of runs and references."""

    report: EvaluationReport
    num_negatives: int | None  # negatives per user; None: all titles that the user could discover
    with_candidates: bool  # the lake fixes the titles to rank, so NDCG@10 compares with published results
    own_users: bool = False  # each evaluation day has test users of its own
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> its chosen settings

    @cached_property
    def csv_tables(self) -> dict[str, pd.DataFrame]:
        """Tables by file name, see `evaluation.tables`."""
        return evaluation_tables(self.report)

    @property
    def metrics(self) -> pd.DataFrame:
        """The content of territory_metrics.csv."""
        return self.csv_tables["territory_metrics"]

    def document(self) -> dict[str, Any]:
        """The content of metrics.json: runs with the hashes of their weights, protocol, tables."""
        return {
            "version": EVALUATION_VERSION,
            "protocol": {"num_negatives": self.num_negatives, "cohort": self.report.cohorts[0]},
            "runs": {
                run.name: {"variant": run.variant, "seed": run.seed, "weights_hash": run.weights_hash}
                for run in self.report.runs
                if run.weights_hash
            },
            "references": {name: dict(settings) for name, settings in self.references.items()},
            "baseline": self.report.baselines[0],
            "own_users_each_day": self.own_users,
            "notes": [note.replace("\n", " ") for note in self.report.notes],
            **evaluation_document(self.csv_tables, self.report.baselines[0]),
        }

    def tables(self) -> list[RenderableType]:
        return rich_tables(self.report, self.with_candidates)

    def write(self, folder: str) -> None:
        write_csv_files(folder, self.csv_tables)
        write_json(join(folder, EVALUATION_FILE), self.document())
        self._write_plots(folder)

    def _write_plots(self, folder: str) -> None:
        """Paper A, figure 2: scores of the titles with most positives on the last day."""
        report, day = self.report, self.report.days()[-1]
        runs = {run.variant: run for run in reversed(report.runs) if run.weights_hash}  # the first of each variant
        results = {v: runs[v].results[day, report.cohorts[0]] for v in report.variants if v in runs}
        local = report.title_is_local
        ranked = np.argsort(-report.counts("title_positives"), kind="stable")
        for slot in [slot for kind in (local, ~local) for slot in ranked[kind[ranked]][: NUM_PLOTS // 2].tolist()]:
            histograms = {variant: result.title_histograms[slot] for variant, result in results.items()}
            if any(histogram.sum() for histogram in histograms.values()):
                heading = f"{report.titles[slot]} ({'local' if local[slot] else 'global'})"
                figure, png = title_score_plot(histograms, heading), io.BytesIO()
                figure.savefig(png, format="png", dpi=120)
                write_file(join(folder, f"title_scores_{slot + 1:02d}.png"), png.getvalue())


def title_score_plot(histograms: Mapping[str, np.ndarray], title: str):
    """Normalised histograms of users by one title's score, an outline for each model.

    `histograms`: model -> (2, num_bins) users, negatives and positives, on `GRID`; at least one has users.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = {name: histogram.sum(axis=0) for name, histogram in histograms.items()}
    occupied = np.flatnonzero(sum(counts.values()))
    first, last = int(occupied[0]), int(occupied[-1]) + 1
    cuts = np.unique(np.linspace(first, last, NUM_BARS + 1).round().astype(int))
    edges = GRID.edges()
    edges = edges[cuts].clip(edges[1], edges[-2])  # the outermost are infinite
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, count in counts.items():
        users = np.add.reduceat(count[first:last], cuts[:-1] - first)
        axes.stairs(users / max(1, users.sum()), edges, label=name)
    axes.set(title=title, xlabel="logit", ylabel="fraction of users")
    axes.legend(frameon=False)
    return figure


def variant_names(records: list[PropensityRecord]) -> list[str]:
    """Each run's variant: its name without a seed suffix such as `-s1`."""
    may_differ: Any = {"name": True, "runs": True, "seed": True, "runner": True, "sample": {"seed"}}
    settings, first_name = [record.config.model_dump_json(exclude=may_differ) for record in records], {}
    for own, record in zip(settings, records, strict=True):
        first_name.setdefault(own, record.config.name)
    short = {own: re.sub(r"[-_.](s|seed)?\d+$", "", name) for own, name in first_name.items()}
    distinct = len(set(short.values())) == len(short)
    return [(short if distinct else first_name)[own] for own in settings]


def title_labels(titles: pa.Table) -> list[str]:
    """Name of each title, or its id, with the id where the name is repeated."""
    ids, names = titles["title_id"].to_pylist(), titles["name"].to_pylist()
    labels = [name or title_id for title_id, name in zip(ids, names, strict=True)]
    counts = Counter(labels)
    return [f"{label} ({i})" if counts[label] > 1 else label for i, label in zip(ids, labels, strict=True)]

"""Result of `mtrec evaluate propensity`: tables, JSON document and CSV files."""

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
from scipy.special import expit

from mtrec_ray.evaluation.report import EvaluationReport
from mtrec_ray.evaluation.score_counts import GRID
from mtrec_ray.evaluation.tables import evaluation_document, evaluation_tables, write_csv_files
from mtrec_ray.evaluation.terminal_tables import rich_tables
from mtrec_ray.files import join, write_json
from mtrec_ray.training.propensity_run import PropensityRecord

EVALUATION_FILE, EVALUATION_VERSION = "metrics.json", 1
NUM_SCORED, NUM_BARS, NEARLY_ALL = 4, 40, 0.999  # titles, bins of the score, fraction of the users that they span


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
        scores = self.title_scores()
        write_csv_files(folder, self.csv_tables | ({"title_scores": scores} if len(scores) else {}))
        write_json(join(folder, EVALUATION_FILE), self.document())

    def title_scores(self) -> pd.DataFrame:
        """Users by the score of the titles with most positives (paper A, figure 2).

        On the last day; one row a title, variant and bin of the propensity score: low, high, users.
        """
        report, day = self.report, self.report.days()[-1]
        runs = {run.variant: run for run in reversed(report.runs) if run.weights_hash}  # the first of each variant
        results = {v: runs[v].results[day, report.cohorts[0]] for v in report.variants if v in runs}
        local = report.title_is_local
        ranked = np.argsort(-report.counts("title_positives"), kind="stable")
        parts = []
        for slot in [slot for kind in (local, ~local) for slot in ranked[kind[ranked]][: NUM_SCORED // 2].tolist()]:
            found = {variant: result.title_histograms[slot].sum(axis=0) for variant, result in results.items()}
            if any(histogram.any() for histogram in found.values()):
                key = {"title": report.titles[slot], "scope": "local" if local[slot] else "global"}
                parts.append(score_histogram(found).assign(**key))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def score_histogram(histograms: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Users by propensity score, from counts on `GRID`: model -> (num_bins,), one not empty.

    Equally wide bins from 0 to the highest score of nearly all users; those above count in the last.
    """
    edges = GRID.edges()
    probability = expit((edges[:-1].clip(edges[1]) + edges[1:].clip(max=edges[-2])) / 2)  # at the middle of each bin
    total = np.cumsum(sum(histograms.values()))
    highest = probability[np.searchsorted(total, NEARLY_ALL * total[-1])]
    cuts = np.linspace(0.0, max(float(highest), 1e-6), NUM_BARS + 1)
    bar = np.clip(np.searchsorted(cuts, probability, side="right") - 1, 0, NUM_BARS - 1)
    rows = [
        {"variant": name, "low": cuts[index], "high": cuts[index + 1], "users": users}
        for name, counts in histograms.items()
        for index, users in enumerate(np.bincount(bar, counts, NUM_BARS).astype(np.int64).tolist())
    ]
    return pd.DataFrame(rows)


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

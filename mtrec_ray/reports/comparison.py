"""What changed between days, evaluations, audits, bundles or runs, and what is noise."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# the stubs of pandas know no columns of rows, and few results of selections

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.reports.chart import Chart, Section, canvas
from mtrec_ray.reports.fairness import leakage_rows
from mtrec_ray.reports.inputs import Folder, Inputs
from mtrec_ray.reports.marks import interval_rows, name_rows, zero_line
from mtrec_ray.reports.territories import AVERAGE, POOLED, cohort_of, models_of

IGNORED_SETTINGS = ("name", "runs", "lake", "backbone", "runner.", "tracking.")  # do not change what is learned


def comparison_section(inputs: Inputs) -> Section:
    """Days of one evaluation, several folders of a kind, and settings of runs."""
    section = Section("comparison", "Comparison")
    evaluations, audits = inputs.of("evaluation"), inputs.of("audit")
    if evaluations:
        section.charts += day_charts(evaluations[0])
    if len(evaluations) > 1:
        section.charts.append(change_chart("evaluations", "PR-AUC", evaluation_values(evaluations), evaluations))
        section.notes += other_data_notes(evaluations)
    if len(audits) > 1:
        section.charts.append(change_chart("audits", "AUC of attackers", audit_values(audits), audits))
    if len(bundles := inputs.of("bundle")) > 1:
        what = "NDCG@10 over all titles"
        section.charts.append(change_chart("bundles", what, bundle_values(bundles), bundles))
    runs = inputs.of("run")
    if len(runs) > 1:
        section.charts.append(run_chart(runs))
    lakes = {run.name: run.document["lake_hash"] for run in runs}
    if len(set(lakes.values())) > 1:
        first = next(iter(lakes.values()))
        others = ", ".join(name for name, lake in lakes.items() if lake != first)
        section.notes.append(f"Trained on another lake than {runs[0].name}, so not comparable with it: {others}.")
    if not section.charts and not section.notes:
        section.notes.append("One folder of a kind alone: name a second evaluation, audit, bundle or run to compare.")
    return section


def other_data_notes(evaluations: list[Folder]) -> list[str]:
    """Evaluations whose counts of users, pairs or positives are not those of the first one."""
    counts = [_counts_of(folder) for folder in evaluations]
    others = [folder.name for folder, of in zip(evaluations, counts, strict=True) if of != counts[0]]
    if not others:
        return []
    return [
        f"Evaluated on other days, users or titles than {evaluations[0].name}, so a difference from it may come of "
        f"these and not of the models: {', '.join(others)}."
    ]


def _counts_of(evaluation: Folder) -> set[tuple[object, ...]]:
    counts = evaluation.table("territory_counts")
    if counts is None:
        return set()
    rows = counts[counts["cohort"] == cohort_of(evaluation)]
    return set(rows[["day", "territory", "num_users", "num_candidates", "num_positives"]].itertuples(index=False))


def day_charts(evaluation: Folder) -> list[Chart]:
    """PR-AUC of each variant, day by day."""
    metrics = evaluation.table("territory_metrics")
    if metrics is None:
        return []
    variants = models_of(evaluation)
    rows = metrics[
        (metrics["metric"] == "pr_auc")
        & metrics["over"].isna()
        & (metrics["cohort"] == cohort_of(evaluation))
        & (metrics["territory"] == POOLED)
        & metrics["variant"].isin(variants)
        & (metrics["day"] != AVERAGE)
    ].reindex(columns=["variant", "day", "value", "low", "high"])
    days = list(dict.fromkeys(rows["day"]))
    if len(days) < 2:
        return []
    parts = []
    for variant in variants:
        of = rows[rows["variant"] == variant].set_index("day").reindex(days)
        value, low, high = difference(of.loc[days[-1]], of.loc[days[0]])
        parts.append(f"{variant} from day {days[0]} to {days[-1]}: {value:+.4f} ({verdict(low, high)})")

    def draw() -> Figure:
        figure, axes = canvas(0.8 + 0.3 * len(days))
        for index, variant in enumerate(variants):
            of = rows[rows["variant"] == variant].set_index("day").reindex(days)
            columns = (of[name].to_numpy() for name in ("value", "low", "high"))
            shift = 0.5 * ((index + 0.5) / len(variants) - 0.5)
            interval_rows(axes[0], *columns, series=index, shift=shift, label=variant)
        name_rows(axes[0], [f"day {day}" for day in days])
        axes[0].set_xlabel("PR-AUC, users of all territories")
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5)
        return figure

    return [
        Chart(
            "days",
            "Day by day",
            "; ".join(parts) + ".",
            rows,
            draw,
            how="Differences of days are of different users and titles: their intervals are not paired.",
        )
    ]


def change_chart(name: str, what: str, values: pd.DataFrame, folders: list[Folder]) -> Chart:
    """What later folders' figures differ by from the first one's.

    `values`: label, folder, value, low, high.
    """
    first, others = folders[0].name, [folder.name for folder in folders[1:]]
    rows = []
    base = values[values["folder"] == folders[0].uri].set_index("label")
    for folder in folders[1:]:
        for row in values[values["folder"] == folder.uri].itertuples():
            if row.label in base.index:
                found = pd.Series({"value": row.value, "low": row.low, "high": row.high})
                value, low, high = difference(found, base.loc[row.label])
                rows.append({"label": row.label, "folder": folder.name, "value": value, "low": low, "high": high})
    changes = pd.DataFrame(rows, columns=["label", "folder", "value", "low", "high"])
    noise = int(((changes["low"] <= 0) & (changes["high"] >= 0)).sum())
    sure = changes[(changes["low"] > 0) | (changes["high"] < 0)]
    words = [f"{row.label} {row.value:+.4f}" for row in sure.head(8).itertuples()]
    sentence = f"{noise} of {len(changes)} differences are noise"
    sentence += f"; beyond their interval: {', '.join(words)}." if words else "."

    def draw() -> Figure:
        labels = list(dict.fromkeys(changes["label"]))
        figure, axes = canvas(0.8 + 0.24 * max(1, len(labels)))
        for index, folder in enumerate(others):
            of = changes[changes["folder"] == folder].set_index("label").reindex(labels)
            columns = (of[column].to_numpy(dtype=float) for column in ("value", "low", "high"))
            interval_rows(axes[0], *columns, series=index, shift=0.15 * index, label=folder)
        name_rows(axes[0], labels)
        zero_line(axes[0])
        axes[0].set_xlabel(f"difference in {what} from {first}")
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.5)
        return figure

    drawn = draw if len(changes) else None
    how = "Intervals are not paired: half-widths are added in quadrature, so a small change of the same users may hide."
    return Chart(name, f"{what}: {', '.join(others)} against {first}", sentence, changes, drawn, how=how)


def evaluation_values(evaluations: list[Folder]) -> pd.DataFrame:
    """Mean PR-AUC over days of all users, by variant: label, folder, value, low, high."""
    parts = []
    for folder in evaluations:
        metrics = folder.table("territory_metrics")
        if metrics is None:
            continue
        rows = metrics[
            (metrics["metric"] == "pr_auc")
            & metrics["over"].isna()
            & (metrics["territory"] == POOLED)
            & (metrics["day"] == AVERAGE)
        ]
        rows = rows[(rows["cohort"] == cohort_of(folder)) & rows["variant"].isin(models_of(folder))]
        parts.append(rows.assign(folder=folder.uri, label=rows["variant"]))
    return pd.concat(parts).reindex(columns=["label", "folder", "value", "low", "high"])


def audit_values(audits: list[Folder]) -> pd.DataFrame:
    """AUC of what is to be hidden in user vectors: label, folder, value, low, high."""
    parts = []
    for folder in audits:
        rows = leakage_rows(folder.document)
        rows = rows[(rows["inputs"] == "vectors") & rows["to_hide"]]
        label = rows["attribute"] + ", ignoring " + rows["combination"]
        parts.append(rows.assign(folder=folder.uri, label=label))
    return pd.concat(parts).reindex(columns=["label", "folder", "value", "low", "high"])


def bundle_values(bundles: list[Folder]) -> pd.DataFrame:
    """NDCG@10 over all titles that a bundle carries: label, folder, value, low, high."""
    rows = [
        {"label": f"ignoring {name}", "folder": folder.uri} | metrics["full_ndcg@10"]
        for folder in bundles
        for name, metrics in folder.document["metrics"].items()
    ]
    return pd.DataFrame(rows, columns=["label", "folder", "value", "low", "high"])


def run_chart(runs: list[Folder]) -> Chart:
    """The settings in which runs differ."""
    settings = {run.name: dict(_flat(run.document.get("config", {}))) for run in runs}
    keys = list(dict.fromkeys(key for of in settings.values() for key in of if not key.startswith(IGNORED_SETTINGS)))
    kinds = {run.name: run.document["kind"] for run in runs}
    rows = [{"setting": "kind of run"} | kinds]
    for key in keys:
        values = {name: str(of[key]) if key in of else "" for name, of in settings.items()}
        shared = [of for name, of in values.items() if key in settings[name]]
        if len(set(shared)) > 1:
            rows.append({"setting": key} | values)
    table = pd.DataFrame(rows)
    sentence = f"{len(runs)} runs, which differ in {len(rows) - 1} settings of what is learned."
    return Chart("runs", "Runs and their settings", sentence, table, table=table)


def difference(later: pd.Series, first: pd.Series) -> tuple[float, float, float]:
    """Difference of two independent figures with its interval; NaN bounds where one has none."""
    value = float(later["value"] - first["value"])
    halves = [(float(of["high"]) - float(of["low"])) / 2 for of in (later, first)]
    half = float(np.hypot(*halves))
    return value, value - half, value + half


def verdict(low: float, high: float) -> str:
    """What an interval of a difference says."""
    if not np.isfinite(low):
        return "too few users to tell"
    return f"{low:+.4f} to {high:+.4f}" + (", noise" if low <= 0 <= high else "")


def _flat(document: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, value in document.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return found

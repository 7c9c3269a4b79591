"""How runs trained: loss, validation, speed and where the time went."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# the stubs of pandas know no columns of rows, and few results of selections

import json

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtrec_ray.files import exists, join, read_file
from mtrec_ray.reports.chart import MARKERS, SERIES, Chart, Section, canvas
from mtrec_ray.reports.inputs import Folder, Inputs
from mtrec_ray.reports.marks import name_rows

MAX_RUNS = 8  # drawn; the table has all
VALIDATION = ("val/ndcg@10", "val/ndcg", "val/pr_auc")  # the first that a run has is drawn


def training_section(inputs: Inputs) -> Section:
    """Charts of all runs that have a metrics.jsonl."""
    section, parts = Section("training", "Training"), []
    for run in inputs.of("run"):
        found = metric_rows(run)
        parts += [found] if len(found) else []
        if not len(found):
            section.notes.append(f"Run {run.name} has no training figures: it was fitted without steps.")
    if not parts:
        section.notes = section.notes or ["No run was given: name folders of runs, e.g. runs/*."]
        return section
    rows = pd.concat(parts, ignore_index=True)
    section.charts += [loss_chart(rows), time_chart(rows)]
    return section


def metric_rows(run: Folder) -> pd.DataFrame:
    """Figures of a run over its steps: run, step, seconds, metric, value."""
    packs = [join(run.uri, "packs", name) for name in run.document.get("packs", {})]
    rows = []
    for folder in [run.uri, *packs]:
        uri = join(folder, "metrics.jsonl")
        if not exists(uri):
            continue
        name = run.name if folder == run.uri else f"{run.name} {folder.rsplit('/', 1)[1]}"
        for line in read_file(uri).splitlines():
            try:
                found = json.loads(line)
            except ValueError:  # cut by a killed process
                continue
            key = {"run": name, "step": found.get("step"), "seconds": found.get("seconds")}
            rows += [
                key | {"metric": metric, "value": value}
                for metric, value in found.items()
                if "/" in metric and value is not None
            ]
    return pd.DataFrame(rows, columns=["run", "step", "seconds", "metric", "value"])


def loss_chart(rows: pd.DataFrame) -> Chart:
    """Loss, and the validation figure of the runs that validate."""
    runs = list(dict.fromkeys(rows["run"]))
    loss = rows[rows["metric"] == "train/loss"]
    validation = {run: metric for run in runs for metric in _validation_of(rows[rows["run"] == run])[:1]}
    ends = [f"{run} {of['value'].iloc[-1]:.4g}" for run in runs for of in (loss[loss["run"] == run],) if len(of)]

    def draw() -> Figure:
        figure, axes = canvas(2.8, 2 if validation else 1)
        for index, run in enumerate(runs[:MAX_RUNS]):
            color, style = SERIES[index % len(SERIES)], ("-", "--", ":", "-.")[index // len(SERIES) % 4]
            of = loss[loss["run"] == run]
            step = of["step"] / max(1, of["step"].max())
            smooth = of["value"].ewm(span=max(1, len(of) // 20)).mean()
            axes[0].plot(100 * step, smooth / smooth.iloc[0] if len(of) else smooth, style, color=color, label=run)
            if run in validation:
                of = rows[(rows["run"] == run) & (rows["metric"] == validation[run])]
                marker = MARKERS[index % len(MARKERS)]
                axes[1].plot(
                    of["step"], of["value"], style, marker=marker, color=color, label=f"{run}: {validation[run]}"
                )
        axes[0].set_title("training loss, relative to its start")
        axes[0].set_xlabel("% of the steps")
        axes[0].legend(fontsize=7)
        if validation:
            axes[1].set_title("validation")
            axes[1].set_xlabel("step")
            axes[1].legend(fontsize=7)
        return figure

    more = f" {len(runs) - MAX_RUNS} more runs are in the CSV file." if len(runs) > MAX_RUNS else ""
    return Chart(
        "loss",
        "Loss and validation",
        f"Training loss at the end: {', '.join(ends)}.{more}",
        rows[rows["metric"].isin(["train/loss", *validation.values()])],
        draw,
        how="The loss is smoothed and relative to its first value, as losses of different models do not compare.",
    )


def time_chart(rows: pd.DataFrame) -> Chart:
    """Examples a second, and the time in steps, waiting for data, and elsewhere."""
    table = []
    for run in dict.fromkeys(rows["run"]):
        of = rows[rows["run"] == run].pivot_table(index="step", columns="metric", values="value", aggfunc="last")
        of = of.reindex(columns=["train/step_s", "train/data_wait_s", "train/examples_per_s"]).fillna(0.0)
        wall = float(rows[rows["run"] == run]["seconds"].max())
        step, wait = (float(of[f"train/{name}_s"].sum()) for name in ("step", "data_wait"))
        examples = float((of["train/examples_per_s"] * (of["train/step_s"] + of["train/data_wait_s"])).sum())
        other = max(0.0, wall - step - wait)
        table.append({"run": run, "steps_s": step, "data_wait_s": wait, "other_s": other})
        table[-1]["examples_per_s"] = examples / max(wall, 1e-9)
    found = pd.DataFrame(table)
    parts = ("steps_s", "data_wait_s", "other_s")
    total = found[list(parts)].sum(axis=1).clip(lower=1e-9)
    words = [
        f"{row.run} {row.examples_per_s:,.0f} examples/s, {100 * row.steps_s / all_s:.0f}% of the time in steps"
        for row, all_s in zip(found.itertuples(), total, strict=True)
    ]

    def draw() -> Figure:
        shown = found.head(MAX_RUNS)
        figure, axes = canvas(0.9 + 0.28 * len(shown))
        left, hatches = np.zeros(len(shown)), ("", "//", "..")
        for series, (part, words) in enumerate(
            zip(parts, ("steps", "waiting for data", "start, validation, saving"), strict=True)
        ):
            width = 100 * shown[part].to_numpy() / total.head(MAX_RUNS).to_numpy()
            color = SERIES[series]
            axes[0].barh(
                range(len(shown)), width, 0.6, left, color=color, hatch=hatches[series], label=words, edgecolor="white"
            )
            left = left + width
        name_rows(axes[0], list(shown["run"]))
        axes[0].set_xlim(0, 100)
        axes[0].set_xlabel("% of the time")
        axes[0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure

    return Chart("time", "Where the time went", "; ".join(words) + ".", found, draw, found.round(2))


def _validation_of(rows: pd.DataFrame) -> list[str]:
    known = list(dict.fromkeys(rows["metric"]))
    others = [name for name in known if name.startswith("val/ndcg/")]
    return [name for name in VALIDATION if name in known] + others

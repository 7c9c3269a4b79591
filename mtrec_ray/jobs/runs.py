"""What a folder of runs holds: read from run.json and metrics.jsonl, without Ray."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import itemgetter
from pkgutil import resolve_name
from typing import Any

import pandas as pd
import pyarrow.fs as pafs
from pydantic import BaseModel, ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Column, Table

from mtrec_ray.config import Config, first_problem
from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, parent, read_json, resolve
from mtrec_ray.identity import flatten
from mtrec_ray.tracking.metrics_file import KEYS, read_metrics

COLUMNS = ("name", "kind", "status", "step", "last metric", "from", "seed", "metrics")
METRIC_COLUMNS = ["run", "metric", "step", "value"]
MAIN_METRICS = ("val/pr_auc/weighted", "val/ndcg", "train/loss")
BLOCKS, SPARKLINE_WIDTH = "▁▂▃▄▅▆▇█", 60


class ListRunsConfig(Config):
    """Which runs to list."""

    runs: str = "runs"
    """Folder or URI that holds runs."""


class ShowRunConfig(ListRunsConfig):
    """Which run to show."""

    run: str
    """Name of a run, or its folder or URI."""


class StoredRun(BaseModel):
    """What run.json has in all kinds and versions; other keys are ignored."""

    kind: str
    status: str
    config: dict[str, Any]
    lake_hash: str = ""
    backbone_hash: str = ""
    num_steps: int = 0
    packs: dict[str, Any] = {}
    figures: dict[str, dict[str, Any]] = {}


class RunView:
    """A run and its metrics; UserError if the folder `uri` holds none."""

    def __init__(self, uri: str) -> None:
        self.uri, self.name = uri, parent(uri)[1]
        try:
            self.stored = StoredRun.model_validate(read_json(join(uri, "run.json")))
            packs = {pack: join(uri, "packs", pack) for pack in self.stored.packs} or {"": uri}
            self.rows = {pack: read_metrics(folder) for pack, folder in packs.items()}
        except ValidationError as error:
            raise UserError(f"{uri!r}: run.json: {first_problem(error)}") from error
        except OSError as error:
            raise UserError(f"no run at {uri!r}, run.json is missing: `mtrec runs list` names the runs") from error

    @cached_property
    def series(self) -> dict[str, list[tuple[int, float]]]:
        """Metric -> its (step, value) in order, pack after pack."""
        found: dict[str, list[tuple[int, float]]] = {}
        for row in chain.from_iterable(self.rows.values()):
            for metric, value in row.items():
                if metric not in KEYS and isinstance(value, int | float):
                    found.setdefault(metric, []).append((row["step"], value))
        return found

    @property
    def metrics(self) -> pd.DataFrame:
        """All metrics: columns run, metric, step, value."""
        rows = [(self.name, metric, *point) for metric, points in self.series.items() for point in points]
        return pd.DataFrame(rows, columns=METRIC_COLUMNS)

    def summary(self) -> dict[str, Any]:
        """State, input and the last value of each metric; steps are summed over packs."""
        stored, last = self.stored, [rows[-1] for rows in self.rows.values() if rows]
        source, digest = ("backbone", stored.backbone_hash) if stored.backbone_hash else ("lake", stored.lake_hash)
        return {
            "name": self.name,
            "kind": stored.kind,
            "status": "done" if stored.status == "done" else "unfinished",
            "step": sum(row["step"] for row in last),
            "num_steps": stored.num_steps * max(1, len(stored.packs)),
            "last_metric": max((str(row.get("time")) for row in last), default=None),
            "from": f"{source} {parent(str(stored.config.get(source)))[1]} ({digest[:8]})",
            "seed": stored.config.get("seed"),
            "figures": {metric: points[-1][1] for metric, points in self.series.items()},
        }

    def settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults, by dotted key."""
        kind, defaults = self.stored.kind, {}
        with suppress(ImportError, AttributeError, ValueError):  # a kind of another version
            model = resolve_name(f"mtrec_ray.trainers.{kind}_config:{kind.capitalize()}Config")
            defaults = flatten(model.model_construct().model_dump(mode="json"))
        return {k: v for k, v in flatten(self.stored.config).items() if k not in defaults or defaults[k] != v}

    def validations(self) -> list[dict[str, Any]]:
        """Last and best value of each validation metric; lower is better for a probe's AUC alone."""
        found = []
        for metric, points in self.series.items():
            if metric.startswith("val/") and not metric.endswith(("_low", "_high")):
                pick = min if metric.startswith("val/probe_auc/") else max
                (step, last), (best_step, best) = points[-1], pick(points, key=itemgetter(1))
                found.append({"metric": metric, "last": last, "step": step, "best": best, "best_step": best_step})
        return found

    def kept(self) -> dict[str, dict[str, Any]]:
        """Figures of the weights that each combination of a finished run kept."""
        return self.stored.figures if self.stored.packs else {}

    def document(self) -> dict[str, Any]:
        details = {"settings": self.settings(), "validations": self.validations(), "series": self.series}
        details |= {"kept": self.kept()}
        return {"version": 1, "run": self.uri} | self.summary() | details

    def tables(self) -> list[RenderableType]:
        changed = {key: str(value) for key, value in self.settings().items()}
        facts: dict[str, object] = dict(zip(COLUMNS, _cells(self.summary()), strict=True))
        for pack, rows in self.rows.items():
            losses = [row["train/loss"] for row in rows if isinstance(row.get("train/loss"), int | float)]
            facts |= {f"loss {pack}": f"{losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}"} if losses else {}
        columns = ("metric", "last", "at step", "best", "at step")
        validations = [list(found.values()) for found in self.validations()]
        tables = [_table("Validation", columns, validations)] if validations else []
        if kept := self.kept():
            names = [n for n in dict.fromkeys(chain.from_iterable(kept.values())) if not n.startswith("errors_above/")]
            rows = [(name, *(of.get(figure, "") for figure in names)) for name, of in kept.items()]
            tables.append(_table("Kept weights", ("combination", *names), rows))
        settings = facts_table("Settings that differ from their defaults", changed)
        return [facts_table(f"Run {self.uri}", facts), *tables, settings]


@dataclass(frozen=True)
class RunList:
    """Runs of a folder, and a line for each other folder in it."""

    uri: str
    runs: list[RunView]
    skipped: list[str]

    @property
    def metrics(self) -> pd.DataFrame:
        """The last value of each metric: columns run, metric, step, value."""
        rows = [(run.name, metric, *points[-1]) for run in self.runs for metric, points in run.series.items()]
        return pd.DataFrame(rows, columns=METRIC_COLUMNS)

    def document(self) -> dict[str, Any]:
        runs = [run.summary() for run in self.runs]
        return {"version": 1, "folder": self.uri, "runs": runs, "skipped": self.skipped}

    def tables(self) -> list[RenderableType]:
        rows = [_cells(run.summary()) for run in self.runs]
        return [_table(f"Runs in {self.uri}", COLUMNS, rows), *self.skipped]


def list_runs(config: ListRunsConfig, progress: ProgressCallback | None = None) -> RunList:
    """Runs of a folder, by name; UserError if there is no folder."""
    filesystem, path = resolve(config.runs)
    try:
        found = filesystem.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise UserError(f"no folder {config.runs!r}: name the one that holds the runs") from error
    result = RunList(config.runs, [], [])
    for name in sorted(info.base_name for info in found if info.type == pafs.FileType.Directory):
        try:
            result.runs.append(RunView(join(config.runs, name)))
        except UserError as error:
            result.skipped.append(str(error))
    return result


def show_run(config: ShowRunConfig, progress: ProgressCallback | None = None) -> RunView:
    """A run by name, folder or URI; UserError if there is none."""
    return RunView(config.run if "/" in config.run else join(config.runs, config.run))


def sparkline(values: list[float]) -> str:
    """Values as at most `SPARKLINE_WIDTH` blocks, each the mean of its part."""
    width = min(SPARKLINE_WIDTH, len(values))
    parts = [values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), max(means) - min(means) or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


def _cells(summary: dict[str, Any]) -> list[str]:
    """A summary under `COLUMNS`; `val/ndcg 0.31-0.35` if several combinations have one."""
    shown = []
    for main in MAIN_METRICS:
        found = [value for name, value in summary["figures"].items() if f"{name}/".startswith(f"{main}/")]
        if found:
            shown.append(f"{main} {'-'.join(dict.fromkeys(f'{end:.4f}' for end in (min(found), max(found))))}")
    step = f"{summary['step']:,}" + (f" of {summary['num_steps']:,}" if summary["num_steps"] else "")
    last = (summary["last_metric"] or "-")[:16].replace("T", " ")
    cells = summary | {"step": step, "last metric": last, "metrics": "\n".join(shown)}
    return [str(cells[column]) for column in COLUMNS]


def _table(title: str, columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> Table:
    headings = (Column(column, overflow="fold") for column in columns)
    table = Table(*headings, title=title, box=SIMPLE_HEAD, pad_edge=False, padding=0)
    for row in rows:
        table.add_row(*(f"{cell:,.4f}" if isinstance(cell, float) else str(cell) for cell in row))
    return table

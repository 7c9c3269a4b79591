"""Output of a command: progress on stderr; tables, or one JSON object, on stdout."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

LINE_EVERY_S = 30.0  # time between two progress lines of a stage where stderr is no terminal


class ProgressCallback(Protocol):
    """Takes a stage's name, units done, units in all (0 = unknown), e.g. "loss 0.1234"."""

    def __call__(self, stage: str, done: int, total: int, note: str = "", /) -> None: ...


class JobResult(Protocol):
    """What every job returns."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """Tidy figures: one row an observation."""
        ...

    def document(self) -> dict[str, Any]:
        """A nested, versioned document that `--json` prints."""
        ...

    def tables(self) -> list[RenderableType]:
        """What a person reads at the end."""
        ...


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """A callback that draws a bar for each stage, or prints lines if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield _progress_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), redirect_stdout=False
    ) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int, note: str = "", /) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, note=note)
            progress.update(tasks[stage], completed=done, total=total, note=note)

        yield show


def _progress_lines() -> ProgressCallback:
    """Prints a line at the start and end of a stage, and every `LINE_EVERY_S` between."""
    first: dict[str, tuple[float, int]] = {}  # time, units done
    last: dict[str, tuple[float, int]] = {}  # time printed, units done

    def show(stage: str, done: int, total: int, note: str = "", /) -> None:
        now = time.monotonic()
        printed_s, before = last.get(stage, (-math.inf, sys.maxsize))
        if starts := done < before:  # or starts again
            first[stage] = (now, done)
        if not (starts or done >= total > before or now - printed_s >= LINE_EVERY_S):
            last[stage] = (printed_s, done)
            return
        last[stage] = (now, done)
        parts = [f"{done:,} of {total:,} ({done / total:.0%})" if total else f"{done:,}", note]
        if done > first[stage][1]:
            rate = (done - first[stage][1]) / max(now - first[stage][0], 1e-9)
            parts.insert(1, f"{rate:,.{2 if rate < 10 else 0}f} per s")
            parts += [f"{timedelta(seconds=round((total - done) / rate))} left"] if done < total else []
        print(f"{datetime.now():%H:%M:%S} {stage}: {', '.join(filter(None, parts))}", file=sys.stderr, flush=True)

    return show


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """A row for each fact: floats to five digits, integers with commas, all else as text."""
    table = Table(title=title, show_header=False)
    for name, value in facts.items():
        table.add_row(name, format(value, {float: ".5g", int: ","}.get(type(value), "")))
    return table


def print_result(document: dict[str, Any], tables: list[RenderableType], as_json: bool) -> None:
    """Print a job's result: tables, or one JSON object (NaN and infinity as null)."""
    if as_json:
        from mtrec_ray.files import finite

        sys.stdout.write(json.dumps(finite(document)) + "\n")  # nothing if a value is no JSON
        return
    console = Console(markup=False, emoji=False)  # with markup, rich drops a title `[REC]` and fails on `[/b]`
    for table in tables:
        console.print(table)

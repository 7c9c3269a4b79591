"""What a person sees: progress on stderr, one table at the end, or exactly one JSON object on stdout."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    import pandas as pd

ProgressCallback = Callable[[str, int, int], None]
"""(what is being done, how many are done, how many there are)."""


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


def stdout_console() -> Console:
    """Prints names as they are: rich's markup would drop a title called `[REC]` and fail on one called `[/b]`."""
    return Console(markup=False, emoji=False)


def stderr_console() -> Console:
    return Console(stderr=True)


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """A callback that draws one bar per kind of work on stderr while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console()) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield show


def print_result(document: dict[str, Any], tables: list[RenderableType], as_json: bool) -> None:
    """The end of every job: tables for a person, or one JSON object (NaN as null) for a machine."""
    if as_json:
        sys.stdout.write(json.dumps(_without_nan(document)) + "\n")  # whole, or nothing if something is no JSON
        return
    console = stdout_console()
    for table in tables:
        console.print(table)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

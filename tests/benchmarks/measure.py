"""What benchmarks of steps share: medians of calls that take turns, and a table with machine, commit and command."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import TypeVar

import torch
from rich.table import Table

Name = TypeVar("Name")


def seconds_of(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Of one call: processor time, so that time lent to neighbours does not count, or that of another clock."""
    start = clock()
    work()
    return clock() - start


def medians(
    calls: Mapping[Name, Callable[[], object]],
    repeats: int,
    seconds: Callable[[Callable[[], object]], float] = seconds_of,
    warm_ups: int = 1,
) -> dict[Name, float]:
    """Median seconds of each call; they take turns, so that other load slows all of them alike."""
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for repeat in range(warm_ups + repeats):
        for name, call in list(calls.items())[:: -1 if repeat % 2 else 1]:
            elapsed = seconds(call)
            if repeat >= warm_ups:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def result_table(machine: str, note: str, *columns: str) -> Table:
    """An empty table whose first two columns are names."""
    title = f"{machine}, {date.today().isoformat()}, torch {torch.__version__}, commit {commit()}"
    table = Table(title=title, caption=f"{' '.join(['python', *sys.argv])}; {note}")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    return table


def one_core() -> str:
    """Model name of the first core."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, one core"


def commit() -> str:
    """Short hash of the checked-out commit, 'none' before the first."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "none"

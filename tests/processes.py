"""Output: of a program in a Python process of its own, and of tables."""

import io
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console


def python(program: str, *arguments: str, **settings: Any) -> str:
    """What the program prints."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=240, **settings).stdout


def printed(tables: Iterable[Any]) -> str:
    """Tables as on a wide terminal."""
    console = Console(file=io.StringIO(), width=250, markup=False)
    for table in tables:
        console.print(table)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]

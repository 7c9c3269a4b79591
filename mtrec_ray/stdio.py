"""Standard streams that may be closed, full, or of an encoding without all letters."""

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from mtrec_ray.errors import UserError

STDIN, STDOUT, STDERR = range(3)

logger = logging.getLogger(__name__)


class _Output(io.FileIO):
    """Stdout or stderr. Once it fails, all that follows is discarded.

    A reader that has seen enough, as `head`, is no error; a full disk is one for stdout, which holds results.
    """

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            _open_nowhere(self.fileno())
            if self.fileno() == STDOUT and not isinstance(error, BrokenPipeError):
                raise UserError(f"cannot write to stdout: {error.strerror}") from error
            return len(data)


class _Log(io.TextIOBase):
    """Logs the lines that are printed to it."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logger.info("%s", line)
        return len(text)


def prepare_stdio() -> None:
    """Give this process the streams of this module.

    Closed ones are opened: the next file would take their number, and the output of libraries.
    """
    for number, name in ((STDIN, "stdin"), (STDOUT, "stdout"), (STDERR, "stderr")):
        if getattr(sys, f"__{name}__") is None:
            _open_nowhere(number)
    sys.stdin = sys.stdin or open(STDIN)  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        sys.stdout = _text_output(STDOUT, sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _text_output(STDERR, sys.stderr)


@contextmanager
def results_alone() -> Iterator[None]:
    """Keep stdout for results.

    What this process prints meanwhile is logged, as Ray's screenfuls on each lost worker; child processes print to
    stderr.
    """
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    try:
        with redirect_stdout(_Log()):
            yield
    finally:
        os.dup2(kept, STDOUT)
        os.close(kept)


def _text_output(number: int, before: Any) -> io.TextIOWrapper:
    file = io.BufferedWriter(_Output(number, "w", closefd=False))
    encoding = getattr(before, "encoding", None)  # of PYTHONIOENCODING or the locale
    lines = number == STDERR or file.isatty()
    return io.TextIOWrapper(file, encoding, errors="backslashreplace", line_buffering=lines)


def _open_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)

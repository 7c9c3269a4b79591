"""Runs the code blocks of a document in a folder, in their order, as a reader would.

An HTML comment on the line before a block says what is special about it:

    <!-- not run: REASON -->   skipped, as it cannot run here
    <!-- long -->              left out of the short test
    <!-- file: NAME -->        the block is the content of this file
    <!-- server: URL -->       as long; runs on beside the blocks after it, which start when the URL answers

`bash` and `python` blocks run. A `text` block is what the `bash` or `python` block before it prints: each of its lines
must occur in the output, whatever the numbers and the spaces; `...` is any text within a line, or lines left out.
Port 8000 is replaced by a free one.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^(?:<!-- (?P<mark>.+?) -->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
MARKS = ("not run", "long", "file", "server")
RUN = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
START_S = 240  # until a server answers
RUN_S = 1500  # for one block


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    line: int  # of its first line of code
    language: str
    code: str
    mark: str = ""  # one of MARKS, or nothing
    value: str = ""  # what follows it

    @property
    def runs(self) -> bool:
        return self.language in RUN and self.mark in ("", "long", "server")


class DocumentError(AssertionError):
    """A block failed or printed something else than the document says."""


def blocks(text: str) -> list[Block]:
    """All fenced blocks; ValueError for a fence or mark that is not understood, or a mark without what it needs."""
    found, fences = [], len(re.findall(r"^ *```", text, re.MULTILINE))
    if fences != (understood := 2 * len(FENCE.findall(text))):
        raise ValueError(f"{fences} fences, of which {understood} are ```language and ``` at the start of a line")
    for match in FENCE.finditer(text):
        mark, _, value = (match["mark"] or "").partition(": ")
        line = text.count("\n", 0, match.start("code")) + 1
        if mark and (mark not in MARKS or bool(value) == (mark == "long")):
            raise ValueError(f"line {line}: {match['mark']!r} is none of {', '.join(MARKS)}, or lacks its text")
        found.append(Block(line, match["language"], match["code"], mark, value))
    return found


def run_document(path: Path, folder: Path, with_long: bool) -> int:
    """Run the blocks of `path` in `folder`; the number of those that ran. DocumentError where one fails."""
    port, printed, count = str(_free_port()), None, 0
    with _servers() as start:
        for block in blocks(path.read_text(encoding="utf-8")):
            code, where = block.code.replace("8000", port), f"{path.name}, line {block.line}"
            if block.mark == "file":
                (folder / block.value).write_text(block.code, encoding="utf-8")
            elif block.runs and (with_long or not block.mark):
                count += 1
                if block.mark == "server":
                    printed = start([*RUN[block.language], code], folder, block.value.replace("8000", port), where)
                else:
                    printed = _run([*RUN[block.language], code], folder, where)
            elif block.language in RUN:
                printed = None  # did not run: nothing to compare
            elif block.language == "text" and not block.mark and printed is not None:
                _check_output(code, printed, where)
    return count


def _check_output(expected: str, printed: str, where: str) -> None:
    if missing := missing_lines(expected, printed):
        raise DocumentError(f"{where}: {missing[0]!r} is not printed; this is:\n{printed[-4000:]}")


def missing_lines(expected: str, printed: str) -> list[str]:
    """Lines of `expected` that `printed` does not contain in their order."""
    position, lines, missing = 0, [_form(line) for line in printed.splitlines()], []
    for line in expected.splitlines():
        pattern = ".*".join(re.escape(_form(piece)) for piece in line.split("..."))
        if not _form(line) or line.strip() == "...":
            continue
        place = next((n for n in range(position, len(lines)) if re.search(pattern, lines[n])), None)
        if place is None:
            missing.append(line)
        else:
            position = place + 1
    return missing


def _form(line: str) -> str:
    """A line without its spaces, and each number, with its sign, as `0`."""
    return re.sub(r"[+-]?\d[\d.,:]*", "0", re.sub(r"[\s─━│┃┡╇┩└┴┘┏┳┓]+", "", line))


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "RAY_AUTH_MODE": "disabled"}


def _run(command: list[str], folder: Path, where: str) -> str:
    """What a block prints on both streams."""
    done = subprocess.run(
        command, cwd=folder, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=RUN_S, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise DocumentError(f"{where}: exit code {done.returncode} of\n{command[-1]}\n{done.stdout[-4000:]}")
    return done.stdout


@contextmanager
def _servers() -> Iterator:
    """A function that starts a server, waits until it answers, and returns what it has printed; all are stopped."""
    running: list[subprocess.Popen] = []

    def start(command: list[str], folder: Path, url: str, where: str) -> str:
        log = folder / f"server-{len(running)}.log"
        with log.open("w") as out:
            server = subprocess.Popen(
                command, cwd=folder, env=_environment(), stdout=out, stderr=out, start_new_session=True
            )
        running.append(server)
        end = time.monotonic() + START_S
        while server.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(url, timeout=10):
                    return log.read_text()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise DocumentError(f"{where}: {url} does not answer:\n{log.read_text()[-4000:]}")

    try:
        yield start
    finally:
        for server in running:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGINT)
                try:
                    server.wait(60)
                except subprocess.TimeoutExpired:
                    os.killpg(server.pid, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

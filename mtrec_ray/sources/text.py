"""Delimited text files without quoting, with errors that name the line and the fix."""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from mtrec_ray.errors import UserError

NUMBER = r"^-?\d+(\.\d*)?([eE][-+]?\d+)?$"
EMPTY = " is empty: fetch it again"
SEPARATOR = "\x1f"  # Of fields, while they are read: pyarrow takes one character


@dataclass(frozen=True)
class TextFile:
    """Complete lines of a text file. Picklable."""

    path: Path
    header: tuple[str, ...]  # Names of all columns, in order
    columns: dict[str, str]  # Own -> the file's names of the columns to read
    delimiter: str = "\t"
    encoding: str = "utf-8"
    start: int = 0
    stop: int | None = None  # The lines are the bytes [start, stop); None = to the end

    @staticmethod
    def open(
        path: Path, columns: Sequence[str], delimiter: str = "\t", encoding: str = "utf-8", has_header: bool = True
    ) -> "TextFile":
        """A file's lines; without a header, `columns` are all that it has, in order.

        Of RecBole's typed names (`user_id:token`), the own name is the first part.
        """
        header, start = read_header(path, delimiter) if has_header else (tuple(columns), 0)
        missing = [name for name in columns if name not in header]
        if missing:
            found = f"there are {', '.join(header)}: is it the right file?"
            raise UserError(f"{path}, line 1: column {missing[0]!r} is missing, {found}")
        return TextFile(path, header, {name.partition(":")[0]: name for name in columns}, delimiter, encoding, start)

    def pieces(self, num_bytes: int) -> list["TextFile"]:
        """The same lines in pieces of about so many bytes; UserError if there are none."""
        pieces, start, size = [], self.start, self.path.stat().st_size
        with self.path.open("rb") as file:
            while start < size:
                file.seek(min(start + num_bytes, size) - 1)
                file.readline()
                pieces.append(replace(self, start=start, stop=file.tell()))
                start = file.tell()
        return pieces or [self]

    def read(self, names: Sequence[str] | None = None) -> pa.Table:
        """The columns `names` (None = all), as text without nulls."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(-1 if self.stop is None else self.stop - self.start)
        if not data.strip():
            empty = ": there is nothing after the header: is the file truncated?" if self.start else EMPTY
            raise UserError(f"{self.path}{empty}")
        try:
            text = data.decode(self.encoding)
        except UnicodeDecodeError as error:
            raise _not_text(self.line(data[: error.start].count(b"\n")), self.encoding) from error
        data = text.replace(self.delimiter, SEPARATOR).encode()
        columns = {name: raw for name, raw in self.columns.items() if names is None or name in names}
        raw = list(dict.fromkeys(columns.values()))
        invalid: list[pacsv.InvalidRow] = []
        reading = pacsv.ReadOptions(column_names=list(self.header), use_threads=False, block_size=len(data) + 1)
        parsing = pacsv.ParseOptions(delimiter=SEPARATOR, quote_char=False, ignore_empty_lines=False)
        parsing.invalid_row_handler = lambda row: invalid.append(row) or "skip"
        converting = pacsv.ConvertOptions(include_columns=raw, column_types=dict.fromkeys(raw, pa.string()))
        rows = pacsv.read_csv(pa.BufferReader(data), reading, parsing, converting)
        if invalid:
            row, line = invalid[0], invalid[0].text.replace(SEPARATOR, self.delimiter)
            is_last = self.stop in (None, self.path.stat().st_size) and row.number == len(data.splitlines())
            fix = "the file seems truncated: fetch it again" if is_last else "fix or remove the line"
            found = f"{row.actual_columns} fields instead of {row.expected_columns} in {line[:80]!r}"
            raise UserError(f"{self.line(row.number - 1)}: {found}: {fix}")
        return pa.table({name: rows[raw] for name, raw in columns.items()})

    def numbers(self, rows: pa.Table, name: str, meaning: str = "a whole number", whole: bool = True) -> np.ndarray:
        """(rows,) float64 of a column that was read; UserError with the line of another text."""
        texts = pc.utf8_trim_whitespace(rows[name])
        values = pc.if_else(pc.match_substring_regex(texts, NUMBER), texts, None).cast(pa.float64()).to_numpy()
        valid = np.isfinite(values)
        self.check(valid & (np.floor(values) == values) if whole else valid, rows, name, meaning)
        return values

    def check(self, valid: np.ndarray, rows: pa.Table, name: str, meaning: str) -> None:
        """UserError with the first row that is not `valid`, (rows,) bool."""
        if not valid.all():
            row = int(np.argmin(valid))
            found = f"{self.columns[name]} is {rows[name][row].as_py()!r}"
            raise UserError(f"{self.line(row)}: {found}, should be {meaning}: fix the line")

    def line(self, row: int) -> str:
        """File and line number of a row, for an error."""
        before = 0
        with self.path.open("rb") as file:
            while file.tell() < self.start:
                file.readline()
                before += 1
        return f"{self.path}, line {before + row + 1}"


def read_header(path: Path, delimiter: str = "\t") -> tuple[tuple[str, ...], int]:
    """Names of a file's columns, and where its first line ends."""
    with path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise UserError(f"{path}{EMPTY}")
    try:
        return tuple(line.decode("utf-8-sig").rstrip("\r\n").split(delimiter)), len(line)
    except UnicodeDecodeError as error:
        raise _not_text(f"{path}, line 1", "utf-8") from error


def _not_text(where: str, encoding: str) -> UserError:
    return UserError(f"{where}: not {encoding} text: is it the right file, unpacked?")

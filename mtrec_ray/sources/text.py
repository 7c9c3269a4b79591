"""Delimited text files without quoting, with errors that name the line and the fix."""

from dataclasses import dataclass
from pathlib import Path

from mtrec_ray.errors import UserError


@dataclass(frozen=True)
class TextTable:
    """One delimited file of a known form."""

    name: str
    """Of the file."""
    delimiter: str
    columns: str
    """Separated by spaces; with a header, those to read, in any order of the file; without, all columns in order."""
    header: bool = False
    encoding: str = "utf-8"

    def read(self, folder: Path) -> dict[str, list[str]]:
        """Columns as strings by name, without RecBole's type (`user_id:token`).

        Raises:
            UserError: the file is missing, empty or not in `encoding`, a column is missing, or a line has too few or
                too many fields.
        """
        path = folder / self.name
        lines = self._lines(path)
        columns = self.columns.split()
        names = lines[0].split(self.delimiter) if self.header else columns
        missing = [name for name in columns if name not in names]
        if missing:
            raise UserError(
                f"{path}, line 1: column {missing[0]!r} is missing, the header is {lines[0]!r}: is it the right file?"
            )
        rows = [line.split(self.delimiter) for line in lines[self.header :]]
        for number, row in enumerate(rows, start=1 + self.header):
            if len(row) != len(names):
                truncated = number == len(lines)
                raise wrong_field_count(f"{path}, line {number}", lines[number - 1], len(row), len(names), truncated)
        if not rows:
            raise UserError(f"{path}: there is nothing after the header: is the file truncated?")
        by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
        return {name.partition(":")[0]: list(by_name[name]) for name in columns}

    def read_ints(self, folder: Path, columns: dict[str, list[str]], name: str) -> list[int]:
        """Whole numbers (`3` or `3.0`) of a column that was read; UserError with the line."""
        numbers = []
        for line, value in enumerate(columns[name], start=1 + self.header):
            whole, _, fraction = value.partition(".")
            if not whole.removeprefix("-").isdecimal() or fraction.strip("0"):
                where = f"{folder / self.name}, line {line}"
                raise UserError(f"{where}: {name} is {value!r}, should be a whole number: fix the line")
            numbers.append(int(whole))
        return numbers

    def _lines(self, path: Path) -> list[str]:
        try:
            text = path.read_bytes().decode(self.encoding)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: check --raw") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise UserError(
                f"{path}, line {line}: not {self.encoding} text: is it the right file, unpacked?"
            ) from error
        if not text.strip():
            raise UserError(f"{path} is empty: fetch it again")
        return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def wrong_field_count(where: str, line: str, found: int, expected: int, truncated: bool) -> UserError:
    """The error of a line with too few or too many fields."""
    fix = "the file seems truncated: fetch it again" if truncated else "fix or remove the line"
    return UserError(f"{where}: {found} fields instead of {expected} in {line[:80]!r}: {fix}")

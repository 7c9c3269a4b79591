"""Delimited text files without quoting, with errors that name the line and the fix."""

from dataclasses import dataclass
from pathlib import Path

from mtrec_ray.errors import UserError


@dataclass(frozen=True)
class TextTable:
    """One delimited file of a known form."""

    name: str  # Of the file
    delimiter: str
    columns: str
    """Separated by spaces; with a header, those to read, in any order of the file; without, all columns in order."""
    header: bool = False
    encoding: str = "utf-8"

    def read(self, folder: Path) -> dict[str, list[str]]:
        """Columns as strings by name, without RecBole's type (`user_id:token`)."""
        path = folder / self.name
        lines = self._lines(path)
        columns = self.columns.split()
        names = lines[0].split(self.delimiter) if self.header else columns
        missing = [name for name in columns if name not in names]
        if missing:
            found = f"the header is {lines[0]!r}: is it the right file?"
            raise UserError(f"{path}, line 1: column {missing[0]!r} is missing, {found}")
        rows = [line.split(self.delimiter) for line in lines[self.header :]]
        for number, row in enumerate(rows, start=1 + self.header):
            if len(row) != len(names):
                is_last = number == len(lines)
                raise wrong_field_count(f"{path}, line {number}", lines[number - 1], len(row), len(names), is_last)
        if not rows:
            raise UserError(f"{path}: there is nothing after the header: is the file truncated?")
        by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
        return {name.partition(":")[0]: list(by_name[name]) for name in columns}

    def read_ints(self, folder: Path, columns: dict[str, list[str]], name: str) -> list[int]:
        """Whole numbers (`3`, `3.0` or `3e0`) of a column that was read; UserError with the line."""
        numbers = []
        for line, text in enumerate(columns[name], start=1 + self.header):
            try:
                number = int(text) if text.removeprefix("-").isdecimal() else float(text)
                if number % 1:
                    raise ValueError
                numbers.append(int(number))
            except (ValueError, OverflowError) as error:
                where = f"{folder / self.name}, line {line}"
                raise UserError(f"{where}: {name} is {text!r}, should be a whole number: fix the line") from error
        return numbers

    def _lines(self, path: Path) -> list[str]:
        try:
            text = path.read_bytes().decode(self.encoding)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: check --raw") from error
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            what = f"not {self.encoding} text: is it the right file, unpacked?"
            raise UserError(f"{path}, line {line}: {what}") from error
        if not text.strip():
            raise UserError(f"{path} is empty: fetch it again")
        return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def wrong_field_count(where: str, line: str, found: int, expected: int, is_last: bool) -> UserError:
    """The error of a line with too few or too many fields."""
    fix = "the file seems truncated: fetch it again" if is_last else "fix or remove the line"
    return UserError(f"{where}: {found} fields instead of {expected} in {line[:80]!r}: {fix}")

"""Delimited text files with errors that name the file, the line and the fix."""

from pathlib import Path

from mtrec_ray.errors import UserError


def read_columns(
    path: Path, delimiter: str, columns: list[str], header: bool, encoding: str = "utf-8"
) -> list[list[str]]:
    """Columns of a delimited file without quoting, in the given order, as strings.

    Args:
        columns: with a header, the wanted columns, found by name wherever they stand; without, all columns in order.

    Raises:
        UserError: the file is missing, empty or not in `encoding`, a column is missing, or a line has too few or too
            many fields.
    """
    lines = read_lines(path, encoding)
    names = lines[0].split(delimiter) if header else columns
    missing = [name for name in columns if name not in names]
    if missing:
        raise UserError(
            f"{path}, line 1: column {missing[0]!r} is missing, the header is {lines[0]!r}: is it the right file?"
        )
    rows = [line.split(delimiter) for line in lines[header:]]
    for number, row in enumerate(rows, start=1 + header):
        if len(row) != len(names):
            raise UserError(_wrong_fields(path, number, len(lines), len(row), len(names), lines[number - 1]))
    if not rows:
        raise UserError(f"{path}: there is nothing after the header: is the file truncated?")
    by_name = dict(zip(names, zip(*rows, strict=True), strict=True))
    return [list(by_name[name]) for name in columns]


def read_lines(path: Path, encoding: str = "utf-8") -> list[str]:
    """Lines of a text file, without their ends.

    Raises:
        UserError: the file is missing, empty, or not in `encoding`.
    """
    try:
        text = path.read_bytes().decode(encoding)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check --raw") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not {encoding} text: is it the right file, unpacked?") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if lines == [""]:
        raise UserError(f"{path} is empty: fetch it again")
    return lines


def to_ints(values: list[str], path: Path, column: str, header: bool) -> list[int]:
    """Whole numbers of a column; `881250949` and `881250949.0` alike.

    Raises:
        UserError: a value is no whole number; names the line.
    """
    try:
        return [int(value) for value in values]
    except ValueError:
        pass
    result = []
    for number, value in enumerate(values, start=1 + header):
        try:
            result.append(int(value) if value.lstrip("-").isdigit() else _whole(float(value)))
        except (ValueError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number}: {column} is {value!r}, should be a whole number: fix the line"
            ) from error
    return result


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError(value)
    return int(value)


def _wrong_fields(path: Path, number: int, num_lines: int, found: int, wanted: int, line: str) -> str:
    cause = "the file seems truncated: fetch it again" if number == num_lines else "fix or remove the line"
    return f"{path}, line {number}: {found} fields instead of {wanted} in {line[:80]!r}: {cause}"

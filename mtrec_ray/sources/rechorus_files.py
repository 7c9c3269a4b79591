"""Finds ReChorus files and reads them in pieces, with errors that name the line.

ReChorus (Wang et al., THUwangcy/ReChorus) writes one tab-separated CSV with a header per split, without quoting. Beside
them are files of another kind (`item_meta.csv`) and further splits of the same rows (`trainc.csv`).
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import pick_columns
from mtrec_ray.sources.text import wrong_field_count

USUAL_NAMES = ("train.csv", "dev.csv", "val.csv", "valid.csv", "test.csv")
"""Splits in the order of time: of rows with one timestamp, those of the later file come later."""
BYTES_PER_PIECE = 32 << 20


@dataclass(frozen=True)
class Piece:
    """Some complete lines of one file. Picklable."""

    path: Path
    header: tuple[str, ...]
    columns: dict[str, str]  # Canonical -> raw names of the columns that are read
    start: int
    stop: int  # The lines are the bytes [start, stop)

    def line(self, row: int) -> str:
        """File and line number of a row, for an error."""
        before = 0
        with self.path.open("rb") as file:
            while file.tell() < self.start:
                file.readline()
                before += 1
        return f"{self.path}, line {before + row + 1}"

    def read(self, names: list[str] | None = None) -> pa.Table:
        """The columns `names` (None = all) under canonical names, as text without nulls."""
        columns = {name: raw for name, raw in self.columns.items() if names is None or name in names}
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _not_text(self.line(data[: error.start].count(b"\n"))) from error
        invalid: list[pacsv.InvalidRow] = []
        raw = list(dict.fromkeys(columns.values()))
        reading = pacsv.ReadOptions(column_names=list(self.header), use_threads=False, block_size=len(data) + 1)
        parsing = pacsv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False)
        parsing.invalid_row_handler = lambda row: invalid.append(row) or "skip"
        converting = pacsv.ConvertOptions(include_columns=raw, column_types=dict.fromkeys(raw, pa.string()))
        rows = pacsv.read_csv(pa.BufferReader(data), reading, parsing, converting)
        if invalid:
            row = invalid[0]
            is_last = self.stop == self.path.stat().st_size and row.number == len(data.splitlines())
            where = self.line(row.number - 1)
            raise wrong_field_count(where, row.text, row.actual_columns, row.expected_columns, is_last)
        return pa.table({name: rows[raw] for name, raw in columns.items()})


def find_files(folder: Path, names: list[str] | None, required: list[str]) -> tuple[list[Path], list[Path]]:
    """(files to read in the order of time, CSV files left out).

    They are `names`, in order; None = the usual ones where there is a train.csv, else every *.csv that has the
    `required` columns.
    """
    found = sorted(folder.glob("*.csv"))
    if names is not None:
        chosen = [folder / name for name in names]
        missing = [path for path in chosen if not path.is_file()]
        if missing:
            listed = ", ".join(path.name for path in found) or "no CSV files"
            raise UserError(f"{missing[0]} is missing: `files` names it; there are {listed}")
    elif not found:
        raise UserError(f"no *.csv in {str(folder)!r}: it should hold train.csv, dev.csv and test.csv, unpacked")
    elif folder / "train.csv" in found:
        chosen = [folder / name for name in USUAL_NAMES if folder / name in found]
    else:
        fitting = [path for path in found if set(required) <= set(_read_header(path))]
        chosen = sorted(fitting or found, key=_split_order)
    return chosen, [path for path in found if path not in chosen]


def cut_pieces(path: Path, mapping: dict[str, str], required: list[str]) -> list[Piece]:
    """Pieces of about `BYTES_PER_PIECE`; `mapping` is canonical -> raw names of columns."""
    header = _read_header(path)
    if len(header) == 1:
        raise UserError(f"{path}, line 1: the only column is {header[0]!r}: the file should be tab separated")
    columns = pick_columns(f"{path}, line 1", header, "columns", mapping, required, ["behavior"])
    pieces = []
    with path.open("rb") as file:
        file.readline()
        start, size = file.tell(), path.stat().st_size
        while start < size:
            file.seek(min(start + BYTES_PER_PIECE, size) - 1)
            file.readline()
            pieces.append(Piece(path, header, columns, start, file.tell()))
            start = file.tell()
    if not pieces:
        raise UserError(f"{path}: there is nothing after the header: is the file truncated?")
    return pieces


def _read_header(path: Path) -> tuple[str, ...]:
    with path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise UserError(f"{path} is empty: fetch it again")
    try:
        return tuple(line.decode("utf-8-sig").rstrip("\r\n").split("\t"))
    except UnicodeDecodeError as error:
        raise _not_text(f"{path}, line 1") from error


def _not_text(where: str) -> UserError:
    return UserError(f"{where}: not utf-8 text: is it the right file, unpacked?")


def _split_order(path: Path) -> tuple[int, str]:
    """Training rows, then validation, then test, by the names of the files."""
    is_test, is_validation = "test" in path.stem, any(word in path.stem for word in ("dev", "val"))
    return (2 if is_test else 1 if is_validation else 0), path.name

"""Finding ReChorus files and reading them in bounded pieces, with errors that name file and line.

ReChorus (Wang et al., THUwangcy/ReChorus) writes one tab-separated CSV with a header per split, without quoting:
`train.csv`, `dev.csv`, `test.csv`. Beside them lie files of another kind (`item_meta.csv`), and in paper B's folders
further splits of the same rows (`trainc.csv`, `devc.csv`, `testc.csv` for its attackers).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import pyarrow as pa
import pyarrow.csv as pacsv

from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import find_columns

USUAL_NAMES = ("train.csv", "dev.csv", "val.csv", "valid.csv", "test.csv")
"""Splits in the order of time: within one moment the later file's rows come later."""


@dataclass(frozen=True)
class Piece:
    """Whole lines of one file, by their bytes. Picklable."""

    path: Path
    header: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    """(canonical name, the file's) of the columns that are read."""
    start: int
    stop: int

    def line(self, row: int) -> str:
        """File and line number of a row, for an error."""
        with self.path.open("rb") as file:
            before = sum(block.count(b"\n") for block in _blocks(file, self.start))
        return f"{self.path}, line {before + row + 1}"

    def read(self, names: list[str] | None = None) -> pa.Table:
        """The columns `names` (None = all) under their canonical names, as text; an empty field is an empty text.

        Raises:
            UserError: a line has too few or too many fields, or is not UTF-8.
        """
        wanted = {name: yours for name, yours in self.columns if names is None or name in names}
        used = list(dict.fromkeys(wanted.values()))
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        try:
            rows = pacsv.read_csv(
                pa.BufferReader(data),
                read_options=pacsv.ReadOptions(
                    column_names=list(self.header), use_threads=False, block_size=len(data) + 1
                ),
                parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False, ignore_empty_lines=False),
                convert_options=pacsv.ConvertOptions(
                    include_columns=used, column_types=dict.fromkeys(used, pa.string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid as error:
            self._explain(data, error)
        return pa.table({name: rows[yours] for name, yours in wanted.items()})

    def _explain(self, data: bytes, error: pa.ArrowInvalid) -> NoReturn:
        """Raise for the first line that cannot be read."""
        lines = data.removesuffix(b"\n").split(b"\n")
        is_last_piece = self.stop == self.path.stat().st_size
        for row, line in enumerate(lines):
            fields, shown = line.count(b"\t") + 1, line[:80].decode(errors="replace")
            if fields != len(self.header):
                truncated = is_last_piece and row == len(lines) - 1
                cause = "the file seems truncated: fetch it again" if truncated else "fix or remove the line"
                raise UserError(
                    f"{self.line(row)}: {fields} fields instead of {len(self.header)} in {shown!r}: {cause}"
                ) from error
            if line.decode(errors="replace").encode() != line:
                raise UserError(f"{self.line(row)}: not utf-8 text: is it the right file, unpacked?") from error
        raise UserError(f"{self.line(0)} and after: {error}: fix the lines") from error


def find_files(folder: Path, named: list[str] | None, needed: list[str]) -> tuple[list[Path], list[Path]]:
    """(files to read in the order of time, CSV files left out).

    Args:
        named: their names, in order; None = the usual ones where there is a train.csv, else every *.csv that has the
            `needed` columns.

    Raises:
        UserError: there is none, or a named one is missing.
    """
    there = sorted(folder.glob("*.csv"))
    if named is not None:
        chosen = [folder / name for name in named]
        missing = [path for path in chosen if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]} is missing: `files` names it; there are {_names(there) or 'no CSV files'}")
    elif not there:
        raise UserError(
            f"no *.csv in {str(folder)!r}: it should hold train.csv, dev.csv and test.csv, or one, unpacked"
        )
    elif folder / "train.csv" in there:
        chosen = [folder / name for name in USUAL_NAMES if folder / name in there]
    else:
        fitting = [path for path in there if set(needed) <= set(read_header(path))]
        chosen = sorted(fitting or there, key=_split_order)
    return chosen, [path for path in there if path not in chosen]


def read_header(path: Path) -> tuple[str, ...]:
    """Column names of a file.

    Raises:
        UserError: the file is empty, or its first line is not text.
    """
    with path.open("rb") as file:
        line = file.readline()
    if not line.strip():
        raise UserError(f"{path} is empty: fetch it again")
    try:
        return tuple(line.decode("utf-8-sig").rstrip("\r\n").split("\t"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line 1: not utf-8 text: is it the right file, unpacked?") from error


def cut(path: Path, needed: dict[str, str], optional: dict[str, str], bytes_per_part: int) -> list[Piece]:
    """A file's rows in pieces of about `bytes_per_part`; columns are canonical name -> the file's.

    Raises:
        UserError: a needed column is missing, or no row follows the header.
    """
    header = read_header(path)
    fix = "the file should be tab separated; `columns` maps other names, `attributes` and `behaviors` leave columns out"
    columns = tuple(find_columns(f"{path}, line 1", header, needed, optional, fix).items())
    pieces = []
    with path.open("rb") as file:
        file.readline()
        start, size = file.tell(), path.stat().st_size
        while start < size:
            file.seek(min(start + bytes_per_part, size) - 1)
            file.readline()
            pieces.append(Piece(path, header, columns, start, file.tell()))
            start = file.tell()
    if not pieces:
        raise UserError(f"{path}: there is nothing after the header: is the file truncated?")
    return pieces


def _split_order(path: Path) -> tuple[int, str]:
    """Training rows, then validation, then test, by the files' names."""
    is_test, is_validation = "test" in path.stem, any(word in path.stem for word in ("dev", "val"))
    return (2 if is_test else 1 if is_validation else 0), path.name


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


def _blocks(file: BinaryIO, size: int, block_size: int = 1 << 20):
    """The first `size` bytes, block by block."""
    while size > 0 and (block := file.read(min(block_size, size))):
        size -= len(block)
        yield block

"""Delimited text files, plain or gzip, with errors that name the line and the fix."""

# pyright: reportAttributeAccessIssue=false

import codecs
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from pydantic import AfterValidator

from mtrec_ray.config import Encoding
from mtrec_ray.errors import UserError
from mtrec_ray.sources.values import EXPONENT, id_text

NUMBER = r"^-?\d+(\.\d*)?([eE][-+]?\d+)?$"
QUOTED = r'^\s*"((?:[^"]|"")*)"\s*$'
EMPTY = " is empty: fetch it again"
SEPARATOR = "\x1f"  # Of fields, while they are read: pyarrow takes one character
BYTES_PER_PIECE = 32 << 20
GZIP_MAGIC, ZIP_MAGIC, UTF16_MARKS = b"\x1f\x8b", b"PK\x03\x04", (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF8, LATIN1 = "utf-8", "latin-1"
SAMPLE = "\n\t:|+0"


def _check_extends_ascii(name: str | None) -> str | None:
    if name is not None and SAMPLE.encode(name).removeprefix(codecs.BOM_UTF8) != SAMPLE.encode():
        raise ValueError(f"{name!r} does not extend ASCII and cannot be read: convert the files to UTF-8")
    return name


AsciiEncoding = Annotated[Encoding | None, AfterValidator(_check_extends_ascii)]
"""Of a file that is cut at its line ends; null = found by the source."""


@dataclass(frozen=True)
class TextFile:
    """Complete lines of a text file. Picklable."""

    path: Path
    header: tuple[str, ...]  # Names of all columns, in order
    columns: dict[str, str]  # Own -> the file's names of the columns to read
    delimiter: str = "\t"
    encoding: str = UTF8
    quoted: bool = False  # Fields may be in double quotes (RFC 4180), without a delimiter or line end inside
    start: int = 0
    stop: int | None = None  # The lines are the bytes [start, stop) of the unpacked file; None = to the end

    @staticmethod
    def open(
        path: Path,
        columns: Sequence[str],
        delimiter: str = "\t",
        encoding: str = UTF8,
        has_header: bool = True,
        quoted: bool = False,
    ) -> "TextFile":
        """A file's lines; without a header, `columns` are all that it has, in order.

        Of RecBole's typed names (`user_id:token`), the own name is the first part.
        """
        if has_header:
            header, start = read_header(path, delimiter, encoding)
        else:
            header, start = tuple(columns), _length_of_mark(path)
        missing = [name for name in columns if name not in header]
        if missing:
            found = f"there are {', '.join(header)}: is it the right file?"
            raise UserError(f"{path}, line 1: column {missing[0]!r} is missing, {found}")
        own = {name.partition(":")[0]: name for name in columns}
        return TextFile(path, header, own, delimiter, encoding, quoted, start)

    def pieces(self, num_bytes: int) -> list["TextFile"]:
        """The same lines in pieces of about so many bytes, the last one open to the end."""
        pieces, start = [], self.start
        with open_bytes(self.path) as file:
            while True:
                file.seek(start + num_bytes - 1)
                file.readline()
                stop = file.tell()
                if not file.read(1):
                    return [*pieces, replace(self, start=start)]
                pieces.append(replace(self, start=start, stop=stop))
                start = stop

    def read(self, names: Sequence[str] | None = None, ids: Sequence[str] = ()) -> pa.Table:
        """The columns `names` (None = all), as text without nulls.

        Of the columns `ids`, `7` and `7.0` become one id and missing ones null.
        """
        with open_bytes(self.path) as file:
            file.seek(self.start)
            data = file.read(-1 if self.stop is None else self.stop - self.start)
        if not data.strip():
            empty = ": there is nothing after the header: is the file truncated?" if self.start else EMPTY
            raise UserError(f"{self.path}{empty}")
        if b"\0" in data:
            where = self.line(data[: data.index(b"\0")].count(b"\n"))
            raise UserError(f"{where}: holds zero bytes: is it UTF-16, or no text? Save it as UTF-8")
        data = self._separated(data)
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
            is_last = self.stop is None and row.number == len(data.splitlines())
            fix = "the file seems truncated: fetch it again" if is_last else "fix or remove the line"
            found = f"{row.actual_columns} fields instead of {row.expected_columns} in {line[:80]!r}"
            raise UserError(f"{self.line(row.number - 1)}: {found}: {fix}")
        rows = pa.table({name: rows[raw] for name, raw in columns.items()})
        rows = self._unquote(rows) if self.quoted else rows
        return pa.table({name: self._ids(rows, name) if name in ids else rows[name] for name in columns})

    def numbers(self, rows: pa.Table, name: str, meaning: str = "a whole number", whole: bool = True) -> np.ndarray:
        """(rows,) float64 of a column that was read; UserError with the line of another text."""
        try:
            values = rows[name].cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:  # slower: which of them are numbers?
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
        before, left = 0, self.start
        with open_bytes(self.path) as file:
            while block := file.read(min(left, BYTES_PER_PIECE)):
                before, left = before + block.count(b"\n"), left - len(block)
        return f"{self.path}, line {before + row + 1}"

    def _ids(self, rows: pa.Table, name: str) -> pa.Array:
        """UserError with the line of a number such as 1.23e+10, which has lost its last digits."""
        found = rows[name].combine_chunks().dictionary_encode()  # the expression reads each id once
        exact = pc.invert(pc.match_substring_regex(pc.utf8_trim_whitespace(found.dictionary), EXPONENT))
        meaning = "an id, not a number with an exponent: write it as an integer"
        self.check(exact.take(found.indices).to_numpy(zero_copy_only=False), rows, name, meaning)
        return id_text(found)

    def _separated(self, data: bytes) -> bytes:
        """As UTF-8 text with SEPARATOR between the fields."""
        try:
            return data.decode(self.encoding).replace(self.delimiter, SEPARATOR).encode()
        except UnicodeDecodeError as error:
            raise _not_text(self.line(data[: error.start].count(b"\n")), self.encoding) from error

    def _unquote(self, rows: pa.Table) -> pa.Table:
        for index, name in enumerate(rows.column_names):
            texts = rows[name]
            starts = pc.match_substring_regex(texts, r'^\s*"')
            if not pc.any(starts).as_py():
                continue
            closed = pc.match_substring_regex(texts, QUOTED)
            self.check(pc.or_(pc.invert(starts), closed).to_numpy(), rows, name, "in quotes at both ends")
            inner = pc.replace_substring(pc.replace_substring_regex(texts, QUOTED, r"\1"), '""', '"')
            rows = rows.set_column(index, name, pc.if_else(closed, inner, texts))
        return rows


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked if it is a gzip file; UserError where that is damaged."""
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == ZIP_MAGIC:
        raise UserError(f"{path}: is a zip archive: unpack it")
    if magic.startswith(UTF16_MARKS):
        raise UserError(f"{path}, line 1: is UTF-16 text: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    is_gzip = magic.startswith(GZIP_MAGIC)
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            yield cast(BinaryIO, file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: truncated or damaged gzip file ({error}): fetch it again") from error


def find_file(folder: Path, name: str) -> Path | None:
    """The file `name`, or `name.gz` in its place; None if there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def detect_encoding(path: Path) -> str:
    """`utf-8` if the whole file is valid UTF-8, else `latin-1`, which any bytes are."""
    decoder = codecs.getincrementaldecoder(UTF8)()
    with open_bytes(path) as file:
        try:
            while block := file.read(BYTES_PER_PIECE):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return LATIN1
    return UTF8


def read_header(path: Path, delimiter: str = "\t", encoding: str = UTF8) -> tuple[tuple[str, ...], int]:
    """Names of a file's columns, and where its first line ends."""
    with open_bytes(path) as file:
        line = file.readline()
    if not line.strip():
        raise UserError(f"{path}{EMPTY}")
    try:
        names = line.removeprefix(codecs.BOM_UTF8).decode(encoding).rstrip("\r\n").split(delimiter)
    except UnicodeDecodeError as error:
        raise _not_text(f"{path}, line 1", encoding) from error
    if any("\r" in name for name in names):
        raise UserError(f"{path}, line 1: lines end with carriage returns alone: save it with LF or CRLF line ends")
    names = tuple(name.strip().strip('"') for name in names)
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}, line 1: column {repeated[0]!r} occurs twice: rename or remove one")
    return names, len(line)


def _length_of_mark(path: Path) -> int:
    """Bytes of a byte order mark before the first line."""
    with open_bytes(path) as file:
        return len(codecs.BOM_UTF8) * (file.read(3) == codecs.BOM_UTF8)


def _not_text(where: str, encoding: str) -> UserError:
    return UserError(f"{where}: not {encoding} text: is it the right file? If so, save it as UTF-8")

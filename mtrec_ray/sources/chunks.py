"""Pieces of a table's files that one task reads: row groups of Parquet, or a CSV file."""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.sources.tables import PARQUET_MAGIC, TableFiles, compression_of, delimiter_of, partition_values
from mtrec_ray.sources.values import label_text

CSV_BLOCK_BYTES = 16 << 20


@dataclass(frozen=True)
class Chunk(ABC):
    """Consecutive rows of one file. Picklable."""

    uri: str  # Names the filesystem
    path: str
    num_rows: int
    file_names: tuple[str, ...]  # Columns of the file
    partition: dict[str, str | None]  # Columns that its folders stand for

    @property
    def names(self) -> list[str]:
        """Columns of the file and of its folders."""
        return [*self.file_names, *(name for name in self.partition if name not in self.file_names)]

    def read(self, columns: list[str]) -> Iterator[pa.Table]:
        """The rows, piece by piece; UserError where the file is damaged."""
        inside = [name for name in dict.fromkeys(columns) if name in self.file_names] or [self.file_names[0]]
        repeated = [name for name in inside if self.file_names.count(name) > 1]
        if repeated:
            raise UserError(f"{self.path}: there are several columns {repeated[0]!r}: rename all but one")
        for rows in self._read(inside):
            for name in self.partition.keys() & columns:
                rows = self._with_partition(rows, name)
            yield rows

    def _with_partition(self, rows: pa.Table, name: str) -> pa.Table:
        """The rows with a column that a folder stands for; UserError if the file says otherwise."""
        value = self.partition[name]
        if name in rows.column_names:
            other = [found for found in label_text(rows[name]).unique().to_pylist() if found != value]
            if other:
                raise UserError(
                    f"{self.path}: column {name!r} is {other[0]!r} in the file and {value!r} in its folder's name"
                )
            return rows
        return rows.append_column(name, pa.array([value] * rows.num_rows, pa.string()))

    @abstractmethod
    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        """Columns of the file alone."""


@dataclass(frozen=True)
class RowGroups(Chunk):
    """Consecutive row groups of a Parquet file."""

    row_groups: tuple[int, ...]

    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        try:
            yield open_parquet(self.uri, self.path).read_row_groups(list(self.row_groups), columns=columns)
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.path}: damaged or truncated ({error}): write it again") from error


@dataclass(frozen=True)
class CsvFile(Chunk):
    """A CSV file, every field as text."""

    delimiter: str
    encoding: str

    def _read(self, columns: list[str]) -> Iterator[pa.Table]:
        with open_csv(self.uri, self.path, self.delimiter, self.encoding, columns) as reader:
            try:
                yield reader.schema.empty_table()  # there may be no row
                for batch in reader:
                    yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise _damaged_csv(self.path, error) from error


def list_chunks(
    files: TableFiles, path: str, rows_per_part: int, delimiter: str | None = None, encoding: str = "utf-8"
) -> list[Chunk]:
    """Chunks of a file in order; UserError if it is damaged, or no file of its kind."""
    by_name = delimiter_of(path)
    partition = partition_values(path)
    if by_name:
        return [_csv_file(files.uri, path, partition, delimiter or by_name, encoding)]
    file = open_parquet(files.uri, path)
    names, metadata = tuple(file.schema_arrow.names), file.metadata
    chunks: list[Chunk] = []
    groups, rows = [], 0
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if groups and rows + size > rows_per_part:
            chunks.append(RowGroups(files.uri, path, rows, names, partition, tuple(groups)))
            groups, rows = [], 0
        groups, rows = [*groups, group], rows + size
    return [*chunks, RowGroups(files.uri, path, rows, names, partition, tuple(groups))]


def open_parquet(uri: str, path: str) -> pq.ParquetFile:
    """A Parquet file; Spark's INT96 timestamps in microseconds, as nanoseconds end in 2262."""
    try:
        return pq.ParquetFile(resolve(uri)[0].open_input_file(path), coerce_int96_timestamp_unit="us")
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: no Parquet file, or truncated ({error}): write it again") from error


def open_csv(
    uri: str,
    path: str,
    delimiter: str,
    encoding: str,
    columns: list[str] | None = None,
) -> pacsv.CSVStreamingReader:
    """A CSV file as a stream of batches: all columns, or `columns` as text."""
    kinds = dict.fromkeys(columns or [], pa.string())
    stream: Any = resolve(uri)[0].open_input_stream(path, compression=compression_of(path))
    reading = pacsv.ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False, encoding=encoding)
    parsing = pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    converting = pacsv.ConvertOptions(include_columns=columns, column_types=kinds, strings_can_be_null=False)
    try:
        return pacsv.open_csv(stream, reading, parsing, converting)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged_csv(path, error) from error


def _csv_file(uri: str, path: str, partition: dict[str, str | None], delimiter: str, encoding: str) -> CsvFile:
    """A CSV file with its header and its number of rows, read once."""
    with resolve(uri)[0].open_input_stream(path, compression=None) as stream:
        start = stream.read(len(PARQUET_MAGIC))
    if start == PARQUET_MAGIC:
        raise UserError(f"{path}: a Parquet file by content, CSV by name: rename it")
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and not encoding.lower().startswith("utf-16"):
        raise UserError(f"{path}: UTF-16 text: set source.encoding to utf-16")
    with open_csv(uri, path, delimiter, encoding) as reader:
        names = tuple(reader.schema.names)
    if len(names) == 1 and set(names[0]) & set(",;|\t"):
        raise UserError(f"{path}: the only column is {names[0]!r}: set source.delimiter to what separates the fields")
    uncounted = CsvFile(uri, path, 0, names, partition, delimiter, encoding)
    one_name = min(names, key=names.count)  # `read` refuses names that occur twice
    return replace(uncounted, num_rows=sum(rows.num_rows for rows in uncounted.read([one_name])))


def _damaged_csv(path: str, error: Exception) -> UserError:
    found = str(error).removeprefix("CSV parse error: ").partition("\n")[0][:120]
    found = "".join(sign if sign.isprintable() else "?" for sign in found)
    return UserError(f"{path}: not read as CSV ({found}): fix the file, or set source.delimiter and source.encoding")

"""Finds Parquet files and reads them in chunks, with errors that name the file."""

import posixpath
from dataclasses import dataclass
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, resolve

GLOB_SIGNS = "*?["


@dataclass(frozen=True)
class Chunk:
    """Some row groups of one file. Picklable."""

    uri: str
    """Names the filesystem."""
    path: str
    row_groups: list[int]
    num_rows: int

    def open(self) -> pq.ParquetFile:
        return _open(resolve(self.uri)[0], self.path)

    def read(self, columns: list[str]) -> pa.Table:
        """The chunk's rows; UserError where the file is damaged."""
        try:
            return self.open().read_row_groups(self.row_groups, columns=list(dict.fromkeys(columns)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{self.path}: damaged or truncated ({error}): write it again") from error


def list_chunks(location: str, raw: str | None, rows_per_part: int) -> list[Chunk]:
    """Chunks of all Parquet files at a path, folder or glob, sorted by path.

    Args:
        location: path or URI; a relative path is below `raw`.
        raw: path or URI of a folder; None = the current one.

    Raises:
        UserError: nothing there, or a file is no complete Parquet file.
    """
    if raw is None or "://" in location or location.startswith(("/", "~")):
        uri, inside, shown = location, "", location
    else:  # joined as paths, not as URIs, where `?` and `[` of a glob have other meanings
        uri, inside, shown = raw, location, join(raw, location)
    fs, root = resolve(uri)
    paths = _list_files(fs, posixpath.normpath(posixpath.join(root, inside)), shown)
    return [chunk for path in paths for chunk in _chunks_of(fs, uri, path, rows_per_part)]


def _list_files(fs: pafs.FileSystem, path: str, shown: str) -> list[str]:
    """Files at a path, folder or glob; `shown` names it in errors."""
    folder = path
    while any(sign in folder for sign in GLOB_SIGNS):
        folder = posixpath.dirname(folder)
    info = fs.get_file_info(folder)
    if info.is_file:
        return [folder]
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{shown!r} is missing: check the path and --raw")
    found = [info.path for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)) if info.is_file]
    chosen = sorted(p for p in found if (p.endswith(".parquet") if folder == path else fnmatch(p, path)))
    if not chosen:
        raise UserError(f"{shown!r} names no Parquet file: check the path and --raw")
    return chosen


def _chunks_of(fs: pafs.FileSystem, uri: str, path: str, rows_per_part: int) -> list[Chunk]:
    """Consecutive row groups of a file, together at most `rows_per_part` rows."""
    metadata = _open(fs, path).metadata
    chunks: list[Chunk] = []
    for group in range(metadata.num_row_groups):
        size = metadata.row_group(group).num_rows
        if chunks and chunks[-1].num_rows + size <= rows_per_part:
            last = chunks.pop()
            chunks.append(Chunk(uri, path, [*last.row_groups, group], last.num_rows + size))
        else:
            chunks.append(Chunk(uri, path, [group], size))
    return chunks


def _open(fs: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path and --raw") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: no Parquet file, or truncated ({error}): write it again") from error

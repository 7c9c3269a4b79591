"""Finding and reading Parquet files in bounded chunks, with errors that name the file."""

import posixpath
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, resolve
from mtrec_ray.sources.source import find_columns


@dataclass(frozen=True)
class Chunk:
    """Some row groups of one file. Picklable."""

    uri: str
    """Of the path as configured, or of --raw: names the filesystem."""
    path: str
    row_groups: tuple[int, ...]
    rows: int


def list_chunks(location: str, raw: str | None, rows_per_part: int) -> list[Chunk]:
    """Chunks of all Parquet files at a path, folder or glob, sorted by path.

    Args:
        location: path or URI; a relative path is one in `raw`.
        raw: path or URI of a folder; None = the current one.
        rows_per_part: rows of a chunk at most, row groups kept whole.

    Raises:
        UserError: nothing there, or a file that is no whole Parquet file.
    """
    if raw is None or "://" in location or location.startswith(("/", "~")):
        uri, inside, shown = location, "", location
    else:  # joined as paths, not as URIs, where `?` and `[` of a glob mean something else
        uri, inside, shown = raw, location, join(raw, location)
    fs, root = resolve(uri)
    chunks = []
    for found in _list_files(fs, posixpath.normpath(posixpath.join(root, inside)), shown):
        metadata = _open(fs, found).metadata
        chunks += _group_rows(
            uri, found, [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)], rows_per_part
        )
    return chunks


def read_chunk(chunk: Chunk, needed: dict[str, str], optional: dict[str, str]) -> pa.Table:
    """Rows of a chunk; columns are canonical name -> the file's, optional ones where the file has them.

    Raises:
        UserError: a needed column is missing, or the file is damaged.
    """
    file = _open(resolve(chunk.uri)[0], chunk.path)
    wanted = find_columns(chunk.path, file.schema_arrow.names, needed, optional, fix="map it in the config")
    try:
        rows = file.read_row_groups(list(chunk.row_groups), columns=list(dict.fromkeys(wanted.values())))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{chunk.path}: damaged or truncated ({error}): write it again") from error
    return pa.table({name: rows[yours] for name, yours in wanted.items()})


def _list_files(fs: pafs.FileSystem, path: str, uri: str) -> list[str]:
    is_glob = any(sign in path for sign in "*?[")
    base = _fixed_part(path) if is_glob else path
    info = fs.get_file_info(base)
    if info.is_file:
        return [base]
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{uri!r} is missing: check the path and --raw")
    found = [i.path for i in fs.get_file_info(pafs.FileSelector(base, recursive=True)) if i.is_file]
    chosen = sorted(p for p in found if (fnmatch(p, path) if is_glob else p.endswith(".parquet")))
    if not chosen:
        raise UserError(f"{uri!r} names no Parquet file: check the path and --raw")
    return chosen


def _fixed_part(pattern: str) -> str:
    parts = PurePosixPath(pattern).parts
    fixed = [part for i, part in enumerate(parts) if not any(s in "".join(parts[: i + 1]) for s in "*?[")]
    return str(PurePosixPath(*fixed)) if fixed else "."


def _open(fs: pafs.FileSystem, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(fs.open_input_file(path))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: check the path and --raw") from error
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: no Parquet file, or truncated ({error}): write it again") from error


def _group_rows(uri: str, path: str, sizes: list[int], limit: int) -> list[Chunk]:
    """Consecutive row groups, together at most `limit` rows, at least one group each."""
    chunks, groups, rows = [], [], 0
    for group, size in enumerate(sizes):
        if groups and rows + size > limit:
            chunks.append(Chunk(uri, path, tuple(groups), rows))
            groups, rows = [], 0
        groups.append(group)
        rows += size
    return [*chunks, Chunk(uri, path, tuple(groups), rows)] if groups else chunks

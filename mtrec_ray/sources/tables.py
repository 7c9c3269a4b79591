"""The files of a user's own table, as the tools that write such tables mean it.

A location is a file, a folder or a glob. Below a folder, names that start with `.` or `_` are other tools' leftovers
(as for `pyarrow.dataset`), and folders `name=value` are columns (Hive). In a glob `*` stays within one folder, `**`
does not, and a name that exists is no glob, brackets or not. Files of a folder that are not read are listed.
"""

import posixpath
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import unquote

import pyarrow.fs as pafs

from mtrec_ray.errors import UserError
from mtrec_ray.files import join, resolve

PARQUET = (".parquet", ".parq", ".pq")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
PARQUET_MAGIC = b"PAR1"
HIDDEN = (".", "_")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
TABLE_FORMATS = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folder inside of a table's folder -> format, whose log decides which of the files count."""


@dataclass
class TableFiles:
    """The files at one location."""

    uri: str  # Names the filesystem
    root: str  # Folder that relative locations start from
    paths: list[str] = field(default_factory=list)  # sorted
    left_out: list[str] = field(default_factory=list)  # Files of the folder that are not read, sorted

    def shown(self, path: str) -> str:
        """A path as people know it: relative where it lies below the raw folder."""
        return path.removeprefix(self.root.rstrip("/") + "/")


def locate_table(location: str, raw: str | None) -> TableFiles:
    """Files at a path, folder or glob; relative ones are below `raw` (None = here).

    UserError if there are none, if a folder holds Parquet and CSV, or a table whose log decides which files count.
    """
    if raw is None or "://" in location or location.startswith(("/", "~")):
        uri, inside, shown = location, "", location
    else:  # joined as paths, not as URIs, where `?` and `[` have other meanings
        uri, inside, shown = raw, location, join(raw, location)
    fs, root = resolve(uri)
    path = posixpath.normpath(posixpath.join(root, inside))
    found = TableFiles(uri, root if inside else posixpath.dirname(path))
    matches = _expand(fs, path)
    if not matches:
        raise UserError(f"{shown!r} is missing: check the path and --raw")
    named = [info.path for info in matches if info.is_file]
    for info in [] if named else matches:
        _refuse_table_formats(fs, info.path, shown)
        for file in _files_below(fs, info.path):
            hidden = any(part.startswith(HIDDEN) for part in file[len(info.path) + 1 :].split("/"))
            is_data = not hidden and _is_data(fs, file)
            if is_data and "." in posixpath.basename(file) and not has_known_ending(file):  # data.parquet.bak
                raise UserError(
                    f"{file}: a Parquet file by content, not by name: rename it, or name the files by a glob"
                )
            (found.paths if is_data else found.left_out).append(file)
    for file in named:
        if not _is_data(fs, file):
            raise UserError(f"{file}: neither Parquet nor CSV by its name: it should end in .parquet, .csv or .csv.gz")
    found.paths = sorted(found.paths + named)
    found.left_out = sorted(found.left_out + [f"{one.path}/" for one in matches if named and not one.is_file])
    if not found.paths:
        raise UserError(f"{shown!r} names no Parquet or CSV file: check the path and --raw")
    if len({delimiter_of(path) for path in found.paths}) > 1:
        raise UserError(f"{shown!r} holds files of several formats: name one with a glob, as in {location}/*.parquet")
    return found


def delimiter_of(path: str) -> str | None:
    """What separates the fields of a CSV or TSV file, by its name; None = a Parquet file."""
    return DELIMITERS.get(posixpath.splitext(_without_compression(path))[1])


def compression_of(path: str) -> str | None:
    """Codec of a compressed text file, by its name."""
    return COMPRESSIONS.get(posixpath.splitext(path.lower())[1])


def _without_compression(path: str) -> str:
    stem, ending = posixpath.splitext(path.lower())
    return stem if ending in COMPRESSIONS else path.lower()


def _files_below(fs: pafs.FileSystem, folder: str) -> list[str]:
    return [one.path for one in fs.get_file_info(pafs.FileSelector(folder, recursive=True)) if one.is_file]


def has_known_ending(path: str) -> bool:
    return path.lower().endswith(PARQUET) or delimiter_of(path) is not None


def _is_data(fs: pafs.FileSystem, path: str) -> bool:
    """A Parquet or CSV file; Hive and Impala write Parquet files whose names have no ending."""
    if has_known_ending(path):
        return True
    with fs.open_input_stream(path, compression=None) as stream:
        return stream.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC


def partition_values(path: str) -> dict[str, str | None]:
    """Columns that the folders `name=value` of a path stand for; None = null."""
    pairs = [folder.partition("=") for folder in posixpath.dirname(path).split("/") if "=" in folder]
    return {unquote(name): None if value == HIVE_NULL else unquote(value) for name, _, value in pairs if name}


def _expand(fs: pafs.FileSystem, path: str) -> list[pafs.FileInfo]:
    """What is at a path, or what a glob matches, sorted by path."""
    info = fs.get_file_info(path)
    if info.type != pafs.FileType.NotFound:
        return [info]
    base, pattern = path, list[str]()
    while base not in ("", "/") and fs.get_file_info(base).type != pafs.FileType.Directory:
        base, name = posixpath.split(base)
        pattern.insert(0, name)
    if not any(sign in part for part in pattern for sign in "*?["):
        return []
    below = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    matching = [one for one in below if _matches(one.path[len(base.rstrip("/")) + 1 :].split("/"), pattern)]
    return sorted(matching, key=lambda one: one.path)


def _matches(names: list[str], pattern: list[str]) -> bool:
    """The parts of a path match a glob's; `*` and `?` match no first `.` or `_`."""
    if not pattern or not names:
        return (not pattern and not names) or pattern == ["**"]
    if pattern[0] == "**":
        within = not names[0].startswith(HIDDEN) and _matches(names[1:], pattern)
        return within or _matches(names, pattern[1:])
    hidden = names[0].startswith(HIDDEN) and names[0][0] != pattern[0][0]
    return not hidden and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _refuse_table_formats(fs: pafs.FileSystem, folder: str, shown: str) -> None:
    """UserError where the folder's own log or metadata says which of its files count."""
    for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)):
        name = TABLE_FORMATS.get(info.base_name)
        if re.search(r"/metadata/[^/]*\.metadata\.json$", info.path):
            name = "Iceberg"
        if name:
            raise UserError(
                f"{shown!r} holds a table of format {name}, whose log decides which files count: write its current "
                "rows as Parquet first, or name the current files with a glob"
            )

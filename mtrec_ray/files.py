"""Small files on any `pyarrow.fs` filesystem, written whole or not at all."""

import json
import os
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from mtrec_ray.errors import UserError

WRITABLE = ".writable"
"""A file that `check_writable` makes for a moment."""
PART = ".part"
"""Ending of a file that is being written; one that stays was left by a killed process."""


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a local path or `pyarrow.fs` URI (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    try:
        if "://" in str(uri):
            return pafs.FileSystem.from_uri(str(uri))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"cannot open {uri!r}: {error}") from error
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(str(uri)))


def absolute(uri: str) -> str:
    """The URI itself, or the absolute form of a local path: what may travel to another process."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def join(uri: str, *parts: str) -> str:
    """A place below `uri`, whose options (`?endpoint_override=...`) stay at the end."""
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([place.rstrip("/"), *parts]) + mark + options


def parent(uri: str) -> tuple[str, str]:
    """The folder that holds `uri`, and its last name."""
    place, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    folder, _, name = place.rstrip("/").rpartition("/")
    return folder + mark + options, name


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_file(uri: str) -> bytes:
    """Raises FileNotFoundError where there is none."""
    fs, path = resolve(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def write_file(uri: str, data: bytes) -> None:
    """`write_whole`, after making the folder."""
    fs, path = resolve(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    write_whole(fs, path, data)


def check_writable(folder: str) -> None:
    """UserError where nothing can be written below a folder, which is made if it is not there."""
    fs, path = resolve(folder)
    try:
        fs.create_dir(path, recursive=True)
        with fs.open_output_stream(f"{path}/{WRITABLE}"):
            pass
        fs.delete_file(f"{path}/{WRITABLE}")
    except OSError as error:
        raise UserError(f"cannot write to {folder!r}: {error}") from error


def remove_file(uri: str) -> None:
    """Raises FileNotFoundError where there is none."""
    fs, path = resolve(uri)
    fs.delete_file(path)


def write_whole(fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write beside and rename (local), or in one put (object storage, where a put is atomic).

    An error of the file system names `path`, which pyarrow's own do not.
    """
    local = isinstance(fs, pafs.LocalFileSystem)
    target = f"{path}.{uuid.uuid4().hex}{PART}" if local else path
    try:
        with fs.open_output_stream(target) as stream:
            stream.write(data)
        if local:
            fs.move(target, path)
    except BaseException as error:
        if local and fs.get_file_info(target).type != pafs.FileType.NotFound:
            fs.delete_file(target)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), path) from error
        raise


def read_json(uri: str) -> Any:
    """Raises FileNotFoundError where there is none, UserError where it is no JSON."""
    try:
        return json.loads(read_file(uri))
    except ValueError as error:
        raise UserError(f"{uri!r} is damaged: {error}") from error


def write_json(uri: str, document: Any) -> None:
    write_file(uri, json.dumps(document, indent=1).encode() + b"\n")

"""Small files on any `pyarrow.fs` filesystem, written completely or not at all."""

import json
import math
import os
import uuid
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.fs as pafs
from pydantic import AfterValidator

from mtrec_ray.errors import UserError

WRITABLE = ".writable"  # name of the file that `check_writable` creates and removes
PART = ".part"  # suffix of a file while it is written; a killed process leaves it


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """Filesystem and path of a local path or URI (`s3://`, `gs://`, `hdfs://`, `file://`)."""
    try:
        str(uri).encode()
        if "://" in str(uri):
            return pafs.FileSystem.from_uri(str(uri))
    except UnicodeEncodeError as error:
        raise UserError(f"cannot open {uri!r}: this is not UTF-8; rename it, or set LC_ALL=C.UTF-8") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"cannot open {uri!r}: {' '.join(str(error).split())}") from error
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(str(uri)))


def absolute(uri: str) -> str:
    """A URI unchanged, a local path made absolute, so that other processes find it."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


AbsoluteUri = Annotated[str, AfterValidator(absolute)]  # a setting that is made `absolute`


def join(uri: str, *parts: str) -> str:
    """A path below `uri`; its options (`?endpoint_override=...`) stay at the end."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    return "/".join([path.rstrip("/"), *parts]) + mark + options


def parent(uri: str) -> tuple[str, str]:
    """Folder and name of `uri`."""
    path, mark, options = uri.partition("?") if "://" in uri else (uri, "", "")
    folder, _, name = path.rstrip("/").rpartition("/")
    return folder + mark + options, name


def exists(uri: str) -> bool:
    fs, path = resolve(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_file(uri: str) -> bytes:
    """Content of a file; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    with fs.open_input_stream(path) as stream:
        return stream.read()


def write_file(uri: str, data: bytes) -> None:
    """`write_atomic`, after creating the folder."""
    fs, path = resolve(uri)
    fs.create_dir(path.rsplit("/", 1)[0], recursive=True)
    write_atomic(fs, path, data)


def check_writable(folder: str) -> None:
    """Create a folder if needed; UserError if it cannot be written to."""
    resolve(folder)
    try:
        write_file(join(folder, WRITABLE), b"")
        remove_file(join(folder, WRITABLE))
    except OSError as error:
        raise UserError(f"cannot write to {folder!r}: {error}") from error


def remove_file(uri: str) -> None:
    """Remove a file; FileNotFoundError if there is none."""
    fs, path = resolve(uri)
    fs.delete_file(path)


def write_atomic(fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write a part and rename it; on object storage one put, which is atomic there.

    Errors name `path`, which pyarrow's do not.
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
    """FileNotFoundError if there is no file, UserError if it is not JSON."""
    data = read_file(uri)
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f"{uri!r} is damaged: {error}") from error


def write_json(uri: str, document: Any) -> None:
    write_file(uri, json.dumps(finite(document), indent=1).encode() + b"\n")


def finite(value: Any) -> Any:
    """The same document with None for NaN and infinity, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

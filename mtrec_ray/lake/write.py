"""Writes the files of a lake under construction and commits it atomically.

Files are named by their content and go straight to the lake's folder or URI. `lake.json`, written last, makes them a
lake or replaces the one that is there: until then its readers see the old files.
"""

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import TextIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import TryAgain, UserError
from mtrec_ray.files import join, remove_file, resolve, write_atomic, write_file
from mtrec_ray.lake.manifest import MANIFEST_NAME, LakeFile, Manifest

LOCK_NAME = ".lock"
STAGING = ".staging"
QUARANTINE = "quarantine/"  # Part of a lake, but not listed by `lake.json` and never read by training
BUILT = re.compile(
    rf"\{LOCK_NAME}|\{STAGING}/part-\d+(-\d+)?\.arrow|"
    rf"(({QUARANTINE})?(users|events|titles|candidates)/.*part-[0-9a-f]{{16}}\.parquet|{MANIFEST_NAME})(\..*)?"
)
"""Paths of the files of a build, also those that a killed one leaves."""


def write_parquet(uri: str, folder: str, table: pa.Table, compression: str = "zstd") -> LakeFile:
    """Write `folder/part-<16 hex digits of its SHA-256>.parquet`; the folder must exist."""
    sink = pa.BufferOutputStream()
    dictionary = [f.name for f in table.schema if pa.types.is_string(f.type) and not f.name.endswith("_id")]
    pq.write_table(table, sink, compression=compression, use_dictionary=dictionary)  # pyright: ignore[reportArgumentType]
    data = sink.getvalue()
    digest = sha256(data).hexdigest()
    path = f"{folder}/part-{digest[:16]}.parquet"
    fs, root = resolve(uri)
    write_atomic(fs, f"{root}/{path}", data)  # a committed lake may have a file of this name
    return LakeFile(path=path, rows=table.num_rows, sha256=digest)


def list_files(uri: str) -> dict[str, float]:
    """Relative paths of all files in a folder, and when they were written (Unix time in s)."""
    fs, root = resolve(uri)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    return {i.path[len(root) + 1 :]: (i.mtime_ns or 0) / 1e9 for i in fs.get_file_info(selector) if i.is_file}


def write_failure(error: OSError, job: str) -> UserError:
    """The error of a `job` that met an error of the file system and removed its files."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space left on the device" if full else str(error)
    return UserError(f"{job} failed: {reason}. What was written so far is removed.")


@contextmanager
def write_lock(uri: str) -> Iterator[None]:
    """Keep other builds and embeddings of a local lake out; TryAgain if one is running."""
    fs, root = resolve(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        yield
        return
    lock = _acquire(f"{root}/{LOCK_NAME}", uri)
    try:
        yield
    finally:
        for folder, _, _ in os.walk(root, topdown=False):  # before another process can get the lock
            with suppress(OSError):  # not empty
                os.rmdir(folder)
        with suppress(OSError):  # the folder was removed, or holds a lake
            os.remove(lock.name)
            os.rmdir(root)
        lock.close()


def _acquire(path: str, uri: str) -> TextIO:
    """Lock the file at `path`, which then names this process; TryAgain if it is held."""
    while True:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            lock = open(path, "a+")  # noqa: SIM115
        except FileNotFoundError:  # a holder that ended has removed the folder since
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read() or "another process"
            lock.close()
            raise TryAgain(f"{holder} is writing the lake {uri!r}: wait for it, or stop it") from error
        if os.fstat(lock.fileno()).st_nlink:
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            return lock
        lock.close()  # of a holder that ended, and removed the file, since `open`


def check_free(out: str, overwrite: bool) -> None:
    """UserError unless `out` is free, a lake to overwrite, or what a killed build left."""
    paths = list_files(out)
    if MANIFEST_NAME in paths and not overwrite:
        raise UserError(f"there is a lake at {out!r} already: choose another --out, or --overwrite it")
    was_killed = any(path.startswith((LOCK_NAME, STAGING)) for path in paths) and all(map(BUILT.fullmatch, paths))
    if paths and MANIFEST_NAME not in paths and not was_killed:
        raise UserError(f"{out!r} exists and is no lake: choose another --out, or remove it")


def replace_files(uri: str, write: Callable[[], Manifest], folders: tuple[str, ...] = ("",)) -> Manifest:
    """Let `write` add files to a locked lake, then commit the manifest that it returns.

    Of the files in `folders`, those that are not of the new lake are removed; after a failure, those that `write`
    added. A task that is still running may leave an unlisted file: no reader sees it, `check_lake` names it.
    """
    old, started_s = list_files(uri), time.time()
    keep = {path for path in old if MANIFEST_NAME in old and not path.startswith(STAGING)}
    try:
        manifest = write()
        write_file(join(uri, MANIFEST_NAME), manifest.model_dump_json(indent=1).encode())
        found = list_files(uri).items()
        rejected = {path for path, written_s in found if path not in old or written_s >= started_s}
        keep = manifest.listed_paths() | {path for path in rejected if path.startswith(QUARANTINE)}
        return manifest
    finally:
        for path in list_files(uri).keys() - keep - {LOCK_NAME}:
            if path.startswith(folders):
                with suppress(FileNotFoundError):
                    remove_file(join(uri, path))

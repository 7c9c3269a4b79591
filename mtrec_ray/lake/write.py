"""Writes the files of a lake under construction and commits it atomically.

Files are named by their content and go straight to the lake's folder or URI. `lake.json`, written last, makes them a
lake or replaces the one that is there: until then its readers see the old files.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, resolve, write_atomic
from mtrec_ray.lake.manifest import MANIFEST_NAME, LakeFile, Manifest

LOCK_NAME = ".lock"
STAGING = ".staging"
QUARANTINE = "quarantine/"  # Part of a lake, but not listed by `lake.json` and never read by training
BUILT = re.compile(
    rf"\{LOCK_NAME}|\{STAGING}/part-\d+\.arrow|"
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
    """Keep other builds and embeddings of a local lake out; UserError if one is running."""
    fs, root = resolve(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        yield
        return
    os.makedirs(root, exist_ok=True)
    with open(f"{root}/{LOCK_NAME}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.fstat(lock.fileno()).st_nlink:  # a build that ended since `open` removed this file
                raise BlockingIOError
        except BlockingIOError as error:
            raise UserError(f"another build of {uri!r} is running: wait for it, or stop it") from error
        try:
            yield
        finally:
            os.remove(lock.name)
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):  # not empty
                    os.rmdir(folder)


@dataclass
class BuildSite:
    """Where a build writes: files below `uri`, then `commit`."""

    uri: str
    committed: Manifest | None = None

    def make_folders(self, folders: list[str]) -> None:
        """Create folders; workers never do, so a removed build stays removed."""
        fs, root = resolve(self.uri)
        for folder in folders:
            fs.create_dir(f"{root}/{folder}", recursive=True)

    def commit(self, manifest: Manifest) -> None:
        """Write `lake.json`, which makes the build visible."""
        fs, root = resolve(self.uri)
        write_atomic(fs, f"{root}/{MANIFEST_NAME}", manifest.model_dump_json(indent=1).encode())
        self.committed = manifest


@contextmanager
def build_site(out: str, overwrite: bool) -> Iterator[BuildSite]:
    """The site of one build, cleaned up at the end; UserError if `out` is taken.

    Without a commit, what the build wrote is removed; else what is not part of the new lake. A task that is still
    running may leave an unlisted file: no reader sees it, `check_lake` names it.
    """
    _check_free(out, overwrite)  # creates no lock file in a folder that is no lake
    with write_lock(out):
        old_paths, started_s = _check_free(out, overwrite), time.time()  # again: another build may have ended since
        site = BuildSite(absolute(out))
        try:
            yield site
        finally:
            fs, root = resolve(out)
            for path, written_s in list_files(out).items():
                if site.committed is None:
                    keep = MANIFEST_NAME in old_paths and path in old_paths and not path.startswith(STAGING)
                elif path.startswith(QUARANTINE):
                    keep = written_s >= started_s or path not in old_paths
                else:
                    keep = path in site.committed.listed_paths()
                if not keep and path != LOCK_NAME:
                    with suppress(FileNotFoundError):
                        fs.delete_file(f"{root}/{path}")


def _check_free(out: str, overwrite: bool) -> frozenset[str]:
    """The files at `out`: none, a lake's if it may be overwritten, or those of a killed build."""
    paths = frozenset(list_files(out))
    if MANIFEST_NAME in paths and not overwrite:
        raise UserError(f"there is a lake at {out!r} already: choose another --out, or --overwrite it")
    was_killed = any(path.startswith((LOCK_NAME, STAGING)) for path in paths) and all(map(BUILT.fullmatch, paths))
    if paths and MANIFEST_NAME not in paths and not was_killed:
        raise UserError(f"{out!r} exists and is no lake: choose another --out, or remove it")
    return paths

"""Writes the files of a lake under construction and commits it atomically.

Files are named by their content and go straight to the lake's folder or URI. `lake.json`, written last, makes them a
lake or replaces the one that is there: until then its readers see the old files.
"""

import errno
import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, resolve, write_atomic
from mtrec_ray.lake.manifest import MANIFEST_NAME, LakeFile, Manifest

LOCK_NAME = ".lock"
STAGING = ".staging"
BUILD_FILES = (LOCK_NAME, f"{STAGING}/")  # Only while a build runs; a killed one leaves them
QUARANTINE = "quarantine/"  # Part of a lake, but not listed by `lake.json` and never read by training


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


@dataclass
class BuildSite:
    """Where a build writes: `open` one, write under `uri`, `commit` on success, `close`."""

    uri: str
    old_paths: frozenset[str]  # Files that were there before: of the lake that is being replaced, or of a killed build
    lock: int | None
    started_s: float = field(default_factory=time.time)
    committed: Manifest | None = None

    def __post_init__(self) -> None:
        self.fs, self.root = resolve(self.uri)

    @staticmethod
    def open(out: str, overwrite: bool) -> "BuildSite":
        """Prepare a build; UserError if `out` exists or another build of it is running."""
        fs, root = resolve(out)
        old_paths = frozenset(list_files(out))
        if MANIFEST_NAME in old_paths and not overwrite:
            raise UserError(f"there is a lake at {out!r} already: choose another --out, or --overwrite it")
        was_killed = any(path.startswith(BUILD_FILES) for path in old_paths)
        if old_paths and MANIFEST_NAME not in old_paths and not was_killed:
            raise UserError(f"{out!r} exists and is no lake: choose another --out, or remove it")
        lock = None
        if isinstance(fs, pafs.LocalFileSystem):
            os.makedirs(root, exist_ok=True)
            lock = os.open(f"{root}/{LOCK_NAME}", os.O_CREAT | os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(lock)
                raise UserError(f"another build of {out!r} is running: wait for it, or stop it") from error
        return BuildSite(absolute(out), old_paths, lock)

    def make_folders(self, folders: list[str]) -> None:
        """Create folders; workers never do, so a removed build stays removed."""
        for folder in folders:
            self.fs.create_dir(f"{self.root}/{folder}", recursive=True)

    def commit(self, manifest: Manifest) -> None:
        """Write `lake.json`, which makes the build visible."""
        write_atomic(self.fs, f"{self.root}/{MANIFEST_NAME}", manifest.model_dump_json(indent=1).encode())
        self.committed = manifest

    def close(self) -> None:
        """Remove what is not part of the lake and release the lock.

        Without a commit, what this build wrote is removed. A task that is still running may leave an unlisted file: no
        reader sees it, `verify_lake` names it.
        """
        for path, written_s in list_files(self.uri).items():
            is_old = path in self.old_paths and not path.startswith(BUILD_FILES)
            if self.committed is None:
                keep = is_old and MANIFEST_NAME in self.old_paths
            elif path.startswith(QUARANTINE):
                keep = written_s >= self.started_s or not is_old
            else:
                keep = path in self.committed.listed_paths()
            if not keep:
                with suppress(FileNotFoundError):
                    self.fs.delete_file(f"{self.root}/{path}")
        if self.lock is not None:
            for folder, _, _ in os.walk(self.root, topdown=False):
                with suppress(OSError):  # not empty
                    os.rmdir(folder)
            os.close(self.lock)

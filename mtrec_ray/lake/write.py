"""Writes the files of a lake under construction and commits it atomically.

A local build happens beside its target, in `<out>.building-<id>`, and is renamed at the end. Object storage has no
rename: files named by their content go straight to the target, and `lake.json`, written last, makes them a lake.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from glob import escape, glob
from hashlib import sha256

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import PART, resolve, write_atomic
from mtrec_ray.lake.manifest import MANIFEST_NAME, LakeFile, Manifest

LOCK_NAME = ".lock"
STAGING = ".staging"


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
    """Where a build writes: open one, write under `uri`, then `commit` or `abandon`."""

    out: str
    uri: str
    in_place: bool
    old_paths: frozenset[str] = frozenset()
    """In place: files of the lake that is being replaced."""
    lock: int | None = None
    started_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self.fs, self.root = resolve(self.uri)

    @staticmethod
    def open(out: str, overwrite: bool) -> "BuildSite":
        """Prepare a build; UserError if `out` exists or another build of it is running."""
        fs, path = resolve(out)
        is_lake = fs.get_file_info(f"{path}/{MANIFEST_NAME}").is_file
        if is_lake and not overwrite:
            raise UserError(f"there is a lake at {out!r} already: choose another --out, or --overwrite it")
        is_local = isinstance(fs, pafs.LocalFileSystem)
        old_paths = frozenset() if is_local else frozenset(list_files(out))
        occupied = os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)) if is_local else old_paths
        if occupied and not is_lake:
            raise UserError(f"{out!r} exists and is no lake: choose another --out, or remove it")
        if not is_local:
            return BuildSite(out, out.rstrip("/"), in_place=True, old_paths=old_paths)
        _remove_stale_builds(path)
        building = f"{path}.building-{uuid.uuid4().hex[:12]}"
        os.makedirs(building)
        return BuildSite(path, building, in_place=False, lock=_lock(building))

    def make_folders(self, folders: list[str]) -> None:
        """Create folders; workers never do, so a removed build stays removed."""
        for folder in folders:
            self.fs.create_dir(f"{self.root}/{folder}", recursive=True)

    def commit(self, manifest: Manifest) -> None:
        """Write `lake.json` and make the build visible, replacing an existing lake atomically."""
        _remove_folder(self.fs, f"{self.root}/{STAGING}")
        with self.fs.open_output_stream(f"{self.root}/{MANIFEST_NAME}") as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if self.in_place:
            old = {path for path, written_s in list_files(self.uri).items() if written_s < self.started_s}
            self._remove_files((self.old_paths & old) - manifest.listed_paths())
            return
        for path in [f"{self.root}/{LOCK_NAME}", *glob(f"{escape(self.root)}/**/*{PART}", recursive=True)]:
            os.remove(path)
        for folder, _, _ in os.walk(f"{self.root}/quarantine", topdown=False):
            if not os.listdir(folder):
                os.rmdir(folder)
        if os.path.exists(self.out):
            _exchange(self.root, self.out)
            shutil.rmtree(self.root, ignore_errors=True)
        else:
            os.rename(self.root, self.out)
        self._release()

    def abandon(self) -> None:
        """Remove what this build wrote; an existing lake stays as it was.

        In place, a task that is still running may leave an unlisted file: no reader sees it, `verify_lake` names it.
        """
        _remove_folder(self.fs, f"{self.root}/{STAGING}" if self.in_place else self.root)
        if self.in_place:
            self._remove_files(list_files(self.uri).keys() - self.old_paths)
        self._release()

    def _remove_files(self, paths: AbstractSet[str]) -> None:
        for path in paths:
            self.fs.delete_file(f"{self.root}/{path}")

    def _release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def _remove_stale_builds(path: str) -> None:
    """Remove what killed builds of this lake left; UserError where one is still running."""
    for folder in glob(f"{escape(path)}.building-*"):
        try:
            os.close(_lock(folder))
        except BlockingIOError as error:
            raise UserError(f"another build of {path!r} is running, in {folder!r}: wait for it, or stop it") from error
        _remove_folder(pafs.LocalFileSystem(), folder)


def _lock(folder: str) -> int:
    """Lock a build's folder for this process; BlockingIOError where another one has it."""
    lock = os.open(f"{folder}/{LOCK_NAME}", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _remove_folder(fs: pafs.FileSystem, path: str) -> None:
    """Remove a folder, even while the last tasks of a cancelled build still write into it."""
    if not isinstance(fs, pafs.LocalFileSystem):
        if fs.get_file_info(path).type == pafs.FileType.Directory:
            fs.delete_dir(path)
        return
    for _ in range(20):
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.exists(path):
            return
        time.sleep(0.1)
    raise OSError(errno.ENOTEMPTY, f"cannot remove {path!r}")


def _exchange(first: str, second: str) -> None:
    """Exchange two folders atomically (Linux renameat2); elsewhere by three renames."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0:
        return
    replaced = f"{first}-replaced"
    os.rename(second, replaced)
    os.rename(first, second)
    os.rename(replaced, first)

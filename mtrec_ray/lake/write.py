"""Writes the files of a lake that is being built, and commits it in one step.

A local build happens beside its target, in `<out>.building-<id>`, and is renamed at the end. On object storage,
where there is no rename, content-named files go straight to the target and `lake.json`, written last, is what makes
them a lake.
"""

import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from glob import escape, glob

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mtrec_ray.errors import UserError
from mtrec_ray.files import PART, write_atomic
from mtrec_ray.lake.manifest import MANIFEST_NAME, LakeFile, Manifest, resolve

LOCK_NAME = ".lock"
STAGING = ".staging"


def write_parquet(fs: pafs.FileSystem, root: str, folder: str, table: pa.Table, compression: str = "zstd") -> LakeFile:
    """Write `folder/part-<first 16 hex digits of its SHA-256>.parquet` under `root`; the folder must exist."""
    sink = pa.BufferOutputStream()
    dictionary = [f.name for f in table.schema if pa.types.is_string(f.type) and not f.name.endswith("_id")]
    pq.write_table(table, sink, compression=compression, use_dictionary=dictionary)  # pyright: ignore[reportArgumentType]
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    path = f"{folder}/part-{digest[:16]}.parquet"
    write_atomic(fs, f"{root}/{path}", data)  # never in place: a file of a committed lake may have this very name
    return LakeFile(path=path, rows=table.num_rows, sha256=digest)


def writing_failed(error: OSError, what: str) -> UserError:
    """The error to raise when `what`, which removes its own files, met an error of the file system."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "no space left on the device" if full else str(error)
    return UserError(f"{what} failed: {reason}. What was written so far is removed.")


@dataclass
class BuildSite:
    """Where a build writes: open one, write under `uri`, then `commit` or `abandon`."""

    out: str
    uri: str
    """Where workers write files."""
    in_place: bool
    kept: frozenset[str] = frozenset()
    """In place: paths of the lake that is being replaced."""
    lock: int | None = None
    began_s: float = field(default_factory=time.time)
    folders: list[str] = field(default_factory=list)

    @staticmethod
    def open(out: str, overwrite: bool) -> "BuildSite":
        """Prepare the place for a build of `out`.

        Raises:
            UserError: a lake (or anything else) is there already, or another build of it is running.
        """
        fs, path = resolve(out)
        there = fs.get_file_info(f"{path}/{MANIFEST_NAME}").type == pafs.FileType.File
        if there and not overwrite:
            raise UserError(f"there is a lake at {out!r} already: choose another --out, or --overwrite it")
        if not isinstance(fs, pafs.LocalFileSystem):
            kept = frozenset(_files_below(fs, path))
            if kept and not there:
                raise UserError(f"{out!r} is not empty and is no lake: choose another --out, or empty it")
            return BuildSite(out, out.rstrip("/"), in_place=True, kept=kept)
        if not there and os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
            raise UserError(f"{out!r} is there already and is no lake: choose another --out, or remove it")
        remove_stale_builds(path)
        building = f"{path}.building-{uuid.uuid4().hex[:12]}"
        os.makedirs(building)
        lock = os.open(f"{building}/{LOCK_NAME}", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return BuildSite(path, building, in_place=False, lock=lock)

    def make_folders(self, folders: list[str]) -> None:
        """Create folders before any worker starts: workers never do, so a removed build stays removed."""
        fs, root = resolve(self.uri)
        for folder in folders:
            fs.create_dir(f"{root}/{folder}", recursive=True)

    def write(self, folder: str, table: pa.Table) -> LakeFile:
        fs, root = resolve(self.uri)
        return write_parquet(fs, root, folder, table)

    def commit(self, manifest: Manifest) -> None:
        """Write `lake.json` and make the build visible, replacing a lake that is there in one step."""
        fs, root = resolve(self.uri)
        remove_folder(fs, f"{root}/{STAGING}")
        with fs.open_output_stream(f"{root}/{MANIFEST_NAME}") as stream:
            stream.write(manifest.model_dump_json(indent=1).encode())
        if self.in_place:
            listed = {f.path for files in manifest.files.values() for f in files} | {MANIFEST_NAME}
            old = {path for path, written_s in _files_below(fs, root).items() if written_s < self.began_s}
            self._remove_files((self.kept & old) - listed)
            return
        os.remove(f"{root}/{LOCK_NAME}")
        for path in glob(f"{escape(root)}/**/*{PART}", recursive=True):
            os.remove(path)
        _remove_empty_folders(f"{root}/quarantine")
        _swap_in(root, self.out)
        self._release()

    def abandon(self) -> None:
        """Remove whatever this build wrote; a lake that was there stays as it was.

        In place, a task that is still running may leave an unlisted file behind: no reader sees it, `check` names it.
        """
        fs, root = resolve(self.uri)
        if not self.in_place:
            remove_folder(fs, root)
            self._release()
            return
        remove_folder(fs, f"{root}/{STAGING}")
        self._remove_files(_files_below(fs, root).keys() - self.kept)

    def _remove_files(self, paths: AbstractSet[str]) -> None:
        fs, root = resolve(self.uri)
        for path in paths:
            fs.delete_file(f"{root}/{path}")

    def _release(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None


def _files_below(fs: pafs.FileSystem, root: str) -> dict[str, float]:
    """Path, relative to the folder, of every file under it, and when it was written (seconds since 1970)."""
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    return {i.path[len(root) + 1 :]: (i.mtime_ns or 0) / 1e9 for i in fs.get_file_info(selector) if i.is_file}


def remove_stale_builds(path: str) -> None:
    """Remove what killed builds of this lake left behind.

    Raises:
        UserError: one of them is still running.
    """
    for folder in glob(f"{escape(path)}.building-*"):
        lock = os.open(f"{folder}/{LOCK_NAME}", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another build of {path!r} is running, in {folder!r}: wait for it, or stop it") from error
        finally:
            os.close(lock)
        remove_folder(pafs.LocalFileSystem(), folder)


def remove_folder(fs: pafs.FileSystem, path: str) -> None:
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


def _remove_empty_folders(path: str) -> None:
    for folder, _, _ in os.walk(path, topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)


def _swap_in(building: str, out: str) -> None:
    if not os.path.exists(out):
        os.rename(building, out)
        return
    _exchange(building, out)
    shutil.rmtree(building, ignore_errors=True)


def _exchange(first: str, second: str) -> None:
    """Exchange two folders in one step (Linux renameat2); elsewhere two renames with a moment between them."""
    at_cwd, exchange = -100, 2
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 and renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) == 0:
        return
    replaced = f"{first}-replaced"
    os.rename(second, replaced)
    os.rename(first, second)
    os.rename(replaced, first)

"""Fetching public archives: resumed where it stopped, checked, and visible under its name only when whole."""

import hashlib
import os
import shutil
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from mtrec_ray.errors import UserError

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 60
ByteProgress = Callable[[int, int | None], None]
"""(bytes so far, bytes in all or None when the server does not say)."""


def download(url: str, checksum: str, out: Path, progress: ByteProgress | None = None) -> Path:
    """Fetch `url` to `out`, going on from `<out>.part` where an earlier attempt stopped.

    Args:
        checksum: `sha256:<hex>` or `md5:<hex>` of the whole file.

    Raises:
        UserError: the server cannot be reached, the connection broke (the part is kept for the next attempt), or the
            content is not what the checksum says (the part is removed).
    """
    if out.exists() and _digest(out, checksum) == checksum:
        return out
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        _fetch(url, part, progress)
    except (urllib.error.URLError, OSError, EOFError) as error:
        kept = part.stat().st_size if part.exists() else 0
        raise UserError(f"{url}: {error}; {kept} bytes are kept in {part}, run it again to continue") from error
    found = _digest(part, checksum)
    if found != checksum:
        part.unlink()
        raise UserError(f"{url}: checksum is {found}, should be {checksum}: damaged or changed, so it was removed")
    os.replace(part, out)
    return out


def _fetch(url: str, part: Path, progress: ByteProgress | None) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing left to send: the part is whole, or the checksum will tell
            return
        raise
    with response:
        resumed = response.status == 206
        size = int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        total = None if size is None else size + (start if resumed else 0)
        _copy(response, part, start if resumed else 0, total, progress)


def _copy(response, part: Path, start: int, total: int | None, progress: ByteProgress | None) -> None:
    done = start
    with part.open("ab" if start else "wb") as file:
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done < total:
        raise EOFError(f"the connection broke after {done} of {total} bytes")


def _digest(path: Path, checksum: str) -> str:
    algorithm, _, _ = checksum.partition(":")
    if algorithm not in ("md5", "sha256"):
        raise UserError(f"checksum {checksum!r} should start with md5: or sha256:")
    with path.open("rb") as file:
        return f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"


def unpack(archive: Path, wanted: tuple[str, ...], folder: Path) -> None:
    """Move the wanted files of a zip archive, and only these, into `folder`.

    Raises:
        UserError: no zip archive, or it does not hold them.
    """
    try:
        with zipfile.ZipFile(archive) as packed, tempfile.TemporaryDirectory(dir=folder) as trial_overrides:
            members = {Path(name).name: name for name in packed.namelist()}
            missing = [name for name in wanted if name not in members]
            if missing:
                raise UserError(f"{archive} does not hold {missing[0]!r}: is it the right archive?")
            for name in wanted:
                with packed.open(members[name]) as source, open(Path(trial_overrides) / name, "wb") as target:
                    shutil.copyfileobj(source, target)
            for name in wanted:
                os.replace(Path(trial_overrides) / name, folder / name)
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is no zip archive: {error}") from error

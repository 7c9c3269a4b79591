"""Downloads of public archives, resumed after an interruption and verified.

Hand-written because `pooch` has no resume: it starts a partial download again from the first byte.
"""

import hashlib
import os
import urllib.error
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import PART, check_writable, write_file

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 60


def download_file(
    url: str, checksum: str, out: Path, stage: str = "downloading", progress: ProgressCallback | None = None
) -> None:
    """Download `url` to `out`, resuming from `<out>.part`; the checksum is `md5:...`.

    UserError: no connection or a broken one (the part stays), another checksum (the part is removed), or a folder that
    cannot be written to.
    """
    if out.exists() and _checksum_of(out) == checksum:
        return
    part = out.with_name(out.name + PART)
    check_writable(str(out.parent))
    try:
        _fetch(url, part, stage, progress)
    except (OSError, HTTPException) as error:
        size = part.stat().st_size if part.exists() else 0
        raise UserError(f"{url}: {error}; {size} bytes are in {part}, run it again to continue") from error
    found = _checksum_of(part)
    if found != checksum:
        part.unlink()
        raise UserError(f"{url}: checksum is {found}, should be {checksum}: damaged or changed, so it was removed")
    os.replace(part, out)


def unpack_files(archive: Path, names: tuple[str, ...], folder: Path) -> None:
    """Unpack the files `names` of a zip archive, whatever their folder in it."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = {PurePosixPath(member).name: member for member in zipped.namelist()}
            for name in names:
                if name not in members:
                    raise UserError(f"{archive} does not hold {name!r}: is it the right archive?")
            for name in names:
                write_file(str(folder / name), zipped.read(members[name]))
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive} is no zip archive: {error}") from error


def _fetch(url: str, part: Path, stage: str, progress: ProgressCallback | None) -> None:
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if done and error.code == 416:  # nothing left to send
            return
        raise
    with response:
        done = done if response.status == 206 else 0  # a server may ignore the range
        length = response.headers["Content-Length"]
        total = done + int(length) if length else 0
        with part.open("ab" if done else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if progress:
                    progress(stage, done, total)
    if done < total:
        raise ConnectionError(f"the connection broke after {done} of {total} bytes")


def _checksum_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"md5:{hashlib.file_digest(file, 'md5').hexdigest()}"

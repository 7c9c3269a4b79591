"""Errors that a user can fix, as opposed to bugs."""

import errno
import http.client
import re
import socket
import urllib.error
from collections.abc import Iterator
from typing import Any

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
NO_WAY = (  # of a path: no rights, or no such file or folder
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
    *(errno.ELOOP, errno.EMFILE),
)
NO_NETWORK = (errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT)
STORAGE_AWAY = re.compile("AWS Error (NETWORK_CONNECTION|SLOW_DOWN|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|THROTTLING)")


class UserError(ValueError):
    """A mistake in settings or data: one line that names the value and the fix; exit code 2."""


class TryAgain(UserError):
    """Something that passes: no network, a busy machine, a held lock; exit code 75."""


def check_version(what: str, found: Any, supported: int, fix: str) -> None:
    """UserError for a stored document of another format version, as in `lake 'x'`."""
    if found != supported:
        raise UserError(f"{what} has format version {found!r}, this mtrec_ray reads {supported}: {fix}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, each once, on whatever machine they were raised."""
    found: list[BaseException] = []
    while error is not None and not any(error is one for one in found):  # an error of a task has itself as a cause
        yield error
        found.append(error)
        failures = [*(getattr(error, "worker_failures", None) or {}).values(), None]  # Ray Train
        controller = getattr(error, "controller_failure", None)
        error = error.__cause__ or getattr(error, "cause", None) or controller or failures[0]


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError that caused an error; None if there is none."""
    for one in causes(error):
        if isinstance(one, UserError):
            return getattr(one, "cause", None) or one  # Ray's wrapper of an error raised in a task
    return None


def is_temporary(error: BaseException) -> bool:
    """Whether a later try may succeed: a `TryAgain`, or an error of the network."""
    if isinstance(error, TryAgain | ConnectionError | TimeoutError | socket.gaierror | http.client.HTTPException):
        return True
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (408, 429)
    if isinstance(error, urllib.error.URLError):
        return isinstance(error.reason, BaseException) and is_temporary(error.reason)
    return isinstance(error, OSError) and (error.errno in NO_NETWORK or bool(STORAGE_AWAY.search(str(error))))


def is_environment(error: BaseException) -> bool:
    """Whether a disk, a path, its rights or the answer of object storage is the cause."""
    return isinstance(error, OSError) and (error.errno in (*DISK_FULL, *NO_WAY) or "AWS Error" in str(error))

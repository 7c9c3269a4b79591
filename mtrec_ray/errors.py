"""Errors that a user can fix, as opposed to bugs."""

from collections.abc import Iterator
from typing import Any


class UserError(ValueError):
    """A mistake in settings or data: one line that names the value and the fix; exit code 2."""


def check_version(what: str, found: Any, supported: int, fix: str) -> None:
    """UserError for a stored document of another format version, as in `lake 'x'`."""
    if found != supported:
        raise UserError(f"{what} has format version {found!r}, this mtrec_ray reads {supported}: {fix}")


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes, on whatever machine they were raised."""
    while error is not None:
        yield error
        failures = getattr(error, "worker_failures", None) or {}  # Ray Train
        error = error.__cause__ or getattr(error, "cause", None) or next(iter(failures.values()), None)


def find_user_error(error: BaseException | None) -> UserError | None:
    """The UserError that caused an error; None if there is none."""
    for one in causes(error):
        if isinstance(one, UserError):
            return getattr(one, "cause", None) or one  # Ray's wrapper of an error raised in a task
    return None

"""What a user can fix, kept apart from what is our own fault."""

from collections.abc import Iterator


class UserError(ValueError):
    """The user's mistake: the message names the value and the fix; exit code 2."""


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what lies behind it, on whatever machine that was raised."""
    while error is not None:
        yield error
        failures = getattr(error, "worker_failures", None) or {}  # Ray Train
        error = error.__cause__ or getattr(error, "cause", None) or next(iter(failures.values()), None)


def find_user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error; None where there is none."""
    for one in causes(error):
        if isinstance(one, UserError):
            return getattr(one, "cause", None) or one  # Ray's wrapper of an error raised in a task
    return None

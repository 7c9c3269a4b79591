"""What a user can fix, kept apart from what is our own fault."""


class UserError(ValueError):
    """The user's mistake: the message names the offending value and the fix; the command ends with code 2."""


def find_user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error, on whatever machine it was raised; None where there is none."""
    while error is not None:
        if isinstance(error, UserError):
            remote = getattr(error, "cause", None)  # Ray's wrapper of an error raised in a task
            return remote or error
        failures = getattr(error, "worker_failures", None) or {}  # Ray Train
        error = error.__cause__ or getattr(error, "cause", None) or next(iter(failures.values()), None)
    return None

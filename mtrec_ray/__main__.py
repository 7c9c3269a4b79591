"""The `mtrec` command.

Exit codes: 0 done, 2 user error, 75 try again (network, busy machine, held lock), 1 defect of ours, 130 interrupted,
143 terminated.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from contextlib import suppress

import click

from mtrec_ray.errors import DISK_FULL, UserError, causes, find_user_error, is_environment, is_temporary
from mtrec_ray.stdio import prepare_stdio

USER_ERROR, DEFECT = 2, 1
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED, TERMINATED = 130, 143  # as shells have them after ctrl-c and `kill`


def main(command: click.Command | None = None) -> None:
    """Entry point of `mtrec` and `python -m mtrec_ray`; ends the process unless all went well."""
    prepare_stdio()
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # or a thread that outlives its Ray would start another
    from mtrec_ray.commands.app import app

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    if threading.current_thread() is threading.main_thread():  # no other thread may set signal handlers
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does once it runs
    try:
        code = _run(command or app)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        code = _report(error)
    if code:
        sys.exit(code)


def _run(command: click.Command) -> int:
    """As click's own `main`, which would take a job's EOFError and EPIPE for the user's."""
    if "_MTREC_COMPLETE" in os.environ:  # of a shell
        command.main(prog_name="mtrec", standalone_mode=False)
    try:
        with command.make_context("mtrec", sys.argv[1:]) as context:
            command.invoke(context)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message)
        return error.exit_code
    except click.exceptions.Exit as done:  # after the help of a group
        return done.exit_code
    return 0


def _report(error: BaseException) -> int:
    """Print an error; returns the exit code."""
    code, message = explain(error)
    if code == DEFECT:
        message = f"this is a defect of mtrec_ray, please report it: {message}; {_write_log(error)}"
    print(f"error: {message}", file=sys.stderr)
    if "--json" in sys.argv:
        with suppress(UserError):  # stdout is full: the line above says so
            print(json.dumps({"error": message, "exit_code": code}), flush=True)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message, by the causes of an error on whatever machine they were raised."""
    if isinstance(error, click.UsageError):
        return USER_ERROR, error.format_message() + (f" (see `{error.ctx.command_path} --help`)" if error.ctx else "")
    if isinstance(error, KeyboardInterrupt | click.Abort | SystemExit):
        code, what = (TERMINATED, "terminated") if isinstance(error, SystemExit) else (INTERRUPTED, "interrupted")
        return code, f"{what}; the same command, a search with --resume, resumes from what is saved"
    found = list(causes(error))
    code = TRY_AGAIN if any(map(is_temporary, found)) else USER_ERROR
    if (mistake := find_user_error(error)) is not None:
        return code, str(mistake)
    for one in found:  # a worker's checkpoint too
        if is_temporary(one) or is_environment(one):
            full = getattr(one, "errno", None) in DISK_FULL and not getattr(one, "filename", None)
            fix = ": free some room, then start the same command again" if full else ""
            return code, " ".join(str(one).split()) + fix
    lines = str(found[-1]).strip().splitlines()
    return DEFECT, ": ".join([type(found[-1]).__name__, *lines[:1]])


def _write_log(error: BaseException) -> str:
    """Where the details of a defect are, in words."""
    try:
        handle, path = tempfile.mkstemp(prefix="mtrec-defect-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            print("command:", *sys.argv[1:], file=file)
            traceback.print_exception(error, file=file)
    except OSError as problem:
        return f"no folder for temporary files can be written to ({problem}), so set TMPDIR to see the details"
    return f"details are in {path}"


if __name__ == "__main__":
    main()

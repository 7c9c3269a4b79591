"""The `mtrec` command. Exit codes: 0 done, 2 user error, 1 other failure, 130 interrupted."""

import errno
import json
import logging
import os
import sys
import traceback

import click

INTERRUPTED = 130  # exit code after ctrl-c, as shells have it


def main(command: click.Command | None = None) -> None:
    """Entry point of `mtrec` and `python -m mtrec_ray`; ends the process unless all went well."""
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # or a thread that outlives its Ray would start another
    from mtrec_ray.commands.app import app

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        (command or app).main(prog_name="mtrec", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.message)
        sys.exit(error.exit_code)
    except Exception as error:
        code, message = explain(error)
        if code == 1:
            traceback.print_exception(error)
        print(f"error: {message}", file=sys.stderr)
        if "--json" in sys.argv:
            print(json.dumps({"error": message, "exit_code": code}))
        sys.exit(code)


def explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message: 2 if a UserError on any machine, or a full disk, is the cause."""
    from mtrec_ray.errors import causes, find_user_error

    if isinstance(error, click.UsageError):
        return 2, error.format_message() + (f" (see `{error.ctx.command_path} --help`)" if error.ctx else "")
    if isinstance(error, click.Abort):  # click's for ctrl-c
        return INTERRUPTED, "interrupted; the same command, a search with --resume, resumes from what is saved"
    mistake = find_user_error(error)
    if mistake is not None:
        return 2, str(mistake)
    for one in causes(error):  # a worker's checkpoint too
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return 2, str(one) if one.filename else f"{one}: free some room, then start the same command again"
    return 1, f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()

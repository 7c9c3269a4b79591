"""What all commands share: their common options, the settings in `--help`, and the way a job is run and shown."""

import importlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import typer
import typer.core
from rich.console import RenderableType
from rich.table import Table

from mtrec_ray.config import ConfigT, dump_yaml, fields_of, load_config
from mtrec_ray.console import ProgressCallback, print_result, progress_bars, stdout_console

ConfigFile = Annotated[str | None, typer.Option("--config", metavar="FILE", help="YAML file with settings.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, by its dotted key; may be repeated."),
]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved settings and stop.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]

INTERRUPTED = 130
"""Exit code after ctrl-c, as shells have it."""
JobResult = tuple[dict[str, Any], list[RenderableType]]


def run_job(
    job: Callable[[ProgressCallback], JobResult], as_json: bool, num_cpus: int | None = None, ray: bool = True
) -> None:
    """Run a job under Ray with progress on stderr, then print what it returns; exit code 130 when interrupted."""
    session = nullcontext()
    if ray:
        from mtrec_ray.lake.cluster import ray_session

        session = ray_session(num_cpus)
    with session:
        try:
            with progress_bars() as progress:
                document, tables = job(progress)
        except KeyboardInterrupt as interrupt:
            says = "interrupted; the same command, a search with --resume, goes on from what is saved"
            typer.echo(says, err=True)
            if as_json:
                typer.echo(json.dumps({"error": says, "exit_code": INTERRUPTED}))
            raise typer.Exit(INTERRUPTED) from interrupt
    print_result(document, tables, as_json)


def resolved(
    model: type[ConfigT],
    config_file: str | None,
    settings: list[str] | None,
    show_config: bool,
    flags: dict[str, Any] | None = None,
) -> ConfigT:
    """The command's settings; with `--print-config` they are printed and the command ends."""
    config = load_config(model, config_file, settings or [], flags)
    if show_config:
        typer.echo(dump_yaml(config), nl=False)
        raise typer.Exit
    return config


def with_settings(*models: tuple[str, str]) -> type[typer.core.TyperCommand]:
    """A command class whose `--help` ends with the settings of the given (`module:Class`, key prefix) models."""

    class SettingsCommand(typer.core.TyperCommand):
        def format_help(self, ctx: Any, formatter: Any) -> None:
            super().format_help(ctx, formatter)
            for path, prefix in models:
                module, name = path.split(":")
                stdout_console().print(_settings_table(getattr(importlib.import_module(module), name), prefix))

    return SettingsCommand


def _settings_table(model: Any, prefix: str) -> Table:
    title = f"Settings (--set KEY=VALUE): {' '.join((model.__doc__ or '').split())}"
    table = Table(title=title, title_justify="left", title_style="bold", show_lines=False, expand=True)
    table.add_column("key", no_wrap=True)  # to be copied and searched for
    for column, ratio in (("type", 1), ("default", 1), ("meaning", 4)):
        table.add_column(column, overflow="fold", ratio=ratio)
    for key, kind, default, meaning in fields_of(model, prefix):
        table.add_row(key, kind, default, meaning)
    return table

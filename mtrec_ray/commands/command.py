"""A command: a job of `mtrec_ray.api`, and the settings that have an option.

Built on click alone: rich-click, tyro, jsonargparse and pydantic-settings turn every setting into an option, while here
a few get short names and `--set` reaches all of them, up to 66 a job.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import click

from mtrec_ray.api import config_class
from mtrec_ray.commands.help import command_help, metavar_of, write_choices, write_options, write_settings
from mtrec_ray.config import Config, Setting, dump_yaml, load_config, settings_of

COMMON = {
    "config": click.Option(["--config"], metavar="FILE", help="YAML file with settings."),
    "set": click.Option(["--set"], metavar="KEY=VALUE", multiple=True, help="Set one dotted key; repeatable."),
    "print_config": click.Option(["--print-config"], is_flag=True, help="Print the resolved settings and stop."),
    "json": click.Option(["--json"], is_flag=True, help="Print one JSON object instead of tables."),
    "verbose": click.Option(["-v", "--verbose"], count=True, help="Log more: -v INFO, -vv DEBUG."),
    "help": click.Option(["--help"], is_flag=True, help="Show this help."),
    "help_all": click.Option(["--help-all"], is_flag=True, help="Show this help with all settings."),
}
LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class JobCommand(click.Command):
    """Runs a job of `mtrec_ray.api` and prints its result.

    Args:
        job: one of `mtrec_ray.api`; its docstring is the command's help.
        usage: arguments and options that stand for settings, as `app.py` explains; their help is the setting's.
        switches: option -> help, for keyword arguments of the function that are no settings.
        without: common options that the command lacks.
    """

    def __init__(
        self,
        job: Callable[..., Any],
        usage: str,
        switches: Mapping[str, str] | None = None,
        without: tuple[str, ...] = (),
    ) -> None:
        super().__init__(job.__name__, help=command_help(job), add_help_option=False)
        parts = [word.partition("=") for word in usage.split()]
        self.job = job
        self.names = {names.split(",")[0]: names.split(",") for names, _, _ in parts}
        words = [(names.split(",")[0], key) for names, _, key in parts]
        self.keys = {word: key or word.strip("-").replace("-", "_").lower() for word, key in words}
        self.switches = [click.Option([flag], is_flag=True, help=text) for flag, text in (switches or {}).items()]
        self.common = {name: option for name, option in COMMON.items() if name not in without}

    @property
    def model(self) -> type[Config]:
        return config_class(self.job.__name__)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Made at the first use, as they need the config class."""
        if not self.params:
            settings = {setting.key: setting for setting in settings_of(self.model)}
            named = [_parameter(self.names[word], settings[key]) for word, key in self.keys.items()]
            self.params = [*named, *self.switches, *self.common.values()]
        return self.params

    def invoke(self, ctx: click.Context) -> None:
        given = ctx.params
        if given["help"] or given.get("help_all"):
            return click.echo(self.get_help(ctx))
        words = {key: word for word, key in self.keys.items()}
        config = load_config(self.model, given.get("config"), given.get("set", ()), self._flags(ctx), words)
        if given.get("print_config"):
            return click.echo(dump_yaml(config), nl=False)
        logging.getLogger("mtrec_ray").setLevel(LEVELS[min(given["verbose"], 2)])
        from mtrec_ray.console import print_result
        from mtrec_ray.lake.cluster import ray_session

        switches = {str(option.name): given[str(option.name)] for option in self.switches}
        with ray_session():
            result = self.job(config, progress="json" in self.common, **switches)
        if result is not None:
            print_result(result.document(), result.tables(), bool(given.get("json")))
        return None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, summary, options, and the settings that have no option."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        everything = bool(ctx.params.get("help_all"))
        model = self.model.concrete({key: value for key, value in self._flags(ctx).items() if value is not None})
        settings = {setting.key: setting for setting in settings_of(model)}
        named = {f"{word}{metavar_of(settings[key], word)}": settings.pop(key) for word, key in self.keys.items()}
        records = [option.get_help_record(ctx) for option in (*self.switches, *self.common.values())]
        write_options(formatter, named, [record for record in records if record], everything)
        write_choices(formatter, model, named)
        write_settings(formatter, settings.values(), everything)

    def _flags(self, ctx: click.Context) -> dict[str, Any]:
        """Dotted key -> what its argument or option gives; None = not given."""
        values = {key: ctx.params[_name(key)] for key in self.keys.values()}
        return {key: None if value in (False, ()) else value for key, value in values.items()}


def _parameter(words: list[str], setting: Setting) -> click.Parameter:
    """Values stay texts: the config class reads them, so that all errors are alike."""
    word, name, is_list = words[0], _name(setting.key), setting.type_name.startswith("list")
    if word.startswith("-"):
        return click.Option([*words, name], is_flag=setting.type_name == "bool", multiple=is_list, default=None)
    metavar = word if setting.field.is_required() else f"[{word}]"
    return click.Argument([name], metavar=metavar, required=False, nargs=-1 if is_list else 1)


def _name(key: str) -> str:
    return key.replace(".", "__")

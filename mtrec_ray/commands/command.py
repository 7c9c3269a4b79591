"""A command: a job of `mtrec_ray.api`, the settings that have an option, and its `--help`.

Built on click alone: rich-click, tyro, jsonargparse and pydantic-settings turn every setting into an option, while here
a few get short names and `--set` reaches all of them, up to 66 a job.
"""

import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from mtrec_ray.api import config_class
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
MAX_DEFAULT = 24  # characters of a default that stand beside its key; longer ones follow the meaning
MAX_VALUES = 32  # characters of choices that stand in one piece
HOW_TO_SET = "Settings: --set KEY=VALUE, or a YAML file with --config"


class JobCommand(click.Command):
    """Runs a job of `mtrec_ray.api` and prints its result.

    Args:
        job: one of `mtrec_ray.api`; its docstring without the example is the command's help.
        usage: arguments and options that stand for settings, as `app.py` explains; their help is the setting's.
        switches: option -> help, for keyword arguments of the function that are no settings.
        without: common options that the command lacks.
    """

    def __init__(
        self, job: Callable[..., Any], usage: str, switches: Mapping[str, str] = {}, without: tuple[str, ...] = ()
    ) -> None:
        text = (inspect.getdoc(job) or "").partition("\n\n>>>")[0]
        super().__init__(job.__name__, help=text, add_help_option=False)
        parts = [(names.split(","), key) for names, _, key in (word.partition("=") for word in usage.split())]
        self.job = job
        self.names = {names[0]: names for names, _ in parts}
        self.keys = {names[0]: key or names[0].strip("-").replace("-", "_").lower() for names, key in parts}
        self.switches = [click.Option([flag], is_flag=True, help=text) for flag, text in switches.items()]
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
        from mtrec_ray.stdio import results_alone

        switches = {str(option.name): given[str(option.name)] for option in self.switches}
        with results_alone(), ray_session():
            result = self.job(config, progress="json" in self.common, **switches)
        if result is not None:
            print_result(result.document(), result.tables(), bool(given.get("json")))
        return None

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, summary, options, then the settings without one, section by section."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        everything = bool(ctx.params.get("help_all"))
        shorten: Callable[[str], str] = str if everything else _first_sentence
        model = self.model.concrete(self._flags(ctx))
        settings = {setting.key: setting for setting in settings_of(model)}
        named = {f"{word}{_metavar(settings[key], word)}": settings.pop(key) for word, key in self.keys.items()}
        options = [(option, shorten(setting.meaning) + _origin(option, setting)) for option, setting in named.items()]
        unnamed = [option.get_help_record(ctx) for option in (*self.switches, *self.common.values())]
        sections = {"Options": options + [record for record in unnamed if record]}
        for option, setting in named.items():
            classes = {choice: model.concrete({setting.key: choice}) for choice in setting.choices}
            if rows := [(name, _first_sentence(one.__doc__ or "")) for name, one in classes.items() if one != model]:
                sections[f"{option}, each with settings of its own: --help after it shows them"] = rows
        if settings:
            sections[HOW_TO_SET] = []
        shown = [setting for setting in settings.values() if everything or not setting.advanced]
        for setting in shown:
            prefix = setting.key.rpartition(".")[0]
            heading = f"{prefix}: {_first_sentence(setting.section.__doc__ or '')}" if prefix else HOW_TO_SET
            sections.setdefault(heading, []).append(_row(setting, shorten(setting.meaning)))
        for heading, rows in sections.items():
            formatter.write_paragraph()
            formatter.write_text(click.style(heading, bold=True))
            with formatter.indentation():
                if rows:
                    formatter.write_dl(rows, col_max=formatter.width * 2 // 5)
        if len(shown) < len(settings):
            formatter.write_paragraph()
            formatter.write_text(f"{len(settings) - len(shown)} more settings: --help-all")

    def _flags(self, ctx: click.Context) -> dict[str, Any]:
        """Dotted key -> what its argument or option gives, if it is given."""
        values = {key: ctx.params[key.replace(".", "__")] for key in self.keys.values()}
        return {key: value for key, value in values.items() if value not in (None, False, ())}


def _parameter(words: list[str], setting: Setting) -> click.Parameter:
    """Values stay texts: the config class reads them, so that all errors are alike."""
    word, name, is_list = words[0], setting.key.replace(".", "__"), setting.type_name.startswith("list")
    if word.startswith("-"):
        return click.Option([*words, name], is_flag=setting.type_name == "bool", multiple=is_list, default=None)
    metavar = word if setting.field.is_required() else f"[{word}]"
    return click.Argument([name], metavar=metavar, required=False, nargs=-1 if is_list else 1)


def _metavar(setting: Setting, word: str) -> str:
    """What follows an option: its choices, N for a number, or its last word."""
    if not word.startswith("-") or setting.type_name == "bool":
        return ""
    if setting.choices and len(setting.values) <= MAX_VALUES:
        return f" {setting.values}"
    return " N" if setting.is_number else f" {word.rpartition('-')[2].upper()}"


def _origin(option: str, setting: Setting) -> str:
    """The setting behind an option, if their names differ, and its default, if it has one."""
    if setting.field.is_required():
        return " [required]"
    if setting.default not in ("null", "false", "[]"):
        return f" [{setting.key}={setting.default}]"
    return "" if option.strip("-").split()[0].replace("-", "_") == setting.key else f" [{setting.key}]"


def _row(setting: Setting, meaning: str) -> tuple[str, str]:
    """(key with default, meaning with values)."""
    key, values = click.style(setting.key, fg="cyan"), setting.values
    if values:
        meaning += f" [{values if len(values) <= MAX_VALUES else values.replace('|', ' | ')}]"
    if len(setting.default) > MAX_DEFAULT:
        return key, f"{meaning} Default: {setting.default}"
    return f"{key} ({setting.default})", meaning


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(text.split()), maxsplit=1)[0]

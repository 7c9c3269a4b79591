"""`--help` of a command: its options, then its settings by section."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from mtrec_ray.config import Config, Setting

MAX_DEFAULT = 24  # characters of a default that stand beside its key; longer ones follow the meaning
MAX_VALUES = 32  # characters of choices that stand in one piece
HOW_TO_SET = "Settings: --set KEY=VALUE, or a YAML file with --config"

Rows = list[tuple[str, str]]


def command_help(job: Callable[..., Any]) -> str:
    """A function's docstring without its example."""
    return (inspect.getdoc(job) or "").partition("\n\n>>>")[0]


def write_options(formatter: click.HelpFormatter, named: Mapping[str, Setting], others: Rows, everything: bool) -> None:
    """The options: `named` ones (with their placeholders) are short for settings."""
    rows = [(option, f"{_meaning(setting, everything)}{_origin(option, setting)}") for option, setting in named.items()]
    _write_section(formatter, "Options", rows + others)


def write_settings(formatter: click.HelpFormatter, settings: Iterable[Setting], everything: bool) -> None:
    """The settings, section by section; advanced ones are counted, or shown (`everything`)."""
    known, sections = list(settings), {"": (HOW_TO_SET, Rows())}
    shown = [setting for setting in known if everything or not setting.advanced]
    for setting in shown:
        prefix = setting.key.rpartition(".")[0]
        heading = f"{prefix}: {_first_sentence(setting.section.__doc__ or '')}"
        sections.setdefault(prefix, (heading, Rows()))[1].append(_row(setting, everything))
    for heading, rows in sections.values() if known else ():
        _write_section(formatter, heading, rows)
    if len(shown) < len(known):
        formatter.write_paragraph()
        formatter.write_text(f"{len(known) - len(shown)} more settings: --help-all")


def write_choices(formatter: click.HelpFormatter, model: type[Config], named: Mapping[str, Setting]) -> None:
    """Meanings of an option's choices, where each has settings of its own."""
    for option, setting in named.items():
        classes = {choice: model.concrete({setting.key: choice}) for choice in setting.choices}
        rows = [(choice, _first_sentence(found.__doc__ or "")) for choice, found in classes.items() if found != model]
        if rows:
            _write_section(formatter, f"{option}, each with settings of its own: --help after it shows them", rows)


def metavar_of(setting: Setting, word: str) -> str:
    """What follows an option: its choices, N for a number, or its last word."""
    if not word.startswith("-") or setting.type_name == "bool":
        return ""
    if setting.choices and len(setting.values) <= MAX_VALUES:
        return f" {setting.values}"
    is_number = {"int", "float"} & set(setting.type_name.split(" | "))
    return " N" if is_number else f" {word.rpartition('-')[2].upper()}"


def _origin(option: str, setting: Setting) -> str:
    """The setting behind an option, if their names differ, and its default, if it has one."""
    if setting.field.is_required():
        return " [required]"
    if setting.default not in ("null", "false", "[]"):
        return f" [{setting.key}={setting.default}]"
    return "" if option.strip("-").split()[0].replace("-", "_") == setting.key else f" [{setting.key}]"


def _row(setting: Setting, everything: bool) -> tuple[str, str]:
    """(key with default, meaning with values)."""
    key, meaning = click.style(setting.key, fg="cyan"), _meaning(setting, everything)
    values = setting.values if len(setting.values) <= MAX_VALUES else setting.values.replace("|", " | ")
    meaning += f" [{values}]" if values else ""
    if len(setting.default) > MAX_DEFAULT:
        return key, f"{meaning} Default: {setting.default}"
    return f"{key} ({setting.default})", meaning


def _meaning(setting: Setting, everything: bool) -> str:
    return setting.meaning if everything else _first_sentence(setting.meaning)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", " ".join(text.split()), maxsplit=1)[0]


def _write_section(formatter: click.HelpFormatter, heading: str, rows: Rows) -> None:
    formatter.write_paragraph()
    formatter.write_text(click.style(heading, bold=True))
    with formatter.indentation():
        if rows:
            formatter.write_dl(rows, col_max=formatter.width * 2 // 5)

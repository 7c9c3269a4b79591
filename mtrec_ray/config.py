"""Typed job settings: frozen pydantic models, from YAML 1.2 and `--set dotted.key=value`."""

import difflib
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic.fields import FieldInfo

from mtrec_ray.errors import UserError
from mtrec_ray.yaml12 import ends_in_comment, format_yaml, parse_yaml


class Config(BaseModel):
    """Base of every job's settings; the text under a field is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @classmethod
    def concrete(cls, document: Mapping[str, Any]) -> "type[Config]":
        """The class that validates `document`: a data source has settings of its own."""
        return cls

    @field_validator("*", mode="before")
    @classmethod
    def _number_is_no_bool(cls, value: Any, info: ValidationInfo) -> Any:
        names = _type_name(cls.model_fields[str(info.field_name)].annotation).split(" | ")
        if isinstance(value, bool) and {"int", "float"} & set(names) and "bool" not in names:  # pydantic takes 0 and 1
            raise ValueError("Input should be a number")
        return value


def advanced(default: Any, **constraints: Any) -> Any:
    """A setting that few need: `--help` leaves it out, `--help-all` shows it."""
    return Field(default=default, json_schema_extra={"advanced": True}, **constraints)


def _check_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ValueError("use letters, digits and . _ + -, first a letter or digit")
    return name


def _check_time(value: Any) -> Any:
    if isinstance(value, date) or (isinstance(value, str) and re.match(r"\s*\d{4}-\d\d-\d\d", value)):
        return value
    raise ValueError("write a date or an ISO 8601 time, as 2022-01-31 or 2022-01-31T12:00:00Z")  # a number has no unit


def _check_encoding(name: str) -> str:
    try:
        "".encode(name)
        return name
    except LookupError as error:
        raise ValueError("no encoding of that name is known: write one such as utf-8, latin-1 or cp1252") from error


ConfigT = TypeVar("ConfigT", bound=Config)
IsoTime = Annotated[datetime, BeforeValidator(_check_time)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # a range that torch, numpy and Optuna all accept
Name = Annotated[str, AfterValidator(_check_name)]  # of a run or search, and of its folder
Encoding = Annotated[str, AfterValidator(_check_encoding)]  # of a text file


@dataclass(frozen=True)
class Setting:
    """One setting of a config class, as help shows it."""

    key: str  # dotted
    field: FieldInfo
    section: type[BaseModel]  # class that defines it
    advanced: bool
    type_name: str
    choices: list[str]  # words that the setting takes, alone or beside a number; empty if it takes any

    @property
    def default(self) -> str:
        """As YAML on one line."""
        if self.field.is_required():
            return "required"
        value = self.field.get_default(call_default_factory=True)
        return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip()

    @property
    def meaning(self) -> str:
        return " ".join((self.field.description or "").split())

    @property
    def is_number(self) -> bool:
        return not {"int", "float"}.isdisjoint(self.type_name.split(" | "))

    @property
    def values(self) -> str:
        """The choices in short, as in `a|b|c` or `number|auto`; empty if there are none."""
        return "|".join(["number"] * self.is_number + self.choices) if self.choices else ""


def load_config(
    model: type[ConfigT],
    path: str | None,
    settings: Sequence[str],
    flags: Mapping[str, Any] = {},
    options: Mapping[str, str] = {},
) -> ConfigT:
    """Resolve a job's settings: YAML file < `settings` (`dotted.key=value`) < `flags`.

    `flags` are by dotted key; `options` names the option of a key, for messages. UserError for an unreadable file, an
    unknown key, or a value that does not fit; the message names the key.
    """
    document = {} if path is None else _read_settings(path)
    for key, value in [*map(_split_setting, settings), *flags.items()]:
        assign(document, key, value)
    return validate_config(model, document, dict(options))


def validate_config(model: type[ConfigT], document: dict[str, Any], options: dict[str, str] | None = None) -> ConfigT:
    """`document` as a `model`; UserError that names the dotted key, the value and the fix.

    `options` as of `load_config`; None = not from the command line.
    """
    concrete = cast(type[ConfigT], model.concrete(document))
    try:
        return concrete.model_validate(document)
    except ValidationError as error:
        known, problems = {setting.key: setting for setting in settings_of(concrete)}, dict[str, list[Any]]()
        for problem in error.errors():
            problems.setdefault(_key_of(known, problem["loc"]), []).append(problem)
        lines = (_explain(known, key, found, options) for key, found in problems.items())
        raise UserError("\n".join(lines)) from error


def dump_yaml(config: BaseModel) -> str:
    """The resolved settings as YAML that `--config` reads back."""
    return format_yaml(config.model_dump(mode="json"))


def settings_of(model: type[BaseModel], prefix: str = "", hidden: bool = False) -> Iterator[Setting]:
    """Every setting, depth first; `hidden`: as if all were advanced."""
    for name, field in model.model_fields.items():
        inner, extra = field.annotation, field.json_schema_extra
        is_advanced = hidden or (isinstance(extra, dict) and bool(extra.get("advanced")))
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from settings_of(inner, f"{prefix}{name}.", is_advanced)
        else:
            yield Setting(f"{prefix}{name}", field, model, is_advanced, _type_name(inner), _choices(inner))


def _read_settings(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            document = parse_yaml(file.read(), f"--config {path}")
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    if not isinstance(document, dict | None):
        raise UserError(f"--config {path} must hold `key: value` lines, not a {type(document).__name__}")
    for key in document or {}:
        if not isinstance(key, str):
            raise UserError(f"--config {path}: {key!r} is no name of a setting; see --help")
    return document or {}


def _split_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text!r} is not of the form dotted.key=value")
    document = parse_yaml(value, f"--set {key}: {value!r}")
    if ends_in_comment(value):
        raise UserError(f"--set {key}: the end of {value!r} is a YAML comment: put the value in quotes, '\"...\"'")
    return key, document


def assign(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of a nested document; UserError where a part of it is no section."""
    *path, last = key.split(".")
    for part in path:
        if document.get(part) is None:
            document[part] = {}
        document = document[part]
        if not isinstance(document, dict):
            raise UserError(f"{key}: {part!r} is a plain value, not a section")
    document[last] = value


def _key_of(known: dict[str, Setting], location: tuple[int | str, ...]) -> str:
    """Dotted key of a problem, without the member of a union that pydantic tried."""
    for length in range(1, len(location)):
        key = ".".join(map(str, location[:length]))
        if key in known:
            return ".".join([key, *(str(part) for part in location[length:] if isinstance(part, int))])
    return ".".join(map(str, location))


def _explain(known: dict[str, Setting], key: str, problems: list[Any], options: dict[str, str] | None) -> str:
    """One line for all problems that pydantic found with a key."""
    kind, value = problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        if key in known:
            return f"{key!r} is a setting of section {section!r}: write it indented, `{section}:` and below `{name}:`"
        return f"unknown setting {key!r}; {_hint(section, name, list(known))}"
    if kind == "missing":
        if options is None:
            return f"setting {key!r} is required"
        fix = f"give it with {options.get(key, f'--set {key}=...')}"
        if key in known and known[key].type_name.startswith("dict"):
            fix = "write it in a YAML file and pass that with --config"
        return f"setting {key!r} is required: {fix}"
    message = ", or ".join(problem["msg"].removeprefix("Value error, ") for problem in problems)
    if kind == "string_type" and isinstance(value, int | float):
        message += ", in quotes"
    if kind == "value_error" and isinstance(value, dict):  # a section's validator names the key itself
        return message if message.startswith(key) else f"{key}: {message}"
    return f"setting {key!r} = {value!r}: {message}"


def _hint(section: str, name: str, known: list[str]) -> str:
    """The setting most like an unknown one by its last word, or what its section has."""
    own = [other for other in known if other.rpartition(".")[0] == section]
    words = {other.rpartition(".")[2]: other for other in [*known, *own]}  # of equal words the section's own
    if close := difflib.get_close_matches(name, words, n=1):
        return f"did you mean {words[close[0]]!r}?"
    return f"{section} has {', '.join(other.rpartition('.')[2] for other in own)}" if section and own else "see --help"


def first_problem(error: ValidationError) -> str:
    """`key: message` of the first problem that pydantic found."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _choices(annotation: Any) -> list[str]:
    """The words of every Literal in an annotation."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return list(map(str, arguments))
    return [word for argument in arguments for word in _choices(argument)]


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Literal, Union, types.UnionType):
        return " | ".join(map(_type_name, arguments))
    if annotation is type(None):
        return "null"
    return str(annotation).replace("typing.", "") if origin else getattr(annotation, "__name__", str(annotation))

"""YAML 1.2: `NO`, `on`, `1:30:00` and dates are text, and a key occurs once in a section.

PyYAML reads version 1.1, where these are false, true, 5400 and dates, and the last of two equal keys wins.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.constructor import ConstructorError, SafeConstructor

from mtrec_ray.errors import UserError

TAG = "tag:yaml.org,2002:"
CORE_SCHEMA: dict[str, tuple[str, list[str], Callable[[str], Any]]] = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""], lambda text: None),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF"), lambda text: text.lower() == "true"),
    "int": (
        "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
        list("-+0123456789"),
        lambda text: int(text, 0) if text[:2] in ("0o", "0x") else int(text),
    ),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
}
"""Type -> (its plain text, first characters, reader): https://yaml.org/spec/1.2.2, section 10.3.2."""


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {"<": [(TAG + "merge", re.compile(r"<<\Z"))]}  # 1.1's, but widely used
    yaml_constructors = {
        tag: SafeConstructor.yaml_constructors[tag] for tag in (TAG + "str", TAG + "seq", TAG + "map", None)
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in lines:
                problem = f"key {key.value!r} is on line {lines[key.tag, key.value]} already: keep one of them"
                raise ConstructorError(None, None, problem, key.start_mark)
            lines[key.tag, key.value] = key.start_mark.line + 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version would read as something else."""


def _scalar_constructor(kind: str) -> Callable[[_Loader, Any], Any]:
    pattern, _, read = CORE_SCHEMA[kind]

    def construct(loader: _Loader, node: Any) -> Any:
        text = str(loader.construct_scalar(node))
        try:
            if re.fullmatch(pattern, text):
                return read(text)
            problem = f"{text!r} is no {kind}"
        except ValueError as error:  # an integer of thousands of digits
            problem = str(error)
        raise ConstructorError(None, None, problem, node.start_mark)

    return construct


for _kind, (_pattern, _first, _) in CORE_SCHEMA.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), _first)
    _Loader.add_constructor(TAG + _kind, _scalar_constructor(_kind))


def parse_yaml(data: bytes | str, source: str) -> Any:
    """The document in `data`; UserError that names `source`, the line and the problem."""
    text = data if isinstance(data, str) else _decode(data, source)
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise UserError(f"{source} is not YAML: {line}{problem}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{source} is not YAML: line {line} holds character {error.character:#x}") from error
    except RecursionError as error:
        raise UserError(f"{source} is not YAML that settings have: it is nested too deeply") from error


def format_yaml(document: Any) -> str:
    """`document` as YAML that `parse_yaml`, and readers of version 1.1, read back the same."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False)


def ends_in_comment(text: str) -> bool:
    """Whether YAML would leave out the end of a one-line text as a comment, as in `data #2`."""
    node = yaml.compose(text, _Loader)
    return bool(text[node.end_mark.index :].strip() if node else text.strip())


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise UserError(f"{source} is not UTF-8 (line {line}, byte {byte:#x}): save it as UTF-8") from error

"""All sources by name; a source is imported when it is used."""

import importlib
from typing import Any, Literal, get_args

from mtrec_ray.config import Config, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import Source

SourceName = Literal["synthetic", "movielens", "xmarket", "rechorus", "parquet"]

_CLASSES = ("Synthetic", "MovieLens", "XMarket", "ReChorus", "Parquet")
SOURCES = dict(zip(get_args(SourceName), _CLASSES, strict=True))
"""Module of each source -> first part of the names of its classes `...Config` and `...Source`."""


def make_source(name: str, config: dict[str, Any] | Config | None = None, raw: str | None = None) -> Source:
    """Create a source; UserError: unknown name, wrong setting or no readable raw files."""
    model = source_config_class(name)
    settings = config if isinstance(config, Config) else validate_config(model, config or {})
    return _import(name, "Source")(settings, raw)


def source_config_class(name: str) -> type[Config]:
    """The settings class of a source; UserError for an unknown name."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}: there are {', '.join(SOURCES)}")
    return _import(name, "Config")


def _import(name: str, kind: str) -> Any:
    return getattr(importlib.import_module(f"mtrec_ray.sources.{name}"), SOURCES[name] + kind)

"""All sources by name; a source is imported when it is used."""

import importlib
from typing import TYPE_CHECKING, Any, Literal

from mtrec_ray.config import Config, validate_config
from mtrec_ray.errors import UserError

if TYPE_CHECKING:
    from mtrec_ray.sources.source import Source

SourceName = Literal["synthetic", "movielens", "xmarket", "rechorus", "parquet"]

SOURCES: dict[str, tuple[str, str]] = {
    "synthetic": ("mtrec_ray.sources.synthetic_config:SyntheticConfig", "mtrec_ray.sources.synthetic:SyntheticSource"),
    "movielens": ("mtrec_ray.sources.movielens:MovieLensConfig", "mtrec_ray.sources.movielens:MovieLensSource"),
    "xmarket": ("mtrec_ray.sources.xmarket:XMarketConfig", "mtrec_ray.sources.xmarket:XMarketSource"),
    "rechorus": ("mtrec_ray.sources.rechorus:ReChorusConfig", "mtrec_ray.sources.rechorus:ReChorusSource"),
    "parquet": ("mtrec_ray.sources.parquet:ParquetConfig", "mtrec_ray.sources.parquet:ParquetSource"),
}
"""`module:class` of each source's settings and of the source itself."""


def make_source(name: str, config: dict[str, Any] | Config | None = None, raw: str | None = None) -> "Source":
    """Create the source `name` with its settings and the folder of its raw files.

    Raises:
        UserError: unknown source, wrong setting, or raw files missing or unreadable.
    """
    model = source_config_class(name)
    settings = config if isinstance(config, Config) else validate_config(model, config or {})
    return _import(SOURCES[name][1])(settings, raw)


def source_config_class(name: str) -> type[Config]:
    """The settings class of a source; UserError for an unknown name."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}: there are {', '.join(SOURCES)}")
    return _import(SOURCES[name][0])


def _import(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)

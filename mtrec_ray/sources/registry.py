"""Sources by name."""

from collections.abc import Callable
from typing import Any

from mtrec_ray.config import Config, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import MovieLensConfig, MovieLensSource
from mtrec_ray.sources.parquet import ParquetConfig, ParquetSource
from mtrec_ray.sources.rechorus import ReChorusConfig, ReChorusSource
from mtrec_ray.sources.source import Source
from mtrec_ray.sources.synthetic import SyntheticSource
from mtrec_ray.sources.synthetic_config import SyntheticConfig
from mtrec_ray.sources.xmarket import XMarketConfig, XMarketSource

CONFIGS: dict[str, type[Config]] = {
    "synthetic": SyntheticConfig,
    "movielens": MovieLensConfig,
    "xmarket": XMarketConfig,
    "rechorus": ReChorusConfig,
    "parquet": ParquetConfig,
}
"""The settings of each source."""


def make_source(name: str, config: dict[str, Any] | Config | None = None, raw: str | None = None) -> Source:
    """The source `name` with its settings, reading the raw files in `raw`.

    Raises:
        UserError: unknown source, wrong setting, or raw files missing or unreadable.
    """
    model = config_class(name)
    settings = config if isinstance(config, model) else validate_config(model, config or {})
    if name == "synthetic" and raw is not None:
        raise UserError("source 'synthetic' is generated and reads no raw files: leave --raw out")
    return _MAKERS[name](settings, raw)


def config_class(name: str) -> type[Config]:
    """The settings of a source; UserError where there is none of this name."""
    if name not in CONFIGS:
        raise UserError(f"unknown source {name!r}: there are {', '.join(CONFIGS)}")
    return CONFIGS[name]


_MAKERS: dict[str, Callable[[Any, str | None], Source]] = {
    "synthetic": lambda config, _: SyntheticSource(config),
    "movielens": MovieLensSource,
    "xmarket": XMarketSource,
    "rechorus": ReChorusSource,
    "parquet": ParquetSource,
}

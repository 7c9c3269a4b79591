"""Sources by name."""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ValidationError

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import MovieLensConfig, MovieLensSource
from mtrec_ray.sources.parquet import ParquetConfig, ParquetSource
from mtrec_ray.sources.rechorus import ReChorusConfig, ReChorusSource
from mtrec_ray.sources.source import Source
from mtrec_ray.sources.synthetic import SyntheticSource
from mtrec_ray.sources.synthetic_config import SyntheticConfig
from mtrec_ray.sources.xmarket import XMarketConfig, XMarketSource

CONFIGS: dict[str, type[BaseModel]] = {
    "synthetic": SyntheticConfig,
    "movielens": MovieLensConfig,
    "xmarket": XMarketConfig,
    "rechorus": ReChorusConfig,
    "parquet": ParquetConfig,
}
"""The settings of each source."""


def make_source(name: str, config: dict[str, Any] | BaseModel | None = None, raw: str | None = None) -> Source:
    """The source `name` with its settings, reading the raw files in `raw`.

    Raises:
        UserError: unknown source, wrong setting, or raw files missing or unreadable.
    """
    settings = make_config(name, config)
    if name == "synthetic" and raw is not None:
        raise UserError("source 'synthetic' is generated and reads no raw files: leave --raw out")
    return _MAKERS[name](settings, raw)


def make_config(name: str, config: dict[str, Any] | BaseModel | None = None) -> BaseModel:
    """Validated settings of a source.

    Raises:
        UserError: unknown source or wrong setting.
    """
    if name not in CONFIGS:
        raise UserError(f"unknown source {name!r}: there are {', '.join(CONFIGS)}")
    if isinstance(config, CONFIGS[name]):
        return config
    try:
        return CONFIGS[name].model_validate(config or {})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or name}: {e['msg']}" for e in error.errors())
        raise UserError(f"source {name!r}: {problems}") from error


_MAKERS: dict[str, Callable[[Any, str | None], Source]] = {
    "synthetic": lambda config, _: SyntheticSource(config),
    "movielens": MovieLensSource,
    "xmarket": XMarketSource,
    "rechorus": ReChorusSource,
    "parquet": ParquetSource,
}

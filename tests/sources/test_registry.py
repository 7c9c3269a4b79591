"""The list of sources."""

from typing import get_args

from mtrec_ray.config import Config
from mtrec_ray.sources.registry import SOURCES, SourceName, source_config_class


def test_every_source_name_is_registered():
    assert tuple(SOURCES) == get_args(SourceName)
    assert all(issubclass(source_config_class(name), Config) for name in SOURCES)

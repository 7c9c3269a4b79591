"""The list of sources: what the commands and the quickstart show is what can be made."""

from typing import get_args

from mtrec_ray.config import Config
from mtrec_ray.sources.registry import SOURCES, SourceName, config_class


def test_every_named_source_has_its_line():
    assert tuple(SOURCES) == get_args(SourceName)
    assert all(issubclass(config_class(name), Config) for name in SOURCES)

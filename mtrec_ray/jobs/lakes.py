"""`mtrec lake build SOURCE`: a lake from the raw files of one data source."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import create_model, model_validator

from mtrec_ray.config import Config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.config import BuildOptions
from mtrec_ray.sources.source import SourceName, make_source, source_config_class

if TYPE_CHECKING:
    from mtrec_ray.lake.summary import LakeSummary


class LakeBuildConfig(Config):
    """A lake, from the raw files of one data source."""

    dataset: SourceName
    """Where the raw data comes from."""
    out: str | None = None
    """Folder or URI of the new lake."""
    raw: str | None = None
    """Folder of the raw files, with parquet also a URI; synthetic has none."""
    download: bool = False
    """movielens: first fetch the raw files into `raw`, with checksum and resume."""
    source: Any = {}
    """Settings of the data source, see `mtrec lake build SOURCE --help`."""
    build: BuildOptions = BuildOptions()

    @classmethod
    def concrete(cls, document: Mapping[str, Any]) -> type[Config]:
        """With the settings of its source; UserError where there is none of that name."""
        if cls is not LakeBuildConfig or "dataset" not in document:
            return cls
        source = source_config_class(str(document["dataset"]))
        section: Any = (source, {})
        return create_model(cls.__name__, __base__=cls, __doc__=source.__doc__, source=section)

    @model_validator(mode="after")
    def _can_download(self) -> "LakeBuildConfig":
        if self.download and self.dataset != "movielens":
            raise ValueError(f"--download has no effect with source {self.dataset!r}: it fetches movielens only")
        return self


def build_from_source(config: LakeBuildConfig, progress: ProgressCallback | None = None) -> "LakeSummary":
    """Build a lake from a data source; UserError if raw files, settings or rows do not fit."""
    from mtrec_ray.lake.build import build_lake

    if config.out is None:
        raise UserError("setting 'out' is required: give it with --out LAKE")
    if config.download:
        from mtrec_ray.sources.movielens import download_movielens

        download_movielens(config.source, config.raw, progress)
    return build_lake(make_source(config.dataset, config.source, config.raw), config.out, config.build, progress)

"""Settings of `mtrec lake` and of the training window; each source adds its own."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from mtrec_ray.config import Config, IsoTime, Seed, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import Calendar, to_utc
from mtrec_ray.sources.source import SourceName, source_config_class


class BuildOptions(Config):
    """How a lake is built, whatever its source."""

    num_buckets: int | None = advanced(None, ge=1)
    """Buckets of users and events; a reader holds one at a time. null = one per 40,000 users, at least 16."""
    on_bad_rows: Literal["error", "quarantine"] = "error"
    """error: stop with the totals and the first rejected rows; quarantine: write them to quarantine/ and count them,
    if any event is left."""
    overwrite: bool = False
    """Replace an existing lake, atomically."""


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


class LakeConfig(Config):
    """A lake."""

    lake: str
    """Folder or URI of the lake."""


class WindowConfig(Config):
    """The training window and the evaluation days after it; null = the source's proposal."""

    start: IsoTime | None = None
    """Start of the window, UTC."""
    end: IsoTime | None = None
    """Exclusive end of the window, UTC."""
    day_s: int | None = Field(default=None, gt=0)
    """Length of an evaluation day in seconds."""
    num_evaluation_days: int | None = Field(default=None, ge=0)
    """Evaluation days after the window (three in Gampa et al. 2023)."""

    def resolve(self, calendar: Calendar) -> Calendar:
        """The source's calendar with these changes; UserError where no window is left."""
        changes = self.model_dump(exclude_none=True)
        for name in {"start", "end"} & changes.keys():
            changes[f"window_{name}"] = to_utc(changes.pop(name))
        calendar = calendar.model_copy(update=changes)
        if calendar.window_start >= calendar.window_end:
            raise UserError(f"window.start {calendar.window_start} is not before window.end {calendar.window_end}")
        return calendar


class InteractionConfig(Config):
    """User and title vectors from the discoveries of the training window."""

    width: int = Field(default=256, ge=1)
    """Numbers per vector."""
    folds: int = Field(default=3, ge=0)
    """Further vectors per user, to train with: the k-th holds what came before fold k, a part of the window, or leaves
    out the titles of fold k where events have no order of time. 0 = none, which cost the baseline a fifth of its PR-AUC
    on five real markets."""
    seed: Seed = 0
    """Seed of the decomposition, of the folds and of fine-tuning."""

    @field_validator("folds")
    @classmethod
    def _not_one(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold would leave every title out of every vector: set 0, or 2 or more")
        return folds


class TextConfig(Config):
    """Title text through a transformer."""

    model: str | None = "bert-base-uncased"
    """Hugging Face name or local folder (Gampa et al. 2023: a 768 wide BERT); null leaves text out."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the encoder runs."""
    fine_tune_steps: int = Field(default=0, ge=0)
    """First fine-tune the encoder on titles that the same users watched, in so many steps of 64 pairs (paper A);
    0 = as it is. All titles of a lake have one encoder, tuned anew by each run. Needs mtrec_ray[text]."""

    @model_validator(mode="after")
    def _fine_tunes_a_model(self) -> "TextConfig":
        if self.fine_tune_steps and self.model is None:
            raise ValueError(f"text.fine_tune_steps = {self.fine_tune_steps} has no effect without text.model: set one")
        return self


class EmbedConfig(Config):
    """Embeddings for a lake whose source has none."""

    lake: str
    """Folder or URI of the lake; its tables are replaced atomically at the end."""
    overwrite: bool = False
    """Replace existing embeddings."""
    window: WindowConfig = WindowConfig()
    interactions: InteractionConfig = InteractionConfig()
    text: TextConfig = TextConfig()

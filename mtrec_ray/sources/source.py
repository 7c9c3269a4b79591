"""Sources by name, and what each offers to a build: facts known beforehand, rows in parts."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa
from pydantic import BaseModel

from mtrec_ray.config import Config, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.sources.calendar import Calendar, Territory

SourceName = Literal["synthetic", "movielens", "xmarket", "rechorus", "parquet"]
SOURCES = dict(zip(get_args(SourceName), ("Synthetic", "MovieLens", "XMarket", "ReChorus", "Parquet"), strict=True))
"""Module of each source -> first part of the names of its classes `...Config` and `...Source`."""
PROMOTION = ("promoted_from", "promoted_until")  # Columns of titles that are not always offered; null = no limit
OPTIONAL_OF_TITLES = ("name", "genres", "synopsis", "territories", *PROMOTION)  # Null where a source lacks them
Part = Callable[[], Any]  # Reads one part in a worker: a pa.Table, or an iterator of its pieces. Picklable


class Embeddings(BaseModel, frozen=True, extra="forbid"):
    """What the embedding columns hold; width 0 = there are none yet."""

    user_width: int = 0
    title_width: int = 0
    interaction_width: int = 0  # Last columns of a title's vector that are in the space of the users' vectors; 0 = none
    num_folds: int = 0  # K > 0: users also have K vectors to train with, the k-th computed without fold k
    fold_starts: list[datetime] = []  # Of folds by time, whose vectors know what came before; empty = folds by hash
    fold_seed: int = 0
    window_start: datetime | None = None  # Of the events that the vectors were computed from; None = the source's
    window_end: datetime | None = None
    description: str = ""


class RawFile(BaseModel, frozen=True, extra="forbid"):
    """A raw file that was read."""

    table: str  # `users`, `events`, `titles` or `candidates`
    path: str  # Relative to the folder of raw files if it lies below
    rows: int  # Read from it, before any is left out or rejected


class DataFacts(BaseModel, frozen=True, extra="forbid"):
    """What a source declares and its lake keeps; rows are validated against it."""

    source: str
    notes: list[str] = []  # What to know when interpreting figures from this data
    territories: list[Territory]
    attributes: dict[str, list[str]]  # Sensitive attributes with their declared values, in order
    title_categoricals: list[str] = []  # Further categorical columns of `titles`
    calendar: Calendar
    embeddings: Embeddings = Embeddings()
    trained_users_are_tested: bool = False  # Figures of users in the training set are reported too
    raw_files: list[RawFile] = []
    left_out: dict[str, int] = {}  # Raw rows that never reach the lake's checks, by reason
    event_days: tuple[datetime, datetime] | None = None  # [start, end) of believable event times; None = any


class SourceFacts(DataFacts, frozen=True):
    """What a source declares before a row is read."""

    num_users: int  # Expected, for the default bucket count


class Source(ABC):
    """A raw data set, read in parts. Picklable; column names as in `mtrec_ray.lake.schema`."""

    @property
    @abstractmethod
    def facts(self) -> SourceFacts:
        """Territories, attributes, calendar and widths."""

    @abstractmethod
    def titles(self) -> pa.Table:
        """All titles; `name`, `genres`, `synopsis` and `territories` may be absent."""

    @abstractmethod
    def parts(self, table: str) -> list[Part]:
        """Readers of `users`, `events`, or `candidates` (fixed titles to rank for a user)."""

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Complete users and events of a bucket; a generator creates them here."""
        return users, events


def pick_columns(
    file: str, present: Sequence[str], setting: str, mapping: dict[str, str], required: list[str], optional: list[str]
) -> dict[str, str]:
    """Canonical -> raw names of the columns to read; `mapping` is the value of `setting`."""
    names = [*required, *optional]
    unknown = sorted(set(mapping) - set(names))
    if unknown:
        raise UserError(f"{setting} maps {unknown[0]!r}, which is never read; there are {', '.join(names)}")
    raw_names = {name: mapping.get(name, name) for name in names}
    for name, raw in raw_names.items():
        if raw not in present and (name in required or name in mapping):
            column = f"column {raw!r}" + f" (mapped to {name!r})" * (name in mapping)
            raise UserError(f"{file}: {column} is missing, there are {', '.join(present)}: map it with `{setting}`")
    return {name: raw for name, raw in raw_names.items() if raw in present}


def raw_folder(source: str, raw: str | None) -> Path:
    """The local folder of raw files; UserError if it does not exist."""
    if raw is None:
        raise UserError(f"source {source!r} reads raw files: name their folder with --raw DIR")
    folder = local_folder(source, raw)
    if not folder.is_dir():
        raise UserError(f"--raw {raw!r} is not a folder: it should hold the files of source {source!r}")
    return folder


def local_folder(source: str, raw: str) -> Path:
    """The folder of a path or `file://` URI; UserError for another filesystem."""
    if "://" in raw and not raw.startswith("file://"):
        raise UserError(f"--raw {raw!r}: source {source!r} reads local files only: copy its files to a local folder")
    return Path(resolve(raw)[1]).resolve()


def make_source(name: str, config: dict[str, Any] | Config | None = None, raw: str | None = None) -> Source:
    """Create a source; UserError: unknown name, wrong setting or no readable raw files."""
    model = source_config_class(name)
    settings = config if isinstance(config, Config) else validate_config(model, config or {})
    return source_class(name)(settings, raw)


def source_config_class(name: str) -> type[Config]:
    """The settings class of a source; UserError for an unknown name."""
    if name not in SOURCES:
        raise UserError(f"unknown source {name!r}: there are {', '.join(SOURCES)}")
    return source_class(name, "Config")


def source_class(name: str, kind: str = "Source") -> Any:
    """Class of a source, or of its settings (`Config`)."""
    return getattr(importlib.import_module(f"mtrec_ray.sources.{name}"), SOURCES[name] + kind)

"""What every source offers to the lake's build: facts known beforehand, and rows in bounded parts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.sources.calendar import Calendar, Territory

PROMOTION = ("promoted_from", "promoted_until")
"""Columns of titles that are not offered all the time; null = without end."""
Part = Callable[[], pa.Table]
"""Picklable, without arguments; read in a worker."""


@dataclass(frozen=True)
class SourceFacts:
    """What a source declares before a row is read, and rows are validated against. Plain data, picklable."""

    name: str
    territories: tuple[Territory, ...]
    attributes: dict[str, tuple[str, ...]]
    """Sensitive attributes with their values, in order."""
    calendar: Calendar
    num_users: int
    """Expected number of users: sets the default bucket count."""
    title_categoricals: tuple[str, ...] = ()
    user_width: int = 0
    """Width of the user embeddings it brings; 0 = none."""
    title_width: int = 0
    embedding_description: str = ""
    notes: tuple[str, ...] = ()
    trained_users_are_tested: bool = False
    has_candidates: bool = False


class Source(ABC):
    """A raw data set. Picklable; its tables have the lake's canonical column names (see `mtrec_ray.lake.schema`)."""

    @property
    @abstractmethod
    def facts(self) -> SourceFacts:
        """Territories, attributes, calendar and widths."""

    @abstractmethod
    def titles(self) -> pa.Table:
        """All titles, in any order."""

    @abstractmethod
    def user_parts(self) -> list[Part]:
        """Readers of bounded parts of the users, in any order."""

    @abstractmethod
    def event_parts(self) -> list[Part]:
        """Readers of bounded parts of the events, in any order."""

    def candidate_parts(self) -> list[Part]:
        """Readers of bounded parts of the fixed evaluation candidates, `user_id` and `title_ids`, in any order."""
        return []

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The bucket's complete rows, where the parts hold less (a generator makes the rest here)."""
        return users, events

    def truth(self) -> dict[str, pa.Table]:
        """Small tables of what was planted, by name; none for real data."""
        return {}

    def user_truth(self, users: pa.Table) -> pa.Table | None:
        """What was planted for the users of one bucket, rows as given; None for real data."""
        return None


def map_columns(
    setting: str, mapping: dict[str, str], needed: list[str], optional: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """(needed, optional) canonical names -> the user's; an optional column that is mapped is needed.

    Raises:
        UserError: `mapping`, the value of `setting`, names a column that is never read.
    """
    strangers = sorted(set(mapping) - {*needed, *optional})
    if strangers:
        raise UserError(
            f"{setting} maps {strangers[0]!r}, which is never read; there are {', '.join([*needed, *optional])}"
        )
    named = [name for name in optional if name in mapping]
    return {name: mapping.get(name, name) for name in [*needed, *named]}, {n: n for n in optional if n not in mapping}


def find_columns(
    where: str, there: Sequence[str], needed: dict[str, str], optional: dict[str, str], fix: str
) -> dict[str, str]:
    """Canonical names -> the file's, of what `map_columns` gave and the file has; UserError where a needed one is not.

    Args:
        where: the file, for the error.
        there: its columns.
        needed: canonical names -> the file's.
        optional: the same.
        fix: what to do about a missing column, for the error.
    """
    for name, yours in needed.items():
        if yours not in there:
            mapped = "" if name == yours else f" (mapped to {name!r})"
            raise UserError(f"{where}: column {yours!r}{mapped} is missing, there are {', '.join(there)}: {fix}")
    return needed | {name: yours for name, yours in optional.items() if yours in there}


def raw_folder(source: str, raw: str | None) -> Path:
    """The folder of raw files, for a source that reads local files only.

    Raises:
        UserError: not given, not there, or a URI of another filesystem.
    """
    if raw is None:
        raise UserError(f"source {source!r} reads raw files: name their folder with --raw DIR")
    folder = local_folder(source, raw)
    if not folder.is_dir():
        raise UserError(f"--raw {raw!r} is not a folder: it should hold the files of source {source!r}")
    return folder


def local_folder(source: str, raw: str) -> Path:
    """The folder that a path or `file://` URI names, there or not.

    Raises:
        UserError: a URI of another filesystem.
    """
    if "://" in raw and not raw.startswith("file://"):
        raise UserError(f"--raw {raw!r}: source {source!r} reads local files only: copy its files to a local folder")
    return Path(resolve(raw)[1]).resolve()

"""What a source offers to the build of a lake: facts known beforehand, and rows in parts of bounded size."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.sources.calendar import Calendar, Territory

PROMOTION = ("promoted_from", "promoted_until")
"""Columns of titles that are not always offered; null = no limit."""
Part = Callable[[], pa.Table]
"""Reads one part in a worker; picklable."""


@dataclass(frozen=True)
class SourceFacts:
    """What a source declares before a row is read; rows are validated against it. Picklable."""

    name: str
    territories: tuple[Territory, ...]
    attributes: dict[str, tuple[str, ...]]
    """Sensitive attributes with their values, in order."""
    calendar: Calendar
    num_users: int
    """Expected number of users: sets the default bucket count."""
    title_categoricals: tuple[str, ...] = ()
    user_width: int = 0
    """Width of the user embeddings in the source; 0 = none."""
    title_width: int = 0
    embedding_description: str = ""
    notes: tuple[str, ...] = ()
    trained_users_are_tested: bool = False
    has_candidates: bool = False


class Source(ABC):
    """A raw data set. Picklable; its tables have the column names of `mtrec_ray.lake.schema`."""

    @property
    @abstractmethod
    def facts(self) -> SourceFacts:
        """Territories, attributes, calendar and widths."""

    @abstractmethod
    def titles(self) -> pa.Table:
        """All titles, in any order."""

    @abstractmethod
    def user_parts(self) -> list[Part]:
        """Readers of the users, in any order."""

    @abstractmethod
    def event_parts(self) -> list[Part]:
        """Readers of the events, in any order."""

    def candidate_parts(self) -> list[Part]:
        """Readers of the titles to rank for each user (`user_id`, `title_ids`), where the data set fixes them."""
        return []

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Complete users and events of a bucket; a generator creates here what its parts leave out."""
        return users, events

    def truth(self) -> dict[str, pa.Table]:
        """Small tables of planted ground truth by name; none for real data."""
        return {}

    def user_truth(self, users: pa.Table) -> pa.Table | None:
        """Planted ground truth of the users of one bucket, row by row; None for real data."""
        return None


def make_titles(title_ids: list[str], territories: list[list[str]] | None = None, **texts: Sequence) -> pa.Table:
    """Titles with the `texts` that are known of them, offered in `territories` (None = everywhere)."""
    known = {name: pa.array(values, pa.string()) for name, values in ({"title_id": title_ids} | texts).items()}
    unknown = dict.fromkeys(("name", "genres", "synopsis"), pa.nulls(len(title_ids), pa.string()))
    offered = [[]] * len(title_ids) if territories is None else territories
    return pa.table(unknown | known | {"territories": pa.array(offered, pa.list_(pa.string()))})


def map_columns(
    setting: str, mapping: dict[str, str], required: list[str], optional: list[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Canonical -> raw names of the (required, optional) columns; mapping an optional one makes it required.

    Raises:
        UserError: `mapping`, the value of `setting`, names a column that is never read.
    """
    unknown = sorted(set(mapping) - {*required, *optional})
    if unknown:
        known = ", ".join([*required, *optional])
        raise UserError(f"{setting} maps {unknown[0]!r}, which is never read; there are {known}")
    required = required + [name for name in optional if name in mapping]
    return {name: mapping.get(name, name) for name in required}, {n: n for n in optional if n not in mapping}


def find_columns(
    file: str, present: Sequence[str], required: dict[str, str], optional: dict[str, str], fix: str
) -> dict[str, str]:
    """Canonical -> raw names of the columns to read, given the `present` columns of a file and `map_columns`.

    Raises:
        UserError: a required column is missing; names the file and the fix.
    """
    for name, raw in required.items():
        if raw not in present:
            mapped = "" if name == raw else f" (mapped to {name!r})"
            raise UserError(f"{file}: column {raw!r}{mapped} is missing, there are {', '.join(present)}: {fix}")
    return required | {name: raw for name, raw in optional.items() if raw in present}


def raw_folder(source: str, raw: str | None) -> Path:
    """The existing local folder of raw files.

    Raises:
        UserError: not given, missing, or a URI of another filesystem.
    """
    if raw is None:
        raise UserError(f"source {source!r} reads raw files: name their folder with --raw DIR")
    folder = local_folder(source, raw)
    if not folder.is_dir():
        raise UserError(f"--raw {raw!r} is not a folder: it should hold the files of source {source!r}")
    return folder


def local_folder(source: str, raw: str) -> Path:
    """The folder that a path or `file://` URI names, which need not exist; UserError for another filesystem."""
    if "://" in raw and not raw.startswith("file://"):
        raise UserError(f"--raw {raw!r}: source {source!r} reads local files only: copy its files to a local folder")
    return Path(resolve(raw)[1]).resolve()

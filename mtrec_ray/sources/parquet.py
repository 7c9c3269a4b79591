"""The user's own Parquet tables: paths, column names and units are mapped in the config."""

# pyright: reportAttributeAccessIssue=false

import posixpath
from dataclasses import dataclass
from datetime import datetime, timedelta
from fnmatch import fnmatch
from functools import cached_property, partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.files import join, resolve
from mtrec_ray.sources.calendar import DAY_S, Calendar, DayCounts, Territory, propose_calendar, to_utc, to_utc_micros
from mtrec_ray.sources.source import PROMOTION, Embeddings, Part, Source, SourceFacts, pick_columns

GLOB_SIGNS = "*?["


class ParquetConfig(Config):
    """Where the tables are and what their columns are called."""

    users: str
    """Files of the users: path or URI of a file, a folder or a glob; relative to --raw."""
    events: str
    """Files of the events."""
    titles: str
    """Files of the titles."""
    candidates: str | None = advanced(None)
    """Files of fixed titles to rank for each user, columns `user_id` and `title_ids`; null = none."""
    user_columns: dict[str, str] = {}
    """Canonical -> your name of user_id, territory, embedding (see user_width) and the attributes."""
    event_columns: dict[str, str] = {}
    """The same for user_id, title_id, timestamp."""
    title_columns: dict[str, str] = {}
    """The same for title_id, the categoricals, embedding, and where you have them: name, genres, synopsis, territories
    (absent = offered everywhere), promoted_from, promoted_until."""
    attributes: dict[str, list[str] | None] = {}
    """Sensitive attributes with their values; null = the values that occur (one pass over the users)."""
    title_categoricals: list[str] = advanced([])
    """Further categorical columns of the titles."""
    user_width: int = advanced(0, ge=0)
    """Width of the users' embedding column; 0 = there is none."""
    title_width: int = advanced(0, ge=0)
    """Width of the titles' embedding column; 0 = there is none."""
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit since 1970 of integer timestamps and promotion dates; timestamp columns carry their own."""
    territories: list[str] | None = advanced(None)
    """Territories that may occur; null = those that occur (one pass over the users)."""
    regions: dict[str, str] = advanced({})
    """Region of each territory; the default is 'all'."""
    window_start: datetime | None = advanced(None)
    """Start of the training window, UTC; null = day of the first event."""
    window_end: datetime | None = advanced(None)
    """Exclusive end of the training window, UTC; null = num_evaluation_days days before the data ends."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days after the window."""
    rows_per_part: int = advanced(262_144, ge=1)
    """Most rows that a worker reads at a time; row groups are never split."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive row groups of one file. Picklable."""

    uri: str  # Names the filesystem
    path: str
    row_groups: list[int]
    num_rows: int

    def open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(resolve(self.uri)[0].open_input_file(self.path))
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.path}: no Parquet file, or truncated ({error}): write it again") from error

    def read(self, columns: list[str]) -> pa.Table:
        """The chunk's rows; UserError where the file is damaged."""
        try:
            return self.open().read_row_groups(self.row_groups, columns=list(dict.fromkeys(columns)))
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{self.path}: damaged or truncated ({error}): write it again") from error


class ParquetSource(Source):
    """Reads Parquet files wherever `pyarrow.fs` reaches."""

    def __init__(self, config: ParquetConfig, raw: str | None):
        self.config = config
        self.chunks: dict[str, list[Chunk]] = {
            table: list_chunks(path, raw, config.rows_per_part)
            for table in ("users", "events", "titles", "candidates")
            if (path := getattr(config, table)) is not None
        }

    @cached_property
    def facts(self) -> SourceFacts:
        config = self.config
        territories = config.territories or self._distinct("territory")
        unknown = sorted(set(config.regions) - set(territories))
        if unknown:
            raise UserError(f"regions names {unknown[0]!r}, which is no territory: there are {', '.join(territories)}")
        widths = config.model_dump(include={"user_width", "title_width"})
        return SourceFacts(
            source="parquet",
            territories=[Territory(name=n, region=config.regions.get(n, "all")) for n in territories],
            attributes={name: values or self._distinct(name) for name, values in config.attributes.items()},
            calendar=self._calendar(),
            event_days=self._days,
            num_users=sum(chunk.num_rows for chunk in self.chunks["users"]),
            title_categoricals=config.title_categoricals,
            embeddings=Embeddings(description="brought by the source" * any(widths.values()), **widths),
        )

    def titles(self) -> pa.Table:
        return pa.concat_tables(part() for part in self.parts("titles"))

    def parts(self, table: str) -> list[Part]:
        return [partial(self._read, table, chunk) for chunk in self.chunks.get(table, [])]

    def _read(self, table: str, chunk: Chunk, only: str | None = None) -> pa.Table:
        """One chunk under canonical column names: all columns, or `only` one."""
        config = self.config
        required = {
            "users": ["user_id", "territory", *config.attributes] + ["embedding"] * bool(config.user_width),
            "events": ["user_id", "title_id", "timestamp"],
            "titles": ["title_id", *config.title_categoricals] + ["embedding"] * bool(config.title_width),
            "candidates": ["user_id", "title_ids"],
        }[table]
        optional = ["name", "genres", "synopsis", "territories", *PROMOTION] if table == "titles" else []
        setting = f"{table[:-1]}_columns"
        mapping = getattr(config, setting, {})
        columns = pick_columns(chunk.path, chunk.open().schema_arrow.names, setting, mapping, required, optional)
        columns = {only: columns[only]} if only else columns
        raw, times = chunk.read(list(columns.values())), {"timestamp", *PROMOTION}
        rows = {name: raw[column] for name, column in columns.items()}
        return pa.table({n: to_utc_micros(r, config.timestamp_unit) if n in times else r for n, r in rows.items()})

    def _distinct(self, column: str) -> list[str]:
        values: set[str] = set()
        for chunk in self.chunks["users"]:
            values |= set(pc.unique(self._read("users", chunk, only=column)[column].cast(pa.string())).to_pylist())
        return sorted(values - {None, ""})

    @cached_property
    def _days(self) -> tuple[datetime, datetime]:
        """Days of the events, without wild timestamps, and of the window that the settings name."""
        days, config = DayCounts(), self.config
        for chunk in self.chunks["events"]:
            days.add(self._read("events", chunk, only="timestamp")["timestamp"])
        start, end = config.window_start, config.window_end
        found = days.believable() or ((to_utc(start), to_utc(end)) if start and end else None)
        if not found:
            raise UserError(f"no event of {config.events!r} has a valid timestamp: check timestamp_unit")
        after = to_utc(end) + timedelta(days=config.num_evaluation_days) if end else found[1]
        return min(found[0], to_utc(start or found[0])), max(found[1], after)

    def _calendar(self) -> Calendar:
        config, fix = self.config, "set window_start and window_end"
        window = config.window_start, config.window_end
        return propose_calendar(self._days, DAY_S, config.num_evaluation_days, fix, *window)


def list_chunks(location: str, raw: str | None, rows_per_part: int) -> list[Chunk]:
    """Chunks of all Parquet files at a path, folder or glob, sorted by path.

    A relative `location` is below `raw`, a path or URI of a folder; None = the current one. UserError if there is
    nothing, or a file is no complete Parquet file.
    """
    if raw is None or "://" in location or location.startswith(("/", "~")):
        uri, inside, shown = location, "", location
    else:  # joined as paths, not as URIs, where `?` and `[` of a glob have other meanings
        uri, inside, shown = raw, location, join(raw, location)
    fs, root = resolve(uri)
    chunks: list[Chunk] = []
    for path in _list_files(fs, posixpath.normpath(posixpath.join(root, inside)), shown):
        metadata, rows, groups = Chunk(uri, path, [], 0).open().metadata, 0, []
        for group in range(metadata.num_row_groups):
            size = metadata.row_group(group).num_rows
            if groups and rows + size > rows_per_part:
                chunks.append(Chunk(uri, path, groups, rows))
                rows, groups = 0, []
            rows, groups = rows + size, [*groups, group]
        chunks += [Chunk(uri, path, groups, rows)] * bool(groups)
    return chunks


def _list_files(fs: pafs.FileSystem, path: str, shown: str) -> list[str]:
    """Files at a path, folder or glob; `shown` names it in errors."""
    folder = path
    while any(sign in folder for sign in GLOB_SIGNS):
        folder = posixpath.dirname(folder)
    info = fs.get_file_info(folder)
    if info.is_file:
        return [folder]
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"{shown!r} is missing: check the path and --raw")
    found = [info.path for info in fs.get_file_info(pafs.FileSelector(folder, recursive=True)) if info.is_file]
    chosen = sorted(p for p in found if (p.endswith(".parquet") if folder == path else fnmatch(p, path)))
    if not chosen:
        raise UserError(f"{shown!r} names no Parquet file: check the path and --raw")
    return chosen

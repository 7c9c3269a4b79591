"""The user's own Parquet tables: paths, column names and units are mapped in the config."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from datetime import datetime
from functools import cached_property, partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S, Calendar, Territory, propose_calendar
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, FIRST_TIMESTAMP, TIMESTAMP, to_utc_micros
from mtrec_ray.sources.parquet_files import Chunk, list_chunks
from mtrec_ray.sources.source import PROMOTION, Part, Source, SourceFacts, pick_columns


class ParquetConfig(Config):
    """Where the tables are and what their columns are called."""

    users: str
    """Files of the users: path or URI of a file, a folder or a glob; relative to --raw."""
    events: str
    """Files of the events."""
    titles: str
    """Files of the titles."""
    candidates: str | None = advanced(None)
    """Files of fixed titles to rank for each user (`user_id`, `title_ids`); null = none."""
    user_columns: dict[str, str] = {}
    """Canonical -> your name of user_id, territory, embedding (see user_width) and the attributes."""
    event_columns: dict[str, str] = {}
    """The same for user_id, title_id, timestamp."""
    title_columns: dict[str, str] = {}
    """The same for title_id, the categoricals, embedding, and where you have them: name, genres, synopsis, territories
    (absent = offered everywhere), promoted_from, promoted_until."""
    candidate_columns: dict[str, str] = advanced({})
    """The same for user_id, title_ids."""
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
    day_s: int = advanced(DAY_S, ge=1)
    """Length of an evaluation day in seconds."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days after the window."""
    rows_per_part: int = advanced(262_144, ge=1)
    """Most rows that a worker reads at a time; row groups are never split."""


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
        return SourceFacts(
            name="parquet",
            territories=tuple(Territory(name=n, region=config.regions.get(n, "all")) for n in territories),
            attributes={name: tuple(values or self._distinct(name)) for name, values in config.attributes.items()},
            calendar=self._calendar(),
            num_users=sum(chunk.num_rows for chunk in self.chunks["users"]),
            title_categoricals=tuple(config.title_categoricals),
            user_width=config.user_width,
            title_width=config.title_width,
            embedding_description="brought by the source" if config.user_width or config.title_width else "",
            has_candidates=config.candidates is not None,
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
        columns = pick_columns(
            chunk.path, chunk.open().schema_arrow.names, setting, getattr(config, setting), required, optional
        )
        columns = {only: columns[only]} if only else columns
        raw = chunk.read(list(columns.values()))
        rows = {name: raw[column] for name, column in columns.items()}
        for name in {"timestamp", *PROMOTION} & rows.keys():
            rows[name] = to_utc_micros(rows[name], config.timestamp_unit)
        return pa.table(rows)

    def _distinct(self, column: str) -> list[str]:
        values: set[str] = set()
        for chunk in self.chunks["users"]:
            values |= set(pc.unique(self._read("users", chunk, only=column)[column].cast(pa.string())).to_pylist())
        return sorted(values - {None, ""})

    def _calendar(self) -> Calendar:
        config = self.config
        start, end = config.window_start, config.window_end
        first, last = (start, end) if start and end else self._first_and_last_timestamp()
        fix = "set window_start and window_end"
        return propose_calendar(first, last, config.day_s, config.num_evaluation_days, fix, start, end)

    def _first_and_last_timestamp(self) -> tuple[datetime, datetime]:
        """Of the timestamps that a lake accepts; one pass over them."""
        low, high = (pa.scalar(time, TIMESTAMP) for time in (FIRST_TIMESTAMP, AFTER_LAST_TIMESTAMP))
        found = []
        for chunk in self.chunks["events"]:
            times = self._read("events", chunk, only="timestamp")["timestamp"]
            times = times.filter(pc.and_(pc.greater_equal(times, low), pc.less(times, high)))
            found += [time for time in pc.min_max(times).as_py().values() if time is not None]
        if not found:
            raise UserError(f"no event of {self.config.events!r} has a valid timestamp: check timestamp_unit")
        return min(found), max(found)

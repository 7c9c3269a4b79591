"""The user's own Parquet tables: paths, column names and units mapped in the config."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from datetime import datetime
from functools import cached_property, partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import Calendar, Territory, proposed_calendar
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, FIRST_TIMESTAMP, TIMESTAMP, to_utc_micros
from mtrec_ray.sources.parquet_files import Chunk, list_chunks, read_chunk
from mtrec_ray.sources.source import PROMOTION, Part, Source, SourceFacts, map_columns

TITLE_TEXTS = ("name", "genres", "synopsis")


class ParquetConfig(Config):
    """Where the tables are and what their columns are called."""

    users: str
    """Files of the users: path or URI of a file, a folder, or a glob; relative to --raw."""
    events: str
    """Files of the events."""
    titles: str
    """Files of the titles."""
    candidates: str | None = None
    """Files of fixed evaluation candidates; null = there are none."""
    user_columns: dict[str, str] = {}
    """Canonical name -> yours, for user_id, territory, embedding and the attributes; others keep the canonical name."""
    event_columns: dict[str, str] = {}
    """The same for user_id, title_id, timestamp."""
    title_columns: dict[str, str] = {}
    """The same for title_id, name, genres, synopsis, territories, promoted_from, promoted_until, embedding and the
    categoricals. name, genres, synopsis and territories may be absent: then unknown, and offered everywhere."""
    candidate_columns: dict[str, str] = {}
    """The same for user_id, title_ids."""
    attributes: dict[str, list[str] | None] = {}
    """Sensitive attributes with their values; null = the values that occur (one pass over the users)."""
    title_categoricals: list[str] = []
    """Further categorical columns of the titles."""
    user_width: int = Field(default=0, ge=0)
    """Width of the users' embedding column; 0 = there is none."""
    title_width: int = Field(default=0, ge=0)
    """Width of the titles' embedding column; 0 = there is none."""
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit since 1970 of integer timestamps and promotion dates; timestamp columns carry their own."""
    territories: list[str] | None = None
    """Territories that may occur; null = those that occur (one pass over the users)."""
    regions: dict[str, str] = {}
    """Region of each territory; unnamed ones have the region 'all'."""
    window_start: datetime | None = None
    """First moment of the window, UTC; null = day of the first event."""
    window_end: datetime | None = None
    """First moment after the window, UTC; null = num_evaluation_days days before the data ends."""
    day_s: int = Field(default=86_400, ge=1)
    """Length of an evaluation day in seconds."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days after the window."""
    rows_per_part: int = Field(default=262_144, ge=1)
    """Rows that a worker reads at a time, row groups kept whole."""


class ParquetSource(Source):
    """Reads Parquet files wherever `pyarrow.fs` reaches."""

    def __init__(self, config: ParquetConfig, raw: str | None):
        self.config, self.raw = config, raw
        self.chunks: dict[str, list[Chunk]] = {
            table: list_chunks(path, raw, config.rows_per_part)
            for table in ("users", "events", "titles", "candidates")
            if (path := getattr(config, table)) is not None
        }

    @cached_property
    def facts(self) -> SourceFacts:
        config = self.config
        territories = config.territories or self._distinct("territory")
        declared = {name: values or self._distinct(name) for name, values in config.attributes.items()}
        strangers = sorted(set(config.regions) - set(territories))
        if strangers:
            raise UserError(
                f"regions names {strangers[0]!r}, which is no territory: there are {', '.join(territories)}"
            )
        return SourceFacts(
            name="parquet",
            territories=tuple(Territory(name=n, region=config.regions.get(n, "all")) for n in territories),
            attributes={name: tuple(values) for name, values in declared.items()},
            calendar=self._calendar(),
            num_users=sum(chunk.rows for chunk in self.chunks["users"]),
            title_categoricals=tuple(config.title_categoricals),
            user_width=config.user_width,
            title_width=config.title_width,
            embedding_description="brought by the source" if config.user_width or config.title_width else "",
            has_candidates=config.candidates is not None,
        )

    def titles(self) -> pa.Table:
        titles = pa.concat_tables(self._read("titles", chunk) for chunk in self.chunks["titles"])
        absent = {name: pa.nulls(titles.num_rows, pa.string()) for name in TITLE_TEXTS}
        absent["territories"] = pa.nulls(titles.num_rows, pa.list_(pa.string()))
        for name, column in absent.items():
            if name not in titles.column_names:
                titles = titles.append_column(name, column)
        return titles

    def user_parts(self) -> list[Part]:
        return [partial(self._read, "users", chunk) for chunk in self.chunks["users"]]

    def event_parts(self) -> list[Part]:
        return [partial(self._read, "events", chunk) for chunk in self.chunks["events"]]

    def candidate_parts(self) -> list[Part]:
        return [partial(self._read, "candidates", chunk) for chunk in self.chunks.get("candidates", [])]

    def _read(self, table: str, chunk: Chunk, only: str | None = None) -> pa.Table:
        """One chunk with canonical column names; `only` one of them, or all."""
        needed, optional = self._columns(table)
        rows = read_chunk(chunk, {only: needed[only]} if only else needed, {} if only else optional)
        for name in {"timestamp", *PROMOTION} & set(rows.column_names):
            moments = to_utc_micros(rows[name], self.config.timestamp_unit)
            rows = rows.set_column(rows.column_names.index(name), name, moments)
        return rows

    def _columns(self, table: str) -> tuple[dict[str, str], dict[str, str]]:
        """(needed, optional) canonical names -> the user's."""
        config = self.config
        needed = {
            "users": ["user_id", "territory", *config.attributes] + ["embedding"] * bool(config.user_width),
            "events": ["user_id", "title_id", "timestamp"],
            "titles": ["title_id", *config.title_categoricals] + ["embedding"] * bool(config.title_width),
            "candidates": ["user_id", "title_ids"],
        }[table]
        optional = [*TITLE_TEXTS, "territories", *PROMOTION] if table == "titles" else []
        setting = f"{table[:-1]}_columns"
        return map_columns(setting, getattr(config, setting), needed, optional)

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
        return proposed_calendar(first, last, config.day_s, config.num_evaluation_days, fix, start, end)

    def _first_and_last_timestamp(self) -> tuple[datetime, datetime]:
        """Of the believable moments: one pass over the timestamps."""
        low, high = (pa.scalar(moment, TIMESTAMP) for moment in (FIRST_TIMESTAMP, AFTER_LAST_TIMESTAMP))
        seen = []
        for chunk in self.chunks["events"]:
            moments = self._read("events", chunk, only="timestamp")["timestamp"]
            moments = moments.filter(pc.and_(pc.greater_equal(moments, low), pc.less(moments, high)))
            extremes = pc.min_max(moments).as_py()
            seen += [moment for moment in extremes.values() if moment is not None]
        if not seen:
            raise UserError(f"no event of {self.config.events!r} has a believable timestamp: check timestamp_unit")
        return min(seen), max(seen)

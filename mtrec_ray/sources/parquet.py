"""The user's own tables, Parquet or CSV; settings map paths, column names and units."""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import cached_property, partial, reduce
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config, Encoding, IsoTime, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import (
    AFTER_LAST_TIMESTAMP,
    DAY_S,
    FIRST_PLAUSIBLE,
    FIRST_TIMESTAMP,
    UNORDERED,
    DayCounts,
    Territory,
    propose_calendar,
    to_utc,
    to_utc_micros,
)
from mtrec_ray.sources.chunks import Chunk, list_chunks
from mtrec_ray.sources.names import check_columns
from mtrec_ray.sources.source import (
    OPTIONAL_OF_TITLES,
    PROMOTION,
    Embeddings,
    Part,
    RawFile,
    Source,
    SourceFacts,
    pick_columns,
)
from mtrec_ray.sources.tables import TableFiles, locate_table
from mtrec_ray.sources.values import MISSING, Column, embedding_bytes, free_text, id_text, label_text, text_lists

IDS = ("user_id", "title_id")
TEXTS = ("name", "genres", "synopsis")
IN_EVERY_FILE = (*IDS, "title_ids", "timestamp", "territory", "embedding")  # Others are null where a file has none
AMBIGUOUS = {"NA", "na", "N/A", "n/a", "#N/A", "NaN", "?", "-"}  # As attributes; as a territory NA is Namibia
EVENTS_PER_USER = 8  # assumed where users are read from events, for the number of buckets
NUM_NAMED = 20  # Files that a note names


class ParquetConfig(Config):
    """Your own tables: Parquet, or CSV (.csv, .tsv, also .gz, .bz2, .zst) with a header.

    Ids and labels become text, whole floats integers; every type and value that could mean two things is refused.
    """

    users: str | None = None
    """Files of the users; null = the users of the events, where the first row of each says territory and attributes.
    A path or URI of a file, a folder (with all below it, but no name that starts with `.` or `_`; folders
    `name=value` are columns) or a glob; relative to --raw."""
    events: str
    """Files of the events."""
    titles: str | None = None
    """Files of the titles; null = the titles of the events, with what their columns say in the first row of each."""
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
    """Sensitive attributes with their values; null = the values that occur, where null, NaN, empty, blank and the texts
    of source.missing are no value, as in every column."""
    title_categoricals: list[str] = advanced([])
    """Further categorical columns of the titles."""
    user_width: int = advanced(0, ge=0)
    """Width of the users' embedding column; 0 = there is none."""
    title_width: int = advanced(0, ge=0)
    """Width of the titles' embedding column; 0 = there is none."""
    timestamp_unit: Literal["s", "ms", "us", "ns"] = "s"
    """Unit since 1970 of integer timestamps and promotion dates; timestamp columns carry their own."""
    missing: list[str] = advanced(list(MISSING))
    """Texts that mean a missing id or label, as null, NaN, empty and blank values do, unless `attributes` or
    `territories` declare them."""
    territories: list[str] | None = advanced(None)
    """Territories that may occur; null = those that occur (one pass over the users)."""
    one_territory: str | None = advanced(None)
    """Name of the only territory, where no column says one; null = a column does."""
    regions: dict[str, str] = advanced({})
    """Region of each territory; the default is 'all'."""
    window_start: IsoTime | None = advanced(None)
    """Start of the training window, UTC; null = day of the first event, wild ones apart."""
    window_end: IsoTime | None = advanced(None)
    """Exclusive end of the training window, UTC; null = num_evaluation_days days before the data ends."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days after the window."""
    evaluation_day_length: int = advanced(1, ge=1)
    """Days that count as one evaluation day: more where a single day has few events."""
    rows_per_part: int = advanced(262_144, ge=1)
    """Most rows of Parquet that a worker reads at a time; row groups are never split."""
    delimiter: str | None = advanced(None, min_length=1, max_length=1)
    """Character between the fields of CSV files; null = a comma, in .tsv files a tab."""
    encoding: Encoding = advanced("utf-8")
    """Encoding of CSV files."""


class ParquetSource(Source):
    """Reads Parquet and CSV files wherever `pyarrow.fs` reaches."""

    def __init__(self, config: ParquetConfig, raw: str | None):
        self.config = config
        check_columns("attribute", config.attributes)
        check_columns("title categorical", config.title_categoricals)
        self.files: dict[str, TableFiles] = {
            table: locate_table(location, raw)
            for table in ("users", "events", "titles", "candidates")
            if (location := getattr(config, table)) is not None
        }
        self.chunks = {
            table: [
                chunk
                for path in files.paths
                for chunk in list_chunks(files, path, config.rows_per_part, config.delimiter, config.encoding)
            ]
            for table, files in self.files.items()
        }
        self.derived = [table for table in ("users", "titles") if table not in self.files]  # read from the events
        self.chunks |= dict.fromkeys(self.derived, self.chunks["events"])
        self.names = {table: {name for one in chunks for name in one.names} for table, chunks in self.chunks.items()}

    @cached_property
    def facts(self) -> SourceFacts:
        config = self.config
        found = self._labels_of_users()
        for name in config.attributes:
            if not found.get(name, True):
                raise UserError(
                    f"attribute {name!r} is missing for all users: map its column with `user_columns`, or leave it out "
                    "of source.attributes"
                )
            for value in sorted(AMBIGUOUS.intersection(found.get(name, []))):
                raise UserError(
                    f"attribute {name!r} has the value {value!r}: if it means a missing one, add it to "
                    "source.missing, else declare the attribute's values in source.attributes"
                )
        only = [config.one_territory] if config.one_territory else None
        territories = only or config.territories or found["territory"]
        unknown = sorted(set(config.regions) - set(territories))
        if unknown:
            raise UserError(f"regions names {unknown[0]!r}, which is no territory: there are {', '.join(territories)}")
        widths = config.model_dump(include={"user_width", "title_width"})
        window = config.window_start, config.window_end
        fix = "set window_start and window_end"
        return SourceFacts(
            source="parquet",
            territories=[Territory(name=n, region=config.regions.get(n, "all")) for n in territories],
            attributes={name: values or found[name] for name, values in config.attributes.items()},
            calendar=propose_calendar(
                self._days,
                DAY_S * config.evaluation_day_length,
                config.num_evaluation_days,
                fix,
                *window,
                ordered=self.day_counts.ordered(),
            ),
            event_days=self._days,
            num_users=sum(chunk.num_rows for chunk in self.chunks["users"])
            // (EVENTS_PER_USER if "users" in self.derived else 1),
            title_categoricals=config.title_categoricals,
            embeddings=Embeddings(description="brought by the source" * any(widths.values()), **widths),
            raw_files=[RawFile(table=table, path=path, rows=rows) for table, path, rows in self._rows_of_files()],
            notes=[*self._notes(), *[UNORDERED] * (not self.day_counts.ordered())],
        )

    def titles(self) -> pa.Table:
        pieces = (rows for part in self.parts("titles") for rows in part())
        if "titles" not in self.derived:
            return pa.concat_tables(pieces)
        return reduce(lambda known, rows: first_rows(pa.concat_tables([known, rows]), "title_id"), pieces)

    def parts(self, table: str) -> list[Part]:
        read = self._read_derived if table in self.derived else self._read
        return [partial(read, table, chunk) for chunk in self.chunks.get(table, [])]

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Users that are read from events come once for every part they occur in."""
        return first_rows(users, "user_id") if "users" in self.derived else users, events

    def _read_derived(self, table: str, chunk: Chunk) -> Iterator[pa.Table]:
        key = f"{table[:-1]}_id"
        for rows in self._read(table, chunk):
            yield first_rows(rows.filter(rows[key].is_valid()), key)

    def _columns(self, table: str) -> tuple[list[str], list[str]]:
        """Required and optional columns of a table, canonical names."""
        config = self.config
        required = {
            "users": ["user_id"]
            + ["territory"] * (config.one_territory is None)
            + [*config.attributes, *["embedding"] * bool(config.user_width)],
            "events": ["user_id", "title_id", "timestamp"],
            "titles": ["title_id", *config.title_categoricals] + ["embedding"] * bool(config.title_width),
            "candidates": ["user_id", "title_ids"],
        }[table]
        return required, list(OPTIONAL_OF_TITLES) if table == "titles" else []

    def _raw_names(self, table: str) -> dict[str, str]:
        """Canonical -> your name of every column of a table."""
        mapping = self._mapping(table)
        return {name: mapping.get(name, name) for names in self._columns(table) for name in names}

    def _mapping(self, table: str) -> dict[str, str]:
        """The setting that names a table's columns; ids of derived tables as in the events."""
        key, of_events = f"{table[:-1]}_id", self.config.event_columns
        ids = {key: of_events[key]} if table in self.derived and key in of_events else {}
        return ids | getattr(self.config, f"{table[:-1]}_columns", {})

    def _read(self, table: str, chunk: Chunk, only: list[str] | None = None) -> Iterator[pa.Table]:
        """One chunk under canonical names, piece by piece: all columns, or those of `only`.

        A column that other files of the table have is null in this one, unless every file must have it.
        """
        required, optional = self._columns(table)
        raw_names = self._raw_names(table)
        absent = {name for name, raw in raw_names.items() if raw in self.names[table] and raw not in chunk.names}
        absent -= set(IN_EVERY_FILE)
        present = [*chunk.names, *(raw_names[name] for name in absent)]
        setting = f"{table[:-1]}_columns"
        columns = pick_columns(chunk.path, present, setting, self._mapping(table), required, optional)
        columns = {name: raw for name, raw in columns.items() if only is None or name in only}
        for rows in chunk.read([raw for name, raw in columns.items() if name not in absent]):
            converted = {}
            for name, raw in columns.items():
                column = pa.nulls(rows.num_rows) if name in absent else rows[raw]
                try:
                    converted[name] = self._convert(name, column)
                except (UserError, pa.ArrowException) as error:  # Arrow's: text that is not UTF-8, numbers too large
                    raise UserError(f"{chunk.path}: column {raw!r}: {error}") from error
            if table == "users" and self.config.one_territory and (only is None or "territory" in only):
                converted["territory"] = pa.array([self.config.one_territory] * rows.num_rows, pa.string())
            yield pa.table(converted)

    def _convert(self, name: str, column: Column) -> Column:
        config = self.config
        if name == "timestamp":
            return to_utc_micros(column, config.timestamp_unit, config.missing)
        if name in PROMOTION:
            return _without_far(name, to_utc_micros(column, config.timestamp_unit, config.missing))
        if name == "embedding":
            return embedding_bytes(column)
        if name in TEXTS:
            return free_text(column)
        declared = config.territories if name in ("territory", "territories") else config.attributes.get(name)
        missing = set(config.missing) - set(declared or [])
        if name in ("territories", "title_ids"):
            return text_lists(column, partial(label_text if name == "territories" else id_text, missing=missing))
        return (id_text if name in IDS else label_text)(column, missing)

    def _labels_of_users(self) -> dict[str, list[str]]:
        """Values that occur, sorted, of the territory and the attributes that declare none."""
        values: dict[str, set[str]] = {name: set() for name, listed in self.config.attributes.items() if not listed}
        values |= {} if self.config.territories or self.config.one_territory else {"territory": set()}
        for chunk in self.chunks["users"] if values else []:
            for rows in self._read("users", chunk, only=list(values)):
                for name, found in values.items():
                    found |= set(pc.unique(rows[name]).to_pylist())
        return {name: sorted(found - {None}) for name, found in values.items()}

    @cached_property
    def day_counts(self) -> DayCounts:
        """Events by day, from one pass over their times."""
        days = DayCounts()
        for chunk in self.chunks["events"]:
            for rows in self._read("events", chunk, only=["timestamp"]):
                days.add(rows["timestamp"])
        return days

    @cached_property
    def _days(self) -> tuple[datetime, datetime]:
        """Days of the events, without wild timestamps, and of the window that the settings name."""
        days, config = self.day_counts, self.config
        paths = self.files["events"].paths
        where = f"{paths[0]}{f' and {len(paths) - 1} more files' if len(paths) > 1 else ''}"
        where += f": column {self._raw_names('events')['timestamp']!r}"
        days.check_seconds(where)
        start, end = config.window_start, config.window_end
        found = days.believable() or ((to_utc(start), to_utc(end)) if start and end else None)
        if not found:
            raise UserError(f"{where}: no event has a valid time: check timestamp_unit")
        if found[1] < FIRST_PLAUSIBLE and not (start and end):
            raise UserError(
                f"{where}: all events are of {found[0]:%Y-%m-%d} to {found[1]:%Y-%m-%d}: set timestamp_unit (it is "
                f"{config.timestamp_unit!r}); if they are, set window_start and window_end"
            )
        after = to_utc(end) + timedelta(days=config.num_evaluation_days) if end else found[1]
        return min(found[0], to_utc(start or found[0])), max(found[1], after)

    def _rows_of_files(self) -> list[tuple[str, str, int]]:
        """(table, path, rows) of every file that is read."""
        rows: dict[tuple[str, str], int] = {}
        for table, files in self.files.items():
            rows |= {(table, files.shown(path)): 0 for path in files.paths}
            for chunk in self.chunks[table]:
                rows[table, files.shown(chunk.path)] += chunk.num_rows
        return [(table, path, count) for (table, path), count in rows.items()]

    def _notes(self) -> list[str]:
        """Files that are not read, and columns that some files lack."""
        notes = []
        for table, files in self.files.items():
            if files.left_out:
                notes.append(f"{table}: not read: {_listed(map(files.shown, files.left_out))}")
            names_of = {files.shown(chunk.path): chunk.names for chunk in self.chunks[table]}
            for name, raw in self._raw_names(table).items():
                lacking = [path for path, names in names_of.items() if raw not in names]
                if 0 < len(lacking) < len(names_of):
                    notes.append(f"{table}: {name} is missing in {_listed(lacking)}")
        return notes


def first_rows(rows: pa.Table, key: str) -> pa.Table:
    """The first row of each value of `key`, in their order."""
    numbered = rows.select([key]).append_column("row", pa.array(range(rows.num_rows), pa.int64()))
    first = numbered.group_by(key).aggregate([("row", "min")])["row_min"].combine_chunks()
    return rows.take(first.sort())


def _listed(paths: Iterable[str]) -> str:
    paths = list(paths)
    more = len(paths) - NUM_NAMED
    return ", ".join(paths[:NUM_NAMED]) + f" and {more} more" * (more > 0)


def _without_far(name: str, times: Column) -> Column:
    """Promotion dates with null for 'since ever' and 'for ever', as in 9999-12-31."""
    far = pc.less(times, pa.scalar(FIRST_TIMESTAMP)) if name == PROMOTION[0] else None
    far = pc.greater_equal(times, pa.scalar(AFTER_LAST_TIMESTAMP)) if far is None else far
    return pc.if_else(far, None, times)

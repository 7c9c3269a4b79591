"""Territories, the training window and evaluation days, and timestamps of any unit."""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Collection
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from mtrec_ray.errors import UserError
from mtrec_ray.sources.values import MISSING

DAY_S = 86_400
ACTIVE_DAYS = 90  # An active user has an event in this many last days of the training window
TIMESTAMP = pa.timestamp("us", tz="UTC")
FIRST_TIMESTAMP = datetime(1970, 1, 1, tzinfo=UTC)  # The first that a lake accepts
FIRST_PLAUSIBLE = datetime(1980, 1, 1, tzinfo=UTC)  # If all are before, they are of another unit, or no dates
AFTER_LAST_TIMESTAMP = datetime(2200, 1, 1, tzinfo=UTC)
UNORDERED = "all events carry one timestamp: leave-one-out takes the last rows of each user in the files"
MIN_GAP_DAYS = 30
NUM_DISTINCT = 100  # More than the wild timestamps of events that otherwise carry one
MAX_SAMPLE = 1_000  # Times that show whether float32 held them
CLOCK_DAYS = [0, (2**31 - 1) // DAY_S, (2**32 - 1) // DAY_S]  # 1970-01-01, the ends of signed and unsigned 32-bit time
MAX_FEW = 5  # Events at either end that may be wild where one in a hundred is less
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_799_000_000
"""0001-01-01 and 9999-12-31T23:59:59, the bounds of Python's datetime."""


class Territory(BaseModel, frozen=True, extra="forbid"):
    name: str
    region: str  # Geographic region, the unit of `groups: regions`


class Calendar(BaseModel, frozen=True, extra="forbid"):
    """The training window [start, end) and the evaluation days that follow it, UTC."""

    window_start: datetime
    window_end: datetime
    day_s: int = DAY_S  # Length of an evaluation day in seconds
    num_evaluation_days: int = 3
    ordered: bool = True  # False: all events of the window carry one timestamp, so their order is that of the files

    def day_bounds(self, day: int) -> tuple[datetime, datetime]:
        """[start, end) of an evaluation day, counted from 1; 0 is the training window."""
        if day == 0:
            return self.window_start, self.window_end
        length = timedelta(seconds=self.day_s)
        return self.window_end + (day - 1) * length, self.window_end + day * length


def propose_calendar(
    data: tuple[datetime, datetime],
    day_s: int,
    num_evaluation_days: int,
    fix: str,
    start: datetime | None = None,
    end: datetime | None = None,
    ordered: bool = True,
) -> Calendar:
    """Window [start, end) and evaluation days of the days [first, after last) of `data`.

    By default the window starts with the data and the evaluation days end with it. UserError if no window is left;
    `fix` is what to change. Data that is not `ordered` has one timestamp, and no evaluation days.
    """
    if not ordered and num_evaluation_days and not end:
        day = f"{data[0]:%Y-%m-%d}"
        raise UserError(f"all events carry one timestamp, of {day}, so none are later: set num_evaluation_days=0")
    start = to_utc(start or data[0])
    end = to_utc(end or data[1] - timedelta(seconds=day_s * num_evaluation_days))
    if end <= start:
        raise UserError(
            f"{num_evaluation_days} evaluation days of {day_s / DAY_S:g} days leave no training window: it would start "
            f"at {start} and end at {end}; {fix}"
        )
    days = {"day_s": day_s, "num_evaluation_days": num_evaluation_days}
    return Calendar(window_start=start, window_end=end, ordered=ordered, **days)


class DayCounts:
    """Numbers of events by day since 1970, from which a window is proposed."""

    def __init__(self) -> None:
        self.counts = np.zeros((AFTER_LAST_TIMESTAMP - FIRST_TIMESTAMP).days, np.int64)
        self.distinct: set[datetime] = set()  # Some timestamps, at least `NUM_DISTINCT` if there are so many
        self.sample_us = np.empty(0, np.int64)  # The first times

    def add(self, times: pa.ChunkedArray | pa.Array) -> None:
        """Count timestamps (us, UTC); nulls and those that no lake accepts are left out."""
        micros = np.asarray(pc.fill_null(times.cast(pa.int64()), -1))
        days = micros // (DAY_S * 1_000_000)
        inside = (days >= 0) & (days < len(self.counts))
        self.counts += np.bincount(days[inside], minlength=len(self.counts))
        missing = MAX_SAMPLE - len(self.sample_us)
        self.sample_us = np.concatenate([self.sample_us, micros[inside][:missing]])
        if len(self.distinct) < NUM_DISTINCT:
            known = times.filter(pa.array(inside))
            self.distinct |= set(pc.unique(known)[:NUM_DISTINCT].to_pylist())

    @property
    def were_float32(self) -> bool:
        """The times are numbers that float32 holds (every 128th second) or writes as text.

        So are some times of full minutes, hours or days, which float32 would not leave.
        """
        sample_us = np.unique(self.sample_us[self.sample_us >= FIRST_PLAUSIBLE.timestamp() * 1_000_000])
        if not (sample_us % 300_000_000).any():  # of five minutes
            return False
        for unit_us in (1_000_000, 1_000):  # seconds, milliseconds
            numbers = sample_us / unit_us
            held = numbers.astype(np.float32)
            written = pa.array(held).cast(pa.string()).cast(pa.float64()).to_numpy()
            if len(numbers) >= 8 and (held == numbers).all():
                return True
            if len(numbers) >= 64 and (written == numbers).mean() > 0.95:
                return True
        return False

    def check_seconds(self, where: str) -> None:
        """UserError if the times `were_float32`; `where` names file and column."""
        if self.were_float32:
            raise UserError(
                f"{where}: the times were float32 once, which holds every 128th second: write integers, float64 or "
                "timestamps from the start"
            )

    def believable(self) -> tuple[datetime, datetime] | None:
        """[first day, day after the last) without wild timestamps; None without events.

        Wild are a few events, at most one in a hundred at either end, that are further from all others than those
        are from each other, and further than `MIN_GAP_DAYS`. Of the days that broken clocks and missing values have
        (`CLOCK_DAYS`), so are any number.
        """
        if not self.counts.any():
            return None
        usual = self.counts.copy()
        usual[CLOCK_DAYS] = 0
        usual = usual if usual.any() else self.counts
        days = np.flatnonzero(usual)
        before = np.cumsum(usual[days])
        total = int(before[-1])
        few = max(total // 100, min(MAX_FEW, total // 10))
        low, high = np.searchsorted(before, [few, total - few - 1], side="right")
        gap = max(days[high] - days[low], MIN_GAP_DAYS)
        wide = np.flatnonzero(np.diff(days) > gap)  # the gap after each of these days
        first = max((int(i) + 1 for i in wide if i < low), default=0)
        last = min((int(i) for i in wide if i >= high), default=len(days) - 1)
        near = [day for day in CLOCK_DAYS if self.counts[day] and days[first] - gap <= day <= days[last] + gap]
        bounds = min([days[first], *near]), max([days[last], *near]) + 1
        start, end = (FIRST_TIMESTAMP + timedelta(days=int(day)) for day in bounds)
        return start, end

    def ordered(self) -> bool:
        """Whether the believable events have more than one timestamp."""
        days = self.believable()
        return (
            len(self.distinct) >= NUM_DISTINCT or sum(bool(days and days[0] <= t < days[1]) for t in self.distinct) > 1
        )


def out_of_range(
    times: pa.ChunkedArray | pa.Array, start: datetime = FIRST_TIMESTAMP, end: datetime = AFTER_LAST_TIMESTAMP
) -> pa.ChunkedArray:
    """(rows,) bool: not in [start, end), by default what a lake accepts; null where null."""
    return pc.or_(pc.less(times, pa.scalar(start, times.type)), pc.greater_equal(times, pa.scalar(end, times.type)))


def to_utc(time: datetime) -> datetime:
    """A time in UTC; one without a time zone is taken as UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def timestamps_from_epoch(values: np.ndarray, unit: str, missing: np.ndarray | None = None) -> pa.Array:
    """Timestamps (us, UTC) of epoch numbers in `unit`; NaN and `missing` become null.

    Impossible ones become year 1 or 9999, to be rejected by the build.
    """
    scale = 1_000_000 / TICKS_PER_SECOND[unit]
    approximate = values.astype(np.float64) * scale
    inside = (approximate > _MIN_US) & (approximate < _MAX_US)
    micros = np.where(approximate > 0, _MAX_US, _MIN_US).astype(np.int64)
    if values.dtype.kind == "f":
        micros[inside] = np.round(values[inside] * scale).astype(np.int64)
    else:  # exact where float64 is not
        whole = values[inside].astype(np.int64)
        micros[inside] = whole // 1_000 if unit == "ns" else whole * int(scale)
    mask = np.isnan(approximate)
    return pa.array(micros, mask=mask if missing is None else mask | missing).cast(TIMESTAMP)


def to_utc_micros(
    column: pa.ChunkedArray | pa.Array, unit: str, missing: Collection[str] = MISSING
) -> pa.ChunkedArray | pa.Array:
    """Timestamps (us, UTC) of timestamps, dates, ISO 8601 texts, or epoch numbers in `unit`.

    Blank texts and those of `missing` become null; finer parts of a second are cut off; a time without a zone is in
    UTC. UserError: another type, text that is no time, or numbers that have lost seconds or look like dates.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_utc_micros(column.cast(kind.value_type), unit, missing)
    if pa.types.is_null(kind) or kind == pa.date32():
        return column.cast(pa.timestamp("us")).cast(TIMESTAMP)
    if pa.types.is_timestamp(kind) or kind == pa.date64():
        column = column.cast(pa.timestamp("ms")) if kind == pa.date64() else column
        if column.type.unit == "us":
            return column.cast(TIMESTAMP)
        return _times_of_numbers(column.cast(pa.int64()), column.type.unit)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        return _times_of_texts(pc.if_else(pc.is_in(texts, value_set=pa.array(["", *missing])), None, texts), unit)
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64() if kind.scale else pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(f"times of type {kind} cannot be read: write timestamps, ISO 8601 text, or epoch numbers")
    return _times_of_numbers(column, unit)


def _times_of_texts(texts: pa.ChunkedArray | pa.Array, unit: str) -> pa.ChunkedArray | pa.Array:
    if texts.null_count == len(texts):
        return texts.cast(TIMESTAMP)
    is_number = pc.match_substring_regex(texts, r"^[+-]?\d+(\.\d*)?([eE][+-]?\d+)?$")
    if pc.all(is_number).as_py():
        short = texts.filter(pc.match_substring_regex(texts, r"[eE]\+?(0?\d|1[0-4])$"))
        if len(short):
            raise UserError(f"{short[0].as_py()!r} has lost seconds: write times with all digits")
        whole = pc.replace_substring_regex(texts, r"\.0*$", "")
        are_whole = pc.all(pc.match_substring_regex(whole, r"^[+-]?\d+$")).as_py()
        return to_utc_micros(whole.cast(pa.int64()) if are_whole else texts.cast(pa.float64()), unit)
    texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    texts = pc.replace_substring_regex(texts, r" ?(UTC|GMT)$", "Z")
    has_zone = pc.match_substring_regex(texts, r"\d(Z|[+-]\d\d(:?\d\d)?)$")
    has_zone = pc.and_(has_zone, pc.match_substring(texts, ":"))  # 2022-01-05 ends like a zone
    try:
        zoned = pc.if_else(has_zone, texts, None).cast(TIMESTAMP)
        return pc.coalesce(zoned, pc.if_else(has_zone, None, texts).cast(pa.timestamp("us")).cast(TIMESTAMP))
    except pa.ArrowInvalid as error:
        wrong = str(error).partition("'")[2].partition("'")[0]
        raise UserError(f"{wrong!r} is no time: write 2022-01-31T10:00:00Z, or epoch numbers throughout") from error


def _times_of_numbers(column: pa.ChunkedArray | pa.Array, unit: str) -> pa.Array:
    numbers, missing = np.asarray(column.fill_null(0)), np.asarray(column.is_null())
    found = numbers[~missing & np.isfinite(numbers)]
    limit = {"float16": 2**11, "float32": 2**24}.get(str(numbers.dtype))
    if len(found) and limit and np.abs(found).max() > limit:
        raise UserError(f"{numbers.dtype} numbers do not hold every second: write int64, float64 or timestamps")
    if len(found) and unit == "s" and _are_dates(found):
        raise UserError(f"{int(found[0])} looks like a date, not like seconds: write 2022-01-31, or epoch numbers")
    return timestamps_from_epoch(numbers, unit, missing)


def _are_dates(numbers: np.ndarray) -> bool:
    """All are of the form 20220131; as seconds they would all be in August 1970."""
    if not (numbers.min() >= 19_000_101 and numbers.max() <= 22_001_231):
        return False
    month, day = numbers // 100 % 100, numbers % 100
    return bool(((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all())

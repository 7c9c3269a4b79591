"""Epoch numbers to timestamps without ever overflowing: what cannot be a moment stays visible as a bad row."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import UserError

TIMESTAMP = pa.timestamp("us", tz="UTC")
FIRST_TIMESTAMP = datetime(1970, 1, 1, tzinfo=UTC)
AFTER_LAST_TIMESTAMP = datetime(2200, 1, 1, tzinfo=UTC)
"""Moments from `FIRST_TIMESTAMP` up to this one are believable; a lake accepts no others."""
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_FIRST_US = -62_135_596_800_000_000
"""0001-01-01, the first moment that Python can name."""
_LAST_US = 253_402_300_799_000_000
"""9999-12-31T23:59:59, the last one."""


def timestamps_from_epoch(values: np.ndarray, unit: str) -> pa.Array:
    """Timestamps (us, UTC) of epoch numbers in `unit`; NaN becomes null; years outside 1 to 9999 become the nearer end.

    Raises:
        UserError: unknown unit.
    """
    if unit not in TICKS_PER_SECOND:
        raise UserError(f"timestamp unit {unit!r} is not one of {', '.join(TICKS_PER_SECOND)}")
    values = np.asarray(values)
    scale = 1_000_000 / TICKS_PER_SECOND[unit]
    approximate = values.astype(np.float64) * scale
    missing = np.isnan(approximate)
    inside = (approximate > _FIRST_US) & (approximate < _LAST_US)
    micros = np.where(approximate > 0, _LAST_US, _FIRST_US).astype(np.int64)
    micros[inside] = _exact_micros(values[inside], unit)
    return pa.array(micros, mask=missing).cast(TIMESTAMP)


def to_utc_micros(column: pa.ChunkedArray | pa.Array, unit: str) -> pa.ChunkedArray | pa.Array:
    """Any timestamp or number column as timestamps (us, UTC); `unit` is that of plain numbers.

    Raises:
        UserError: the column holds neither timestamps nor numbers.
    """
    if pa.types.is_timestamp(column.type):
        if column.type.unit != "us":
            return timestamps_from_epoch(_numbers(column.cast(pa.int64())), column.type.unit)
        return column.cast(TIMESTAMP)
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        return timestamps_from_epoch(_numbers(column), unit)
    raise UserError(
        f"timestamps of type {column.type} cannot be read: use a timestamp type, or epoch numbers and their unit"
    )


def epoch_us(moment: datetime) -> int:
    """Whole microseconds since 1970 of a moment; a naive one is taken as UTC."""
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _exact_micros(values: np.ndarray, unit: str) -> np.ndarray:
    if values.dtype.kind == "f":
        return np.round(values * (1_000_000 / TICKS_PER_SECOND[unit])).astype(np.int64)
    whole = values.astype(np.int64)
    return whole // 1_000 if unit == "ns" else whole * (1_000_000 // TICKS_PER_SECOND[unit])


def _numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Missing values become NaN."""
    chunked = pa.chunked_array([column]) if isinstance(column, pa.Array) else column
    return (chunked.cast(pa.float64(), safe=False) if chunked.null_count else chunked).to_numpy()

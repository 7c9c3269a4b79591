"""Epoch numbers to timestamps; impossible ones become year 1 or 9999, to be rejected."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import UserError

TIMESTAMP = pa.timestamp("us", tz="UTC")
FIRST_TIMESTAMP = datetime(1970, 1, 1, tzinfo=UTC)
AFTER_LAST_TIMESTAMP = datetime(2200, 1, 1, tzinfo=UTC)
"""A lake accepts timestamps from `FIRST_TIMESTAMP` up to, not including, this one."""
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_MIN_US, _MAX_US = -62_135_596_800_000_000, 253_402_300_799_000_000
"""0001-01-01 and 9999-12-31T23:59:59, the bounds of Python's datetime."""


def timestamps_from_epoch(values: np.ndarray, unit: str) -> pa.Array:
    """Timestamps (us, UTC) of epoch numbers in `unit`; NaN becomes null, nothing overflows."""
    scale = 1_000_000 / TICKS_PER_SECOND[unit]
    approximate = values.astype(np.float64) * scale
    inside = (approximate > _MIN_US) & (approximate < _MAX_US)
    micros = np.where(approximate > 0, _MAX_US, _MIN_US).astype(np.int64)
    if values.dtype.kind == "f":
        micros[inside] = np.round(values[inside] * scale).astype(np.int64)
    else:  # exact where float64 is not
        whole = values[inside].astype(np.int64)
        micros[inside] = whole // 1_000 if unit == "ns" else whole * int(scale)
    return pa.array(micros, mask=np.isnan(approximate)).cast(TIMESTAMP)


def to_utc_micros(column: pa.ChunkedArray | pa.Array, unit: str) -> pa.ChunkedArray | pa.Array:
    """Timestamps (us, UTC) of a column of timestamps, or of epoch numbers in `unit`."""
    if pa.types.is_timestamp(column.type):
        if column.type.unit == "us":
            return column.cast(TIMESTAMP)
        unit, column = column.type.unit, column.cast(pa.int64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise UserError(
            f"timestamps of type {column.type} cannot be read: use a timestamp type, or epoch numbers and their unit"
        )
    numbers = column.cast(pa.float64(), safe=False) if column.null_count else column  # a null becomes NaN
    return timestamps_from_epoch(np.asarray(numbers), unit)

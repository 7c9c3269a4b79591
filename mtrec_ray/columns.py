"""Matrices as FixedSizeBinary columns, the fastest to read; rows of dataclasses of arrays."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

MAX_CELLS = 4_000_000  # users x titles of a chunk
Rows = TypeVar("Rows", bound=Any)  # a dataclass of arrays with one row a user


def fixed_width_column(matrix: np.ndarray, dtype: type[np.generic] = np.float16) -> pa.Array:
    """Column of an (N, width) matrix, cast to `dtype`."""
    matrix = np.ascontiguousarray(matrix, dtype=dtype)
    width = matrix.itemsize * matrix.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(matrix), [None, pa.py_buffer(matrix.tobytes())])


def fixed_width_matrix(column: pa.ChunkedArray | pa.Array, dtype: type[np.generic] = np.float16) -> np.ndarray:
    """Read-only (N, width) view of a column without nulls."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = column.type.byte_width // np.dtype(dtype).itemsize
    buffer = column.buffers()[1]
    if buffer is None or not len(column):
        return np.zeros((0, width), dtype=dtype)
    flat = np.frombuffer(buffer, dtype=dtype, count=(column.offset + len(column)) * width)
    return flat.reshape(-1, width)[column.offset :]


def take_rows(users: Rows, rows: np.ndarray | slice, unchanged: Sequence[str] = ()) -> Rows:
    """The given rows, a mask, indices or slice, of the fields but `unchanged` ones and None."""
    names = _fields_with_rows(users, unchanged)
    return replace(users, **{name: getattr(users, name)[rows] for name in names})


def concatenate_rows(parts: Sequence[Rows], unchanged: Sequence[str] = ()) -> Rows:
    """The rows of all parts; the first part's fields where they are `unchanged`."""
    names = _fields_with_rows(parts[0], unchanged)
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _fields_with_rows(users: Any, unchanged: Sequence[str]) -> list[str]:
    names = [field.name for field in fields(users) if field.name not in unchanged]
    return [name for name in names if getattr(users, name) is not None]

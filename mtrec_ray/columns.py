"""Matrices as FixedSizeBinary columns, the fastest layout to read."""

import numpy as np
import pyarrow as pa


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

"""Matrices as FixedSizeBinary columns: the layout that reads fastest."""

import numpy as np
import pyarrow as pa


def fixed_width_column(matrix: np.ndarray, dtype: type[np.generic] = np.float16) -> pa.Array:
    """FixedSizeBinary column of an (N, width) matrix, cast to `dtype`."""
    matrix = np.ascontiguousarray(matrix, dtype=dtype)
    width = matrix.itemsize * matrix.shape[1]
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(matrix), [None, pa.py_buffer(matrix.tobytes())])


def fixed_width_matrix(column: pa.ChunkedArray | pa.Array, dtype: type[np.generic] = np.float16) -> np.ndarray:
    """(N, width) view of a FixedSizeBinary column of `width` numbers a row, no nulls; read-only, no copy per row."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    width = column.type.byte_width // np.dtype(dtype).itemsize
    _, buffer = column.buffers()
    if buffer is None or len(column) == 0:
        return np.zeros((0, width), dtype=dtype)
    flat = np.frombuffer(buffer, dtype=dtype, count=(column.offset + len(column)) * width)
    return flat.reshape(-1, width)[column.offset :]

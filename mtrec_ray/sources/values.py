"""One form for the values of raw columns, whatever tool wrote them.

Ids and labels become text: whole numbers without a decimal point (`7`, `7.0` and "7.00" are one id), UUIDs in their
usual form, text without spaces at its ends. Missing are null, NaN, empty and blank text, and the texts of `MISSING`.
"""

# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Callable, Collection
from typing import TypeAlias
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from mtrec_ray.errors import UserError

MISSING = ("nan", "NaN", "<NA>", "NaT", "None", "null", "NULL", "\\N")
"""Texts that pandas, Polars, Spark, DuckDB and Hive write for a missing value."""
WHOLE = r"^([+-]?\d+)\.0*$"
EXPONENT = r"^[+-]?\d(\.\d+[eE][+-]?|[eE][+-])\d+$"
BYTES = r"^b'.*'$"
EXTENSIONS = ("arrow.uuid", "arrow.fixed_shape_tensor")
MAX_EXACT = {"halffloat": 2**11, "float": 2**24, "double": 2**53}  # Larger whole numbers share a float with others
Column: TypeAlias = pa.ChunkedArray | pa.Array


def id_text(column: Column, missing: Collection[str] = MISSING) -> pa.Array:
    """Ids as text, null = missing; UserError: a type or number that is no exact id."""
    return _by_distinct(column, lambda distinct: _id_text(distinct, missing))


def label_text(column: Column, missing: Collection[str] = MISSING) -> pa.Array:
    """Values of a category as text, null = missing; UserError as of `id_text`."""
    return _by_distinct(column, lambda distinct: _label_text(distinct, missing))


def free_text(column: Column) -> pa.Array:
    """Text as it is, null where it is blank or not there; lists are joined by `|`."""
    array = plain(column)
    if _is_list(array.type):
        array = pc.binary_join(array.cast(pa.list_(pa.string())), "|")
    if kinds.is_floating(array.type) and _without_nan(array).null_count == len(array):
        array = pa.nulls(len(array), pa.string())
    texts = _to_string(array)
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(texts), ""), None, texts)


def text_lists(column: Column, of_one: Callable[[Column], pa.Array]) -> pa.Array:
    """Lists of ids or labels, read by `of_one`; of a text, JSON or words between `|`."""
    array = plain(column)
    if not _is_list(array.type):
        array = pa.array([_split_text(text) for text in _to_string(array).to_pylist()], pa.list_(pa.string()))
    array = array.cast(pa.list_(array.type.value_type))
    values = of_one(array.flatten())
    lengths = np.asarray(array.value_lengths().fill_null(0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, values, mask=array.is_null())


def embedding_bytes(column: Column) -> pa.Array:
    """Lists of numbers or float16 bytes, of any layout and width, as float16 bytes."""
    array = plain(column)
    kind = array.type
    if kinds.is_null(kind):
        return array.cast(pa.binary())
    if kinds.is_binary(kind) or kinds.is_fixed_size_binary(kind) or kinds.is_large_binary(kind):
        return array.cast(pa.binary())
    if not (_is_list(kind) and (kinds.is_integer(kind.value_type) or kinds.is_floating(kind.value_type))):
        raise UserError(f"embeddings of type {kind} cannot be read: write lists of numbers, or float16 bytes")
    array = array.cast(pa.list_(kind.value_type))
    numbers = array.flatten().to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        data = np.ascontiguousarray(numbers, dtype=np.float16).tobytes()
    lengths = np.asarray(array.value_lengths().fill_null(0), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(2 * lengths)]).astype(np.int32)
    validity = np.packbits(np.asarray(array.is_valid()), bitorder="little")
    return pa.Array.from_buffers(pa.binary(), len(array), [pa.py_buffer(part) for part in (validity, offsets, data)])


def plain(column: Column) -> pa.Array:
    """One array without dictionary and extension types."""
    array = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    if isinstance(array, pa.ChunkedArray):
        array = pa.array([], array.type)
    if kinds.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not isinstance(array.type, pa.BaseExtensionType):
        return array
    if array.type.extension_name not in EXTENSIONS:  # the storage of a period, say, is a number of no meaning
        raise _unreadable(array.type)
    return plain(array.storage)


def _by_distinct(column: Column, convert: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """`convert` of a column, once for each distinct value."""
    array = plain(column)
    if kinds.is_nested(array.type):
        raise _unreadable(array.type)
    if kinds.is_null(array.type):
        return array.cast(pa.string())
    for view, large in ((kinds.is_binary_view, pa.large_binary()), (kinds.is_string_view, pa.large_string())):
        array = array.cast(large) if view(array.type) else array
    encoded = array.dictionary_encode()
    is_uuid = isinstance(column.type, pa.BaseExtensionType) and column.type.extension_name == "arrow.uuid"
    distinct = _uuid_text(encoded.dictionary) if is_uuid else encoded.dictionary
    return convert(distinct).take(encoded.indices)


def _id_text(values: pa.Array, missing: Collection[str]) -> pa.Array:
    kind = values.type
    if kinds.is_boolean(kind) or kinds.is_temporal(kind):
        raise UserError(f"ids of type {kind} cannot be read: write them as integers or text")
    if kinds.is_floating(kind):
        values = _without_nan(values)
        fractions = values.filter(pc.not_equal(pc.floor(values), values))
        if len(fractions):
            raise UserError(f"{fractions[0]} is no id: write ids as integers or text")
    texts = _texts(values, missing)
    for pattern, was in ((EXPONENT, "a number that has lost digits"), (BYTES, "Python bytes, which should be decoded")):
        odd = texts.filter(pc.match_substring_regex(texts, pattern))
        if len(odd):
            raise UserError(f"{odd[0].as_py()!r} was {was}: write ids as integers or text")
    return texts


def _label_text(values: pa.Array, missing: Collection[str]) -> pa.Array:
    texts = _texts(_without_nan(values) if kinds.is_floating(values.type) else values, missing)
    logical = pc.is_in(texts, value_set=pa.array(["True", "TRUE", "False", "FALSE"]))
    return pc.if_else(logical, pc.utf8_lower(texts), texts)


def _texts(values: pa.Array, missing: Collection[str]) -> pa.Array:
    """Numbers and texts as trimmed text, whole numbers without a point."""
    if kinds.is_floating(values.type):
        _check_exact(values)
    texts = pc.replace_substring_regex(pc.utf8_trim_whitespace(_to_string(values)), WHOLE, r"\1")
    absent = pc.is_in(texts, value_set=pa.array(["", *missing], pa.string()))
    return pc.if_else(absent, None, texts)


def _to_string(values: pa.Array) -> pa.Array:
    kind = values.type
    if kinds.is_nested(kind) or kinds.is_time(kind) or kinds.is_duration(kind):
        raise _unreadable(kind)
    if kinds.is_floating(kind):
        whole = pc.equal(pc.floor(values), values)
        whole_texts = pc.if_else(whole, values, None).cast(pa.int64()).cast(pa.string())
        return pc.coalesce(whole_texts, values.cast(pa.string()))
    try:
        return values.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise UserError(f"values of type {kind} are no UTF-8 text: write them as text") from error


def _without_nan(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(values), None, values)


def _check_exact(values: pa.Array) -> None:
    """UserError where whole numbers are too large for their float type."""
    limit = MAX_EXACT[str(values.type)]
    large = values.filter(pc.greater(pc.abs(values.cast(pa.float64())), limit))
    if len(large):
        example = f"{large[0].as_py():.0f}"
        raise UserError(f"{example} of type {values.type} may have lost digits: write integers or text")


def _is_list(kind: pa.DataType) -> bool:
    return kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind)


def _split_text(text: str | None) -> list[str] | None:
    if text is None or not text.strip():
        return None
    if not text.lstrip().startswith("["):
        return text.split("|")
    try:
        return [str(value) for value in json.loads(text)]
    except ValueError as error:
        raise UserError(f"{text[:80]!r} is no list: write words between |, or a JSON list") from error


def _uuid_text(storage: pa.Array) -> pa.Array:
    """16 bytes as `8-4-4-4-12` hex digits."""
    return pa.array([None if data is None else str(UUID(bytes=data)) for data in storage.to_pylist()], pa.string())


def _unreadable(kind: pa.DataType) -> UserError:
    return UserError(f"values of type {kind} cannot be read: write text or whole numbers")

"""Canonical columns of the lake's tables, and the conversion of raw tables to them.

Titles without `territories` are offered everywhere; `promoted_from` and `promoted_until` may be absent (no limit).
"""

# pyright: reportAttributeAccessIssue=false

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import TIMESTAMP, to_utc_micros
from mtrec_ray.sources.source import OPTIONAL_OF_TITLES, PROMOTION, DataFacts
from mtrec_ray.sources.values import embedding_bytes

STRINGS = pa.list_(pa.string())


def required_columns(table: str, facts: DataFacts, promoted: bool = False) -> dict[str, pa.DataType]:
    """Name and stored type of each column of `table`, in stored order.

    `promoted`: titles have the columns of `PROMOTION`.
    """
    string, width = pa.string(), embedding_width(table, facts)
    columns = {
        "users": dict.fromkeys(["user_id", "territory", *facts.attributes], string),
        "events": {"user_id": string, "title_id": string, "timestamp": TIMESTAMP},
        "titles": dict.fromkeys(["title_id", "name", "genres", "synopsis", *facts.title_categoricals], string)
        | {"territories": STRINGS}
        | dict.fromkeys(PROMOTION if promoted else (), TIMESTAMP),
        "candidates": {"user_id": string, "title_ids": STRINGS},
    }[table]
    return columns | ({"embedding": pa.binary(2 * width)} if width else {})


def embedding_width(table: str, facts: DataFacts) -> int:
    """Declared width of the table's embeddings; 0 = none."""
    return {"users": facts.embeddings.user_width, "titles": facts.embeddings.title_width}.get(table, 0)


def conform(table: str, rows: pa.Table, facts: DataFacts, partial: bool = False) -> pa.Table:
    """Rows with canonical columns, types and order; embeddings become `binary`, of any width.

    With `partial`, columns may still be missing, for `complete_bucket` to fill. UserError: a column is missing or of a
    type that cannot be converted.
    """
    promoted, columns = not set(PROMOTION).isdisjoint(rows.column_names), {}
    for name, kind in required_columns(table, facts, promoted).items():
        if name in rows.column_names:
            columns[name] = _convert(table, name, rows[name], kind)
        elif table == "titles" and name in OPTIONAL_OF_TITLES:
            columns[name] = _convert(table, name, pa.nulls(rows.num_rows, kind), kind)
        elif not partial:
            raise UserError(f"{table}: column {name!r} is missing; there are {', '.join(rows.column_names)}")
    return pa.table(columns)


def stored_embeddings(column: pa.ChunkedArray, width: int) -> pa.Array:
    """`binary` rows, all of the right width, as FixedSizeBinary(2 * width), the stored layout."""
    kind = pa.binary(2 * width)
    return pa.concat_arrays([chunk.cast(kind) for chunk in column.chunks] or [pa.array([], kind)])


def offered_in(titles: pa.Table, territories: list[str]) -> np.ndarray:
    """(territories, titles) bool; a title without territories is offered everywhere."""
    lists = titles["territories"].combine_chunks()
    everywhere = pc.fill_null(pc.list_value_length(lists), 0).to_numpy() == 0
    offered = np.repeat(everywhere[None], len(territories), axis=0)
    title = pc.list_parent_indices(lists).to_numpy()
    territory = pc.index_in(pc.list_flatten(lists), value_set=pa.array(territories)).fill_null(-1).to_numpy()
    offered[territory[territory >= 0], title[territory >= 0]] = True
    return offered


def _convert(
    table: str, name: str, column: pa.ChunkedArray | pa.Array, kind: pa.DataType
) -> pa.ChunkedArray | pa.Array:
    try:
        if kind == TIMESTAMP:
            return to_utc_micros(column, "s")
        if name == "embedding":
            return embedding_bytes(column)
        rows = column.cast(kind)
        if name == "territories":
            return pa.array([sorted(names or [], key=lambda s: s or "") for names in rows.to_pylist()], STRINGS)
        return rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise UserError(f"{table}: column {name!r} of type {column.type} cannot become {kind}: {error}") from error

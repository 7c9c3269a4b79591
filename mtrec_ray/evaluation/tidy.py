"""Tidy tables of results, one row an observation, as CSV files and as nested JSON documents."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtrec_ray.files import join, write_file

if TYPE_CHECKING:
    import pandas as pd

VALUE = "value"


def nested(table: "pd.DataFrame", keys: Sequence[str]) -> dict[str, Any]:
    """Nest rows by the values of `keys`, in that order; the other columns are each row's fields.

    Missing fields are left out, a missing `value` is None.
    """
    document: dict[str, Any] = {}
    for row in table.to_dict("records"):
        inner = document
        for key in keys:
            inner = inner.setdefault(str(row.pop(key)), {})
        fields = without_nan(row)
        inner |= {str(name): field for name, field in fields.items() if name == VALUE or field not in (None, "")}
    return document


def without_nan(value: Any) -> Any:
    """The same document with None for NaN, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def write_csv_files(folder: str, tables: "Mapping[str, pd.DataFrame]") -> None:
    """Write each table to `<name>.csv` in a local folder or `pyarrow.fs` URI; each atomically."""
    for name, table in tables.items():
        write_file(join(folder, f"{name}.csv"), table.to_csv(index=False).encode())

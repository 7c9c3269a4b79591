"""Paper B's user attributes: what the numbers of `gender`, `old` and `power` mean.

Every row repeats its user's attributes. 0, an empty field and `nan` mean unknown; other rows of the user may have the
value.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import AGE_BANDS, age_band

UNKNOWN = -1
UNKNOWN_TEXTS = ("", "nan", "none", "null", "na", "0", "0.0")
OLDEST = 120
LEVELS = tuple("123456789")
DECADES = ("10-19", "20-29", "30-39", "40-49", "50-59")
"""Bands of paper B's code, where younger and older users are unknown."""


@dataclass(frozen=True)
class AttributeColumn:
    """One attribute and how its column is read."""

    name: str
    column: str
    meaning: str
    """What a number should be, for an error."""
    values: tuple[str, ...]
    codes: tuple[int, ...]
    """Index into `values` of each number from 1 on, -1 = unknown."""

    def encode(self, column: pa.ChunkedArray, line: Callable[[int], str]) -> np.ndarray:
        """(rows,) int8 index into `values`, -1 = unknown; `23` and `23.0` are the same.

        Raises:
            UserError: a text is no number, or one without meaning; names the line, given by `line(row)`.
        """
        codes = dict.fromkeys(UNKNOWN_TEXTS, UNKNOWN)
        for number, code in enumerate(self.codes, start=1):
            codes |= {str(number): code, f"{number}.0": code}
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        index = pc.index_in(texts, value_set=pa.array(codes))
        if index.null_count:
            row = pc.index(index.is_null(), True).as_py()
            raise UserError(
                f"{line(row)}: {self.column} is {column[row].as_py()!r}, should be {self.meaning}, or 0 or empty "
                "where it is unknown: fix the line"
            )
        return np.array(list(codes.values()), np.int8)[index.to_numpy()]


def attribute_column(name: str, gender_values: list[str], age_bands: str) -> AttributeColumn:
    """How `gender`, `age` or `power` is read; `age_bands` as in `ReChorusConfig`."""
    if name == "gender":
        return AttributeColumn(name, "gender", "1 or 2", tuple(gender_values), (0, 1))
    column = "old" if name == "age" else name
    if name == "power" or age_bands == "levels":
        return AttributeColumn(name, column, "1 to 9", LEVELS, tuple(range(len(LEVELS))))
    years = range(1, OLDEST + 1)
    if age_bands == "decades":
        values, codes = DECADES, [year // 10 - 1 if 10 <= year < 60 else UNKNOWN for year in years]
    else:
        values = tuple(AGE_BANDS.values())
        codes = [values.index(age_band(year)) for year in years]
    return AttributeColumn(name, column, f"an age in years, 1 to {OLDEST}", values, tuple(codes))

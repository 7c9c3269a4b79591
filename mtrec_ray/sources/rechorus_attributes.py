"""Paper B's user attributes: what the numbers of `gender`, `old` and `power` mean.

Every row repeats its user's attributes. 0, an empty field and `nan` are an unknown value; the user's other rows may
know it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import AGE_BANDS, age_band

UNKNOWN = -1
UNKNOWN_TEXTS = {"", "nan", "none", "null", "na"}
OLDEST = 120
NUM_LEVELS = 9
DECADES = ("10-19", "20-29", "30-39", "40-49", "50-59")
"""Bands of paper B's code; it takes younger and older users as unknown."""


@dataclass(frozen=True)
class Attribute:
    """One attribute, and how its column is read."""

    name: str
    column: str
    meaning: str
    """What a number should be, for an error."""
    values: tuple[str, ...]
    codes: tuple[int, ...]
    """Position in `values` of each number from 0 on, -1 = unknown."""

    def encode(self, texts: pa.Array, line: Callable[[int], str]) -> np.ndarray:
        """(rows,) int8 positions in `values`, -1 = unknown, of a column's texts.

        Args:
            line: file and line number of a row.

        Raises:
            UserError: a text is no number, or one without meaning; names the line.
        """
        found = texts.dictionary_encode()
        codes = [self._code(text) for text in found.dictionary.to_pylist()]
        rows = found.indices.to_numpy(zero_copy_only=False)
        bad = np.array([code is None for code in codes], bool)[rows]
        if bad.any():
            first = int(bad.argmax())
            raise UserError(
                f"{line(first)}: {self.column} is {texts[first].as_py()!r}, should be {self.meaning}, or 0 or empty "
                "where it is unknown: fix the line"
            )
        return np.array(codes, np.int8)[rows]

    def _code(self, text: str) -> int | None:
        """`23` and `23.0` alike; None = without meaning."""
        text = text.strip().lower()
        if text in UNKNOWN_TEXTS:
            return UNKNOWN
        whole = text.removesuffix(".0")
        if not (whole.isascii() and whole.isdigit() and len(whole) < 10) or int(whole) >= len(self.codes):
            return None
        return self.codes[int(whole)]


def gender(values: list[str]) -> Attribute:
    """`gender`: 1, 2."""
    return Attribute("gender", "gender", "1 or 2", tuple(values), (UNKNOWN, 0, 1))


def power() -> Attribute:
    """`power`, the consumption level: 1 to 9."""
    return _levels("power", "power")


def age(bands: str) -> Attribute:
    """`old`: years in the bands of MovieLens 1M (`movielens`) or of paper B's code (`decades`), or `levels` 1 to 9."""
    if bands == "levels":
        return _levels("age", "old")
    values = DECADES if bands == "decades" else tuple(AGE_BANDS.values())
    years = range(1, OLDEST + 1)
    codes = [_decade(year) if bands == "decades" else values.index(age_band(year)) for year in years]
    return Attribute("age", "old", f"an age in years, 1 to {OLDEST}", values, (UNKNOWN, *codes))


def _levels(name: str, column: str) -> Attribute:
    values = tuple(map(str, range(1, NUM_LEVELS + 1)))
    return Attribute(name, column, f"1 to {NUM_LEVELS}", values, (UNKNOWN, *range(NUM_LEVELS)))


def _decade(year: int) -> int:
    return year // 10 - 1 if 10 <= year < 60 else UNKNOWN

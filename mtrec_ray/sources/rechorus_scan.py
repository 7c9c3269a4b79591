"""One pass over ReChorus files: users, attributes, titles, and which rows are events.

Every row repeats its user's attributes. 0, an empty field and `nan` mean unknown; other rows of the user may have the
value. Memory: the users' and titles' ids, one byte a row, and with several files eight more to recognise repeated rows.
"""

# pyright: reportAttributeAccessIssue=false

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix, user_keys
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP
from mtrec_ray.sources.movielens import AGE_BANDS, age_band
from mtrec_ray.sources.rechorus_files import Piece

NUMBER = r"^-?\d{1,17}(\.\d+)?$"
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
    meaning: str  # What a number should be, for an error
    values: tuple[str, ...]
    codes: tuple[int, ...]  # Index into `values` of each number from 1 on, -1 = unknown

    def encode(self, column: pa.ChunkedArray, line: Callable[[int], str]) -> np.ndarray:
        """(rows,) int8 index into `values`, -1 = unknown; `23`, `23.0` and `023` are the same."""
        codes = dict.fromkeys(UNKNOWN_TEXTS, UNKNOWN)
        for number, code in enumerate(self.codes, start=1):
            codes |= {str(number): code, f"{number}.0": code}
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
        texts = pc.replace_substring_regex(texts, r"^0+(\d)", r"\1")
        index = pc.index_in(texts, value_set=pa.array(codes))
        if index.null_count:
            row = pc.index(index.is_null(), True).as_py()
            found = f"{self.column} is {column[row].as_py()!r}, should be {self.meaning}"
            raise UserError(f"{line(row)}: {found}, or 0 or empty where it is unknown: fix the line")
        return np.array(list(codes.values()), np.int8)[index.to_numpy()]


def attribute_column(name: str, age_bands: str) -> AttributeColumn:
    """How `gender`, `age` or `power` is read; `age_bands` as in `ReChorusConfig`."""
    if name == "gender":
        return AttributeColumn(name, "gender", "1 or 2", ("male", "female"), (0, 1))
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


@dataclass
class Scan:
    """What the pass found."""

    users: pa.Table  # `user_id`, and the smallest and largest known code of each attribute: `<name>_min`, `<name>_max`
    title_ids: set[str] = field(default_factory=set)
    first_s: float = np.inf
    last_s: float = -np.inf
    behaviors: Counter = field(default_factory=Counter)  # Rows of each behaviour
    event_masks: list[np.ndarray] = field(default_factory=list)  # For each piece (rows,) bool: the row is an event
    num_repeated: int = 0

    def add_users(self, user_ids: pa.ChunkedArray, codes: dict[str, np.ndarray], mask: np.ndarray) -> None:
        """Add the users of the rows in `mask`; the build rejects rows without an id."""
        mask = pa.array(mask & pc.not_equal(user_ids, "").to_numpy())
        users = pa.concat_tables([self.users, _make_users(user_ids, codes).filter(mask)])
        names = users.column_names[1:]
        merged = users.group_by("user_id").aggregate([(name, name[-3:]) for name in names])
        self.users = merged.select(["user_id", *(f"{n}_{n[-3:]}" for n in names)]).rename_columns(users.column_names)

    def add_events(self, title_ids: pa.ChunkedArray, seconds: np.ndarray, mask: np.ndarray) -> None:
        """Add titles and times of a piece's rows in `mask`, its events."""
        self.event_masks.append(mask)
        self.title_ids |= set(pc.unique(title_ids.filter(pa.array(mask))).to_pylist()) - {""}
        valid = seconds[mask & (seconds >= 0) & (seconds < AFTER_LAST_TIMESTAMP.timestamp())]
        if len(valid):
            self.first_s, self.last_s = min(self.first_s, valid.min()), max(self.last_s, valid.max())


def scan_files(files: list[list[Piece]], attributes: Sequence[AttributeColumn], behaviors: list[str] | None) -> Scan:
    """Read the pieces of every file, in order.

    A row (user, title, time and behaviour) that an earlier file has too is no event; equal rows of one file are
    several events. Rows of other `behaviors` are no events either; None = all are. UserError: a damaged line, a value
    without meaning, or rows of a user that contradict each other.
    """
    no_users = pa.chunked_array([], pa.string())
    scan = Scan(_make_users(no_users, {attribute.name: np.zeros(0, np.int8) for attribute in attributes}))
    identity = ["user_id", "item_id"]
    identity += ["behavior"] * all("behavior" in piece.columns for pieces in files for piece in pieces)
    earlier = np.zeros(1, np.uint64)  # sorted
    for pieces in files:
        keys = []
        for piece in pieces:
            rows = piece.read()
            codes = {a.name: a.encode(rows[a.column], piece.line) for a in attributes}
            seconds = _to_seconds(rows["time"], piece)
            mask = _behavior_mask(rows, behaviors, scan.behaviors)
            scan.add_users(rows["user_id"], codes, mask)
            if len(files) > 1:
                keys.append(mix(seconds.view(np.uint64), *(_text_keys(rows[name]) for name in identity)))
                repeated = mask & (earlier.take(np.searchsorted(earlier, keys[-1]), mode="clip") == keys[-1])
                scan.num_repeated += int(repeated.sum())
                mask &= ~repeated
            scan.add_events(rows["item_id"], seconds, mask)
        earlier = np.sort(np.concatenate([earlier, *keys]))
    _check_contradictions(scan.users, attributes)
    absent = [name for name in behaviors or () if name not in scan.behaviors]
    if absent:
        known = ", ".join(sorted(scan.behaviors))
        raise UserError(f"behaviors names {absent[0]!r}, which never occurs: there are {known}")
    return scan


def _to_seconds(texts: pa.ChunkedArray, piece: Piece) -> np.ndarray:
    """(rows,) float64 seconds since 1970; UserError with the line of another text."""
    is_number = pc.match_substring_regex(texts, NUMBER)
    if not pc.all(is_number).as_py():
        row = pc.index(is_number, False).as_py()
        found = f"time is {texts[row].as_py()!r}, should be seconds since 1970"
        raise UserError(f"{piece.line(row)}: {found}: fix the line")
    return texts.cast(pa.float64()).to_numpy()


def _behavior_mask(rows: pa.Table, behaviors: list[str] | None, counts: Counter) -> np.ndarray:
    """(rows,) bool: of one of `behaviors`; adds all rows to `counts`."""
    if "behavior" in rows.column_names:
        counts.update({found["values"]: found["counts"] for found in pc.value_counts(rows["behavior"]).to_pylist()})
    if behaviors is None:
        return np.ones(rows.num_rows, bool)
    return pc.is_in(rows["behavior"], value_set=pa.array(behaviors)).to_numpy().copy()


def _text_keys(texts: pa.ChunkedArray) -> np.ndarray:
    found = texts.combine_chunks().dictionary_encode()
    return user_keys(found.dictionary.to_numpy(zero_copy_only=False))[found.indices.to_numpy(zero_copy_only=False)]


def _make_users(user_ids: pa.ChunkedArray, codes: dict[str, np.ndarray]) -> pa.Table:
    known = {name: pa.array(code, mask=code == UNKNOWN) for name, code in codes.items()}
    return pa.table({"user_id": user_ids} | {f"{name}_{end}": known[name] for name in known for end in ("min", "max")})


def _check_contradictions(users: pa.Table, attributes: Sequence[AttributeColumn]) -> None:
    for attribute in attributes:
        low, high = (users[f"{attribute.name}_{end}"] for end in ("min", "max"))
        contradictory = users.filter(pc.not_equal(low, high)).sort_by("user_id").to_pylist()
        if contradictory:
            user = contradictory[0]
            values = " and ".join(attribute.values[user[f"{attribute.name}_{end}"]] for end in ("min", "max"))
            raise UserError(
                f"{len(contradictory)} users contradict themselves in {attribute.name}, first {user['user_id']!r}: "
                f"{values}: fix their rows, or set {attribute.column} to 0 where it is not known"
            )

"""One pass over ReChorus files: users, attributes, titles, and which rows are events.

Every row repeats its user's attributes. There 0, an empty field and `nan` mean unknown; other rows of the user may have
the value. Memory: the users' and titles' ids, one byte a row, and with several files eight more to recognise repeated
rows.
"""

# pyright: reportAttributeAccessIssue=false

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix, user_keys
from mtrec_ray.sources.calendar import DayCounts, timestamps_from_epoch
from mtrec_ray.sources.movielens import age_band
from mtrec_ray.sources.text import TextFile

UNKNOWN_TEXTS = ("", "nan", "none", "null", "na", "0", "0.0")
OLDEST = 120
IDS = ("user_id", "item_id", "behavior")  # Columns in which `7`, `7.0` and `"7"` are the same


@dataclass(frozen=True)
class AttributeColumn:
    """One attribute and how its column is read."""

    name: str
    column: str
    meaning: str  # What a number should be, for an error
    numbers: dict[int, str | None]  # Value of each number, None = unknown

    @property
    def values(self) -> list[str]:
        return list(dict.fromkeys(value for value in self.numbers.values() if value))

    def encode(self, rows: pa.Table, piece: TextFile) -> pa.Array:
        """(rows,) int8 index into `values`, null = unknown; `23`, `23.0` and `023` are the same."""
        codes: dict[str, int | None] = dict.fromkeys(UNKNOWN_TEXTS)
        for number, value in self.numbers.items():
            codes |= dict.fromkeys([f"{number}", f"{number}.0"], self.values.index(value) if value else None)
        texts = pc.utf8_lower(pc.utf8_trim_whitespace(rows[self.column]))
        index = pc.index_in(pc.replace_substring_regex(texts, r"^0+(\d)", r"\1"), value_set=pa.array(codes))
        meaning = f"{self.meaning}, or 0 or empty where it is unknown"
        piece.check(index.is_valid().to_numpy(), rows, self.column, meaning)
        return pa.array(codes.values(), pa.int8()).take(index)


def attribute_column(name: str, age_bands: str) -> AttributeColumn:
    """How `gender`, `age` or `power` is read; `age_bands` as in `ReChorusConfig`."""
    if name == "gender":
        return AttributeColumn(name, "gender", "1 or 2", {1: "male", 2: "female"})
    column = "old" if name == "age" else name
    if name == "power" or age_bands == "levels":
        return AttributeColumn(name, column, "1 to 9", {level: str(level) for level in range(1, 10)})
    values: dict[int, str | None] = {year: age_band(year) for year in range(1, OLDEST + 1)}
    if age_bands == "decades":  # of paper B's code: younger and older users are unknown
        values = {year: f"{year // 10}0-{year // 10}9" if 10 <= year < 60 else None for year in values}
    return AttributeColumn(name, column, f"an age in years, 1 to {OLDEST}", values)


@dataclass
class Scan:
    """What the pass found."""

    users: pa.Table  # One row a user: `user_id`, and the index of each attribute's value, null = unknown
    title_ids: set[str] = field(default_factory=set)
    event_days: tuple[datetime, datetime] | None = None  # As `DayCounts.believable`
    ordered: bool = True  # As `DayCounts.ordered`
    behaviors: Counter = field(default_factory=Counter)  # Rows of each behaviour
    event_masks: list[np.ndarray] = field(default_factory=list)  # For each piece (rows,) bool: the row is an event
    num_rows: list[int] = field(default_factory=list)  # Of each file
    num_repeated: int = 0
    num_others: int = 0  # Rows of other behaviours


def scan_files(files: list[list[TextFile]], attributes: Sequence[AttributeColumn], behaviors: list[str] | None) -> Scan:
    """Read the pieces of every file, in order.

    A row (user, title, time and behaviour) that an earlier file has too is no event; equal rows of one file are
    several events. Rows of other `behaviors` are no events either; None = all are. UserError: a damaged line, a value
    without meaning, or rows of a user that contradict each other.
    """
    columns = ["user_id", *(attribute.name for attribute in attributes)]
    scan = Scan(pa.schema(zip(columns, [pa.string(), *[pa.int8()] * len(attributes)], strict=True)).empty_table())
    identity = ["user_id", "item_id"]
    identity += ["behavior"] * all("behavior" in piece.columns for pieces in files for piece in pieces)
    earlier, days = np.zeros(1, np.uint64), DayCounts()  # `earlier` is sorted
    for pieces in files:
        keys = []
        scan.num_rows.append(0)
        for piece in pieces:
            rows = piece.read(ids=IDS)
            scan.num_rows[-1] += rows.num_rows
            codes = [attribute.encode(rows, piece) for attribute in attributes]
            seconds = piece.numbers(rows, "time", "seconds since 1970", whole=False)
            mask = _behavior_mask(rows, behaviors, scan.behaviors)
            scan.num_others += int((~mask).sum())
            has_id = pa.array(mask & rows["user_id"].is_valid().to_numpy())  # the build rejects the others
            users = pa.table([rows["user_id"], *codes], columns).filter(has_id)
            scan.users = pa.concat_tables([scan.users, users]).group_by(columns).aggregate([])  # distinct rows
            if len(files) > 1:
                keys.append(mix(seconds.view(np.uint64), *(_text_keys(rows[name]) for name in identity)))
                repeated = mask & (earlier.take(np.searchsorted(earlier, keys[-1]), mode="clip") == keys[-1])
                scan.num_repeated += int(repeated.sum())
                mask &= ~repeated
            scan.event_masks.append(mask)
            scan.title_ids |= set(pc.unique(rows["item_id"].filter(pa.array(mask))).to_pylist()) - {None}
            days.add(timestamps_from_epoch(seconds[mask], "s"))
        earlier = np.sort(np.concatenate([earlier, *keys]))
    scan.users = _one_row_a_user(scan.users, attributes)
    days.check_seconds(f"{files[0][0].path}: time")
    scan.event_days, scan.ordered = days.believable(), days.ordered()
    absent = [name for name in behaviors or () if name not in scan.behaviors]
    if absent:
        known = ", ".join(sorted(scan.behaviors))
        raise UserError(f"behaviors names {absent[0]!r}, which never occurs: there are {known}")
    return scan


def _behavior_mask(rows: pa.Table, behaviors: list[str] | None, counts: Counter) -> np.ndarray:
    """(rows,) bool: of one of `behaviors`; adds all rows to `counts`."""
    if "behavior" in rows.column_names:
        counts.update(
            {found["values"] or "": found["counts"] for found in pc.value_counts(rows["behavior"]).to_pylist()}
        )
    if behaviors is None:
        return np.ones(rows.num_rows, bool)
    return pc.is_in(rows["behavior"], value_set=pa.array(behaviors)).to_numpy().copy()


def _text_keys(texts: pa.ChunkedArray) -> np.ndarray:
    found = texts.fill_null("").combine_chunks().dictionary_encode()
    return user_keys(found.dictionary.to_numpy(zero_copy_only=False))[found.indices.to_numpy(zero_copy_only=False)]


def _one_row_a_user(rows: pa.Table, attributes: Sequence[AttributeColumn]) -> pa.Table:
    """Each user's known values; UserError where two contradict each other."""
    ends = [(attribute.name, end) for attribute in attributes for end in ("min", "max")]
    users = rows.group_by("user_id").aggregate(ends)
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
    return pa.table({"user_id": users["user_id"], **{a.name: users[f"{a.name}_min"] for a in attributes}})

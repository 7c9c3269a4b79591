"""One pass over ReChorus files: users, titles, time range, and which rows are events.

Memory: the users' and titles' ids, one byte a row, and with several files eight more to recognise repeated rows.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix, user_keys
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP
from mtrec_ray.sources.rechorus_attributes import UNKNOWN, AttributeColumn
from mtrec_ray.sources.rechorus_files import Piece

NUMBER = r"^-?\d{1,17}(\.\d+)?$"


@dataclass
class Scan:
    """What the pass found."""

    users: pa.Table
    """`user_id`, and the smallest and largest known code of each attribute: `<name>_low`, `<name>_high`."""
    title_ids: set[str] = field(default_factory=set)
    first_s: float = np.inf
    last_s: float = -np.inf
    behaviors: Counter = field(default_factory=Counter)
    """Rows of each behaviour."""
    event_masks: list[np.ndarray] = field(default_factory=list)
    """For each piece (rows,) bool: the row is an event."""
    num_repeated: int = 0

    def add_users(self, user_ids: pa.ChunkedArray, codes: dict[str, np.ndarray], mask: np.ndarray) -> None:
        """Add the users of the rows in `mask`; the build rejects rows without an id."""
        mask = pa.array(mask & pc.not_equal(user_ids, "").to_numpy())
        users = _make_users(user_ids, codes).filter(mask)
        self.users = _merge_rows(pa.concat_tables([self.users, users]))

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
    several events. Rows of other `behaviors` are no events either; None = all are.

    Raises:
        UserError: a damaged line, a value without meaning, or rows of a user that contradict each other.
    """
    scan = Scan(_make_users(pa.chunked_array([], pa.string()), {a.name: np.zeros(0, np.int8) for a in attributes}))
    identity = ["user_id", "item_id"]
    identity += ["behavior"] * all("behavior" in piece.columns for pieces in files for piece in pieces)
    earlier = np.zeros(0, np.uint64)
    for pieces in files:
        keys = []
        for piece in pieces:
            rows = piece.read()
            codes = {a.name: a.encode(rows[a.column], piece.line) for a in attributes}
            seconds = _to_seconds(rows["time"], piece)
            mask = _behavior_mask(rows, behaviors, scan.behaviors)
            scan.add_users(rows["user_id"], codes, mask)
            if len(files) > 1:
                keys.append(_row_keys(rows.select(identity), seconds))
                repeated = mask & _in_sorted(keys[-1], earlier)
                scan.num_repeated += int(repeated.sum())
                mask &= ~repeated
            scan.add_events(rows["item_id"], seconds, mask)
        earlier = np.sort(np.concatenate([earlier, *keys]))
    _check_contradictions(scan.users, files, attributes)
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
        raise UserError(
            f"{piece.line(row)}: time is {texts[row].as_py()!r}, should be seconds since 1970: fix the line"
        )
    return texts.cast(pa.float64()).to_numpy()


def _behavior_mask(rows: pa.Table, behaviors: list[str] | None, counts: Counter) -> np.ndarray:
    """(rows,) bool: of one of `behaviors`; adds all rows to `counts`."""
    if "behavior" in rows.column_names:
        counts.update({found["values"]: found["counts"] for found in pc.value_counts(rows["behavior"]).to_pylist()})
    if behaviors is None:
        return np.ones(rows.num_rows, bool)
    return pc.is_in(rows["behavior"], value_set=pa.array(behaviors)).to_numpy().copy()


def _row_keys(identity: pa.Table, seconds: np.ndarray) -> np.ndarray:
    """(rows,) uint64 hash of the identity's texts and the time."""
    first, *others = [_text_keys(column) for column in identity.columns]
    return mix(first, *others, seconds.view(np.uint64))


def _text_keys(texts: pa.ChunkedArray) -> np.ndarray:
    found = texts.combine_chunks().dictionary_encode()
    return user_keys(found.dictionary.to_numpy(zero_copy_only=False))[found.indices.to_numpy(zero_copy_only=False)]


def _in_sorted(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    return sorted_keys.take(np.searchsorted(sorted_keys, keys), mode="clip") == keys


def _make_users(user_ids: pa.ChunkedArray, codes: dict[str, np.ndarray]) -> pa.Table:
    known = {name: pa.array(code, mask=code == UNKNOWN) for name, code in codes.items()}
    columns = {f"{name}_{bound}": code for name, code in known.items() for bound in ("low", "high")}
    return pa.table({"user_id": user_ids} | columns)


def _merge_rows(users: pa.Table) -> pa.Table:
    """One row a user."""
    functions = {name: "min" if name.endswith("_low") else "max" for name in users.column_names[1:]}
    merged = users.group_by("user_id").aggregate(list(functions.items()))
    return pa.table({"user_id": merged["user_id"]} | {n: merged[f"{n}_{f}"] for n, f in functions.items()})


def _check_contradictions(users: pa.Table, files: list[list[Piece]], attributes: Sequence[AttributeColumn]) -> None:
    for attribute in attributes:
        bounds = [f"{attribute.name}_low", f"{attribute.name}_high"]
        contradictory = users.filter(pc.not_equal(users[bounds[0]], users[bounds[1]])).sort_by("user_id")
        if contradictory.num_rows:
            user = contradictory.slice(0, 1).to_pylist()[0]
            shown = [_first_row_with(files, attribute, user["user_id"], user[bound]) for bound in bounds]
            raise UserError(
                f"{contradictory.num_rows} users contradict themselves in {attribute.name}, first {user['user_id']!r}: "
                f"{' and '.join(shown)}: fix the lines, or set {attribute.column} to 0 where it is not known"
            )


def _first_row_with(files: list[list[Piece]], attribute: AttributeColumn, user_id: str, code: int) -> str:
    """The value and line of a user's first row with a code."""
    for piece in (piece for pieces in files for piece in pieces):
        rows = piece.read(["user_id", attribute.column])
        codes = attribute.encode(rows[attribute.column], piece.line)
        hits = np.flatnonzero(pc.equal(rows["user_id"], user_id).to_numpy() & (codes == code))
        if len(hits):
            row = int(hits[0])
            return f"{attribute.column} = {rows[attribute.column][row].as_py()} ({piece.line(row)})"
    raise AssertionError("a value that was read is gone")

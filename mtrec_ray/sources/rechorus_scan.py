"""One pass over ReChorus files: who the users are, which titles there are, when, and which rows are no events.

Memory: the users' and titles' ids, one bit a row, and with several files eight bytes a row to recognise a repeated one.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix, user_keys
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP
from mtrec_ray.sources.rechorus_attributes import UNKNOWN, Attribute
from mtrec_ray.sources.rechorus_files import Piece

NUMBER = r"^-?\d{1,17}(\.\d+)?$"


@dataclass
class Scan:
    """What the pass has found."""

    users: pa.Table
    """`user_id`, and for each attribute the `<name>_low` and `<name>_high` position among its rows; null = unknown."""
    title_ids: set[str] = field(default_factory=set)
    first_s: float = np.inf
    last_s: float = -np.inf
    behaviors: Counter = field(default_factory=Counter)
    """Rows of each behaviour."""
    kept_rows: list[np.ndarray | None] = field(default_factory=list)
    """For each piece the rows that are events, as packed bits; None = all."""
    num_repeated: int = 0

    def note_users(self, user_ids: pa.ChunkedArray, codes: dict[str, np.ndarray], wanted: np.ndarray) -> None:
        """A piece's users. Rows without an id name nobody; the lake's build rejects them."""
        named = wanted & pc.not_equal(user_ids, "").to_numpy()
        users = _users_of(user_ids.filter(pa.array(named)), {name: code[named] for name, code in codes.items()})
        self.users = _merged(pa.concat_tables([self.users, users]))

    def note_events(self, title_ids: pa.ChunkedArray, seconds: np.ndarray, kept: np.ndarray) -> None:
        """A piece's titles and times, and which of its rows are events."""
        self.kept_rows.append(None if kept.all() else np.packbits(kept))
        self.title_ids |= set(pc.unique(title_ids.filter(pa.array(kept))).to_pylist()) - {""}
        believable = seconds[kept & (seconds >= 0) & (seconds < AFTER_LAST_TIMESTAMP.timestamp())]
        if len(believable):
            self.first_s, self.last_s = min(self.first_s, believable.min()), max(self.last_s, believable.max())


def scan_files(files: list[list[Piece]], attributes: list[Attribute], behaviors: list[str] | None) -> Scan:
    """Read the pieces of every file, in order.

    A row (user, title, time and behaviour) that an earlier file has already is no event; equal rows of one file are
    several events. `behaviors` names those that are events, None = all.

    Raises:
        UserError: a damaged line, a value without meaning, or a user whose rows contradict each other.
    """
    found = Scan(users=_users_of(pa.array([], pa.string()), {a.name: np.zeros(0, np.int8) for a in attributes}))
    identity = ["user_id", "item_id"]
    identity += ["behavior"] * all("behavior" in dict(piece.columns) for pieces in files for piece in pieces)
    earlier = np.zeros(0, np.uint64)
    for pieces in files:
        keys = []
        for piece in pieces:
            rows = piece.read()
            codes = {a.name: a.encode(rows[a.column].combine_chunks(), piece.line) for a in attributes}
            seconds = to_seconds(rows["time"], piece)
            wanted = _wanted(rows, behaviors, found.behaviors)
            found.note_users(rows["user_id"], codes, wanted)
            if len(files) > 1:
                keys.append(_row_keys(rows.select(identity), seconds))
                repeated = wanted & _is_in(keys[-1], earlier)
                found.num_repeated += int(repeated.sum())
                wanted &= ~repeated
            found.note_events(rows["item_id"], seconds, wanted)
        earlier = np.sort(np.concatenate([earlier, *keys]))
    _refuse_contradictions(found.users, files, attributes)
    _refuse_absent(behaviors, found.behaviors)
    return found


def to_seconds(texts: pa.ChunkedArray, piece: Piece) -> np.ndarray:
    """(rows,) float64 seconds since 1970.

    Raises:
        UserError: a text is no number; names the line.
    """
    is_number = pc.match_substring_regex(texts, NUMBER)
    if not pc.all(is_number).as_py():
        row = pc.index(is_number, False).as_py()
        raise UserError(
            f"{piece.line(row)}: time is {texts[row].as_py()!r}, should be seconds since 1970: fix the line"
        )
    return texts.cast(pa.float64()).to_numpy()


def unpacked(kept_rows: np.ndarray | None, num_rows: int) -> np.ndarray:
    """(rows,) bool of one piece's `kept_rows`."""
    return np.ones(num_rows, bool) if kept_rows is None else np.unpackbits(kept_rows, count=num_rows).astype(bool)


def _wanted(rows: pa.Table, behaviors: list[str] | None, seen: Counter) -> np.ndarray:
    """(rows,) bool: of a behaviour that is kept; counts all rows in `seen`."""
    if "behavior" in rows.column_names:
        for count in pc.value_counts(rows["behavior"]).to_pylist():
            seen[count["values"]] += count["counts"]
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


def _is_in(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    if not len(sorted_keys):
        return np.zeros(len(keys), bool)
    places = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[places] == keys


def _users_of(user_ids: pa.Array | pa.ChunkedArray, codes: dict[str, np.ndarray]) -> pa.Table:
    """One row a user."""
    columns: dict = {"user_id": user_ids}
    for name, code in codes.items():
        columns |= dict.fromkeys((f"{name}_low", f"{name}_high"), pa.array(code, mask=code == UNKNOWN))
    return _merged(pa.table(columns))


def _merged(users: pa.Table) -> pa.Table:
    functions = {name: "min" if name.endswith("_low") else "max" for name in users.column_names[1:]}
    merged = users.group_by("user_id").aggregate(list(functions.items()))
    return pa.table({"user_id": merged["user_id"]} | {n: merged[f"{n}_{f}"] for n, f in functions.items()})


def _refuse_contradictions(users: pa.Table, files: list[list[Piece]], attributes: list[Attribute]) -> None:
    for attribute in attributes:
        low, high = users[f"{attribute.name}_low"], users[f"{attribute.name}_high"]
        torn = users.filter(pc.not_equal(low, high))
        if torn.num_rows:
            user = min(torn["user_id"].to_pylist())
            one, other = (
                torn.filter(pc.equal(torn["user_id"], user))[f"{attribute.name}_{b}"] for b in ("low", "high")
            )
            shown = [_first_with(files, attribute, user, code[0].as_py()) for code in (one, other)]
            raise UserError(
                f"{torn.num_rows} users contradict themselves in {attribute.name}, first {user!r}: "
                f"{' and '.join(shown)}: fix the lines, or set {attribute.column} to 0 where it is not known"
            )


def _first_with(files: list[list[Piece]], attribute: Attribute, user: str, code: int) -> str:
    """Where a user's rows first have a value."""
    for piece in (piece for pieces in files for piece in pieces):
        rows = piece.read(["user_id", attribute.column])
        codes = attribute.encode(rows[attribute.column].combine_chunks(), piece.line)
        hits = np.flatnonzero(pc.equal(rows["user_id"], user).to_numpy() & (codes == code))
        if len(hits):
            row = int(hits[0])
            return f"{attribute.column} = {rows[attribute.column][row].as_py()} ({piece.line(row)})"
    raise AssertionError("a value that was read is gone")


def _refuse_absent(behaviors: list[str] | None, seen: Counter) -> None:
    absent = [name for name in behaviors or () if name not in seen]
    if absent:
        raise UserError(f"behaviors names {absent[0]!r}, which never occurs: there are {', '.join(sorted(seen))}")

"""Which rows may enter a lake; every rejected row has exactly one reason, a stable slug.

Of several users, titles or candidate rows with one id, the first in the order of all their columns is accepted and the
others are duplicates, so the choice does not depend on the order of reading. Events of a rejected user or title are
rejected too. Two equal events (same user, title and timestamp) are two valid events.
"""

# pyright: reportAttributeAccessIssue=false

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.lake.schema import embedding_width, stored_embeddings
from mtrec_ray.sources.calendar import out_of_range
from mtrec_ray.sources.source import PROMOTION, DataFacts

NUM_SHOWN = 3  # Rejected rows that an error shows for each reason
MEANINGS = {
    "null_user_id": "user_id is missing",
    "null_title_id": "title_id is missing",
    "null_timestamp": "the timestamp is missing",
    "timestamp_out_of_range": "before 1970 or after 2199",
    "wild_timestamp": "far from the time of all other events",
    "no_territory": "the territory is missing",
    "unknown_territory": "not one of the declared territories",
    "undeclared_attribute_value": "not one of the attribute's declared values",
    "promotion_out_of_range": "before 1970 or after 2199",
    "promotion_ends_before_start": "promoted_until is before promoted_from",
    "null_embedding": "the embedding is missing",
    "embedding_width": "the embedding has another width than declared",
    "embedding_not_finite": "the embedding is not finite in float16",
    "duplicate_user": "another row has this user_id",
    "duplicate_title": "another row has this title_id",
    "no_candidates": "the list is empty",
    "unknown_user": "no user has this user_id",
    "unknown_title": "no title has this title_id",
}
"""All reasons of rejected rows, those of a row itself before those that may follow from other rows."""
Problems = list[tuple[str, np.ndarray]]  # (reason, (rows,) bool); the first of a row's reasons counts


class Rejected(NamedTuple):
    """Rows rejected for one reason."""

    total: int
    shown: list[str]  # The first ones as JSON
    consequences: int = 0  # Of `total`, rows whose user or title was rejected itself


BadRows = dict[str, Rejected]  # By `table/reason`


class BadRowsError(UserError):
    """Rows that may not enter the lake; `totals` has their number by `table/reason`.

    `fix` is what to do; `ids` has an accepted id of each table of which no event has one.
    """

    def __init__(self, bad: BadRows, fix: str, ids: Mapping[str, str] | None = None):
        self.totals = {reason: rows.total for reason, rows in sorted(bad.items())}
        num_rows, follow = sum(self.totals.values()), sum(rows.consequences for rows in bad.values())
        ordered = in_order_of_cause(bad)
        main = max(ordered, key=lambda name: bad[name].total - bad[name].consequences)
        cause = f"{main} ({MEANINGS[main.split('/')[1]]}{_compare_ids(main, bad[main], ids or {})})"
        also = f", from which {follow:,} rows of events and candidates follow" if follow else ""
        lines = [f"{num_rows:,} rows cannot enter the lake, mostly for {cause}{also}: {fix}"]
        for name in ordered:
            total, shown, follow = bad[name]
            of = " of rejected users or titles"
            also = f", {'all' if follow == total else f'{follow:,}'}{of}" if follow else ""
            rows = f", first {'; '.join(shown)}" if follow < total else ""
            lines.append(f"  {name}: {total:,} rows{also}{rows}")
        super().__init__("\n".join(lines))


def in_order_of_cause(reasons: Iterable[str]) -> list[str]:
    """`table/reason` slugs, those that others may follow from first."""
    tables, slugs = ["titles", "users", "events", "candidates"], list(MEANINGS)
    pairs = [reason.split("/") for reason in reasons]
    return ["/".join(pair) for pair in sorted(pairs, key=lambda pair: (tables.index(pair[0]), slugs.index(pair[1])))]


def _compare_ids(reason: str, rows: Rejected, ids: Mapping[str, str]) -> str:
    table, column = {"events/unknown_user": ("users", "user_id"), "events/unknown_title": ("titles", "title_id")}.get(
        reason, ("", "")
    )
    if table not in ids:
        return ""
    found = json.loads(rows.shown[0])[column]
    return f", of any event: {column} is {found!r} in events and {ids[table]!r} in {table}"


def split_rows(table: str, rows: pa.Table, facts: DataFacts, *ids: pa.Array) -> tuple[pa.Table, pa.Table]:
    """(accepted, rejected) rows, both sorted; rejected ones have a `reason` column.

    Events and candidates need `ids`, the accepted user and title ids. Events with one timestamp keep the order of the
    source: which of them is last decides a leave-one-out test.
    """
    problems = [(f"null_{name}", _blank(rows[name])) for name in ("user_id", "title_id") if name in rows.column_names]
    if table == "users":
        problems += _user_problems(rows, facts)
    elif table == "titles":
        problems += _title_problems(rows, facts)
    else:
        if table == "events":
            problems.append(("null_timestamp", rows["timestamp"].is_null().to_numpy()))
            problems.append(("timestamp_out_of_range", _mask(out_of_range(rows["timestamp"]))))
            days = facts.event_days
            problems += [("wild_timestamp", _mask(out_of_range(rows["timestamp"], *days)))] if days else []
        problems += _reference_problems(rows, *ids)
    width = embedding_width(table, facts)
    problems += embedding_problems(rows["embedding"], width) if width else []
    accepted, rejected = _split(rows, problems)
    if table == "events":
        order = [("user_id", "ascending"), ("timestamp", "ascending")]
        return accepted.sort_by(order), rejected.sort_by(order)
    key = "title_id" if table == "titles" else "user_id"
    accepted, rejected = (part.take(_content_order(part, key)) for part in (accepted, rejected))
    ids = accepted[key].to_numpy()
    repeated = np.zeros(len(ids), bool)
    repeated[1:] = ids[1:] == ids[:-1]
    accepted, duplicates = _split(accepted, [("duplicate_title" if table == "titles" else "duplicate_user", repeated)])
    return accepted, pa.concat_tables([rejected, duplicates])


def _user_problems(users: pa.Table, facts: DataFacts) -> Problems:
    undeclared = [
        ("undeclared_attribute_value", _outside(users[name], values) & ~users[name].is_null().to_numpy())
        for name, values in facts.attributes.items()
    ]
    unknown = _outside(users["territory"], [territory.name for territory in facts.territories])
    return [("no_territory", _blank(users["territory"])), ("unknown_territory", unknown), *undeclared]


def _title_problems(titles: pa.Table, facts: DataFacts) -> Problems:
    names = {territory.name for territory in facts.territories}
    unknown = [not names.issuperset(listed) for listed in titles["territories"].to_pylist()]
    problems = [("unknown_territory", np.array(unknown, bool))]
    if PROMOTION[0] in titles.column_names:
        start, end = (titles[name] for name in PROMOTION)
        problems.append(("promotion_out_of_range", _mask(out_of_range(start)) | _mask(out_of_range(end))))
        problems.append(("promotion_ends_before_start", _mask(pc.less(end, start))))
    return problems


def _reference_problems(rows: pa.Table, user_ids: pa.Array, title_ids: pa.Array) -> Problems:
    """Unknown users and titles; one unknown title rejects a row of candidates."""
    unknown_user = ("unknown_user", _outside(rows["user_id"], user_ids))
    if "title_id" in rows.column_names:
        return [unknown_user, ("unknown_title", _outside(rows["title_id"], title_ids))]
    lengths = pc.list_value_length(rows["title_ids"]).fill_null(0).to_numpy()
    unknown = _outside(pa.chunked_array(pc.list_flatten(rows["title_ids"]), pa.string()), title_ids)
    num_unknown = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[unknown], minlength=len(lengths))
    return [("no_candidates", lengths == 0), unknown_user, ("unknown_title", num_unknown > 0)]


def embedding_problems(column: pa.ChunkedArray, width: int) -> Problems:
    """Rows of float16 bytes that are null, of another width, or not finite."""
    lengths = pc.binary_length(column).fill_null(-1).to_numpy()
    right = lengths == 2 * width
    vectors = fixed_width_matrix(stored_embeddings(column.filter(pa.array(right)), width))
    not_finite = np.zeros(len(right), bool)
    not_finite[right] = ~np.isfinite(vectors).all(axis=1)
    return [("null_embedding", lengths < 0), ("embedding_width", ~right), ("embedding_not_finite", not_finite)]


def count_bad_rows(table: str, rejected: pa.Table, *rejected_ids: pa.ChunkedArray | pa.Array) -> BadRows:
    """Totals and first rejected rows of one table or bucket.

    For events and candidates, `rejected_ids` are the ids of rejected users and titles.
    """
    bad: BadRows = {}
    causes = dict(zip(("unknown_user", "unknown_title"), rejected_ids, strict=False))
    for reason in pc.unique(rejected["reason"]).to_pylist():
        rows, column = rejected.filter(pc.equal(rejected["reason"], reason)), f"{reason[8:]}_id"
        follow = 0
        if reason in causes and column in rows.column_names:
            follow = pc.sum(pc.is_in(rows[column], value_set=causes[reason])).as_py()
        shown = [_to_json(row) for row in rows.slice(0, NUM_SHOWN).to_pylist()]
        bad[f"{table}/{reason}"] = Rejected(rows.num_rows, shown, follow)
    return bad


def merge_bad_rows(parts: Iterable[BadRows]) -> BadRows:
    """Totals and first rows over all parts, whatever their order."""
    merged: BadRows = {}
    for part in parts:
        for reason, rows in part.items():
            before = merged.get(reason, Rejected(0, []))
            shown = sorted([*before.shown, *rows.shown])[:NUM_SHOWN]
            merged[reason] = Rejected(before.total + rows.total, shown, before.consequences + rows.consequences)
    return merged


def _split(rows: pa.Table, problems: Problems) -> tuple[pa.Table, pa.Table]:
    masks = [mask for _, mask in problems]
    bad = np.logical_or.reduce(masks)
    reasons = np.select(masks, [reason for reason, _ in problems], default="")[bad]
    rejected = rows.filter(pa.array(bad)).append_column("reason", pa.array(reasons.tolist(), pa.string()))
    return (rows.filter(pa.array(~bad)) if bad.any() else rows), rejected


def _content_order(rows: pa.Table, key: str) -> pa.Array:
    """Row order by `key`, ties by all other columns: the same whatever the order of reading."""
    keys = [(key, "ascending")] + [(name, "ascending") for name in rows.column_names if name != key]
    for index, field in enumerate(rows.schema):
        if pa.types.is_list(field.type):
            rows = rows.set_column(index, field.name, pa.array(map(str, rows[field.name].to_pylist()), pa.string()))
    return pc.sort_indices(rows, sort_keys=keys)


def _outside(column: pa.ChunkedArray, allowed: Sequence[str] | pa.Array) -> np.ndarray:
    """(rows,) bool: not an allowed value; a null is outside too."""
    return ~_mask(pc.is_in(column, value_set=pa.array(allowed, pa.string())))


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    return pc.equal(column, "").fill_null(True).to_numpy()


def _mask(column: pa.ChunkedArray) -> np.ndarray:
    return column.fill_null(False).to_numpy()


def _to_json(row: dict) -> str:
    embedding = row.pop("embedding", None)
    shown = {} if embedding is None else {"embedding": f"{len(embedding) // 2} values"}
    return json.dumps(row | shown, default=str, ensure_ascii=False)

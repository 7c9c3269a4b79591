"""Which rows may enter a lake. Every rejected row has exactly one reason, a stable slug; none is dropped silently.

Of several users, titles or candidate rows with one id, the first in the order of all their columns stays and the
rest is rejected as a duplicate, so the choice does not depend on the order of reading. Events of a rejected user or
title are rejected in turn. Two equal events (same user, title and moment) are two legitimate events.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec_ray.errors import UserError
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, FIRST_TIMESTAMP
from mtrec_ray.sources.source import PROMOTION

NUM_SHOWN = 3
"""Offending rows that an error shows for each reason."""

Checks = list[tuple[str, np.ndarray]]
BadRows = dict[str, tuple[int, list[str]]]
"""`table/reason` -> total, and the first offending rows as JSON."""


@dataclass(frozen=True)
class Rules:
    """What rows are checked against. Plain data, picklable."""

    territories: frozenset[str]
    attributes: dict[str, tuple[str, ...]]
    user_width: int
    title_width: int


class BadRowsError(UserError):
    """Rows that may not enter the lake. `totals` has the count over the whole source for each `table/reason`."""

    def __init__(self, bad: BadRows):
        self.totals = {reason: total for reason, (total, _) in sorted(bad.items())}
        lines = [f"{sum(self.totals.values())} rows cannot enter the lake (--on-bad-rows quarantine sets them aside):"]
        for reason, (total, shown) in sorted(bad.items()):
            lines.append(f"  {reason}: {total} rows, first {'; '.join(shown)}")
        super().__init__("\n".join(lines))


def split_users(users: pa.Table, rules: Rules) -> tuple[pa.Table, pa.Table]:
    """(accepted, rejected) rows, both sorted by `user_id`; rejected ones have a `reason` column."""
    checks: Checks = [
        ("null_user_id", _blank(users["user_id"])),
        ("no_territory", _blank(users["territory"])),
        ("unknown_territory", _outside(users["territory"], rules.territories)),
    ]
    for name, values in rules.attributes.items():
        checks.append(("undeclared_attribute_value", _outside(users[name], values, null_is_fine=True)))
    checks += _embedding_checks(users, rules.user_width)
    return _split_unique(users, checks, "user_id", "duplicate_user")


def split_titles(titles: pa.Table, rules: Rules) -> tuple[pa.Table, pa.Table]:
    """(accepted, rejected) rows, both sorted by `title_id`; rejected ones have a `reason` column."""
    offered = titles["territories"].to_pylist()
    checks: Checks = [
        ("null_title_id", _blank(titles["title_id"])),
        ("unknown_territory", np.array([not rules.territories.issuperset(names) for names in offered], bool)),
    ]
    if PROMOTION[0] in titles.column_names:
        start, end = (titles[name] for name in PROMOTION)
        checks.append(("promotion_out_of_range", _unbelievable(start) | _unbelievable(end)))
        checks.append(("promotion_ends_before_start", _mask(pc.less(end, start))))
    checks += _embedding_checks(titles, rules.title_width)
    return _split_unique(titles, checks, "title_id", "duplicate_title")


def split_events(events: pa.Table, user_ids: pa.Array, title_ids: pa.Array) -> tuple[pa.Table, pa.Table]:
    """(accepted, rejected) rows sorted by user and time, against the accepted users and titles.

    Events of one moment keep the order of the source (the sort is stable): three in four of MovieLens-100K's share
    their second with another of their user, and which of them comes last decides a leave-one-out test.
    """
    checks: Checks = [
        ("null_user_id", _blank(events["user_id"])),
        ("null_title_id", _blank(events["title_id"])),
        ("null_timestamp", _mask(events["timestamp"].is_null())),
        ("timestamp_out_of_range", _unbelievable(events["timestamp"])),
        ("unknown_user", _outside(events["user_id"], user_ids)),
        ("unknown_title", _outside(events["title_id"], title_ids)),
    ]
    order = [("user_id", "ascending"), ("timestamp", "ascending")]
    good, bad = _split(events, checks)
    return good.sort_by(order), bad.sort_by(order)


def split_candidates(rows: pa.Table, user_ids: pa.Array, title_ids: pa.Array) -> tuple[pa.Table, pa.Table]:
    """(accepted, rejected) rows sorted by `user_id`; one unknown title rejects its whole row."""
    lists = pc.list_value_length(rows["title_ids"]).fill_null(0).to_numpy()
    unknown = _outside(pa.chunked_array(pc.list_flatten(rows["title_ids"]), pa.string()), title_ids)
    starts = np.concatenate([[0], np.cumsum(lists)])
    unknown_before = np.concatenate([[0], np.cumsum(unknown)])
    checks: Checks = [
        ("null_user_id", _blank(rows["user_id"])),
        ("no_candidates", lists == 0),
        ("unknown_user", _outside(rows["user_id"], user_ids)),
        ("unknown_title", unknown_before[starts[1:]] > unknown_before[starts[:-1]]),
    ]
    return _split_unique(rows, checks, "user_id", "duplicate_user")


def summarize(table: str, rejected: pa.Table) -> BadRows:
    """Totals and first offending rows of one table or bucket."""
    bad: BadRows = {}
    for reason in pc.unique(rejected["reason"]).to_pylist():
        rows = rejected.filter(pc.equal(rejected["reason"], reason))
        bad[f"{table}/{reason}"] = (rows.num_rows, [_shown(row) for row in rows.slice(0, NUM_SHOWN).to_pylist()])
    return bad


def merge(parts: Iterable[BadRows]) -> BadRows:
    """Totals over all parts; the first rows by content, so the same whatever the order of the parts."""
    merged: BadRows = {}
    for part in parts:
        for reason, (total, shown) in part.items():
            total_so_far, shown_so_far = merged.get(reason, (0, []))
            merged[reason] = (total_so_far + total, sorted([*shown_so_far, *shown])[:NUM_SHOWN])
    return merged


def embedding_problems(column: pa.ChunkedArray, width: int) -> Checks:
    """Rows of float16 bytes that are null, of another width, or not finite."""
    lengths = pc.binary_length(column).fill_null(-1).to_numpy()
    right = lengths == 2 * width
    data = b"".join(value.as_buffer() for value in column.filter(pa.array(right))) if not right.all() else _data(column)
    finite = np.isfinite(np.frombuffer(data, np.float16, count=int(right.sum()) * width).reshape(-1, width)).all(axis=1)
    not_finite = np.zeros(len(right), bool)
    not_finite[right] = ~finite
    return [("null_embedding", lengths < 0), ("embedding_width", ~right), ("embedding_not_finite", not_finite)]


def _embedding_checks(rows: pa.Table, width: int) -> Checks:
    return embedding_problems(rows["embedding"], width) if width else []


def _split(rows: pa.Table, checks: Checks) -> tuple[pa.Table, pa.Table]:
    masks = [mask for _, mask in checks]
    bad = np.logical_or.reduce(masks)
    reasons = np.select(masks, [slug for slug, _ in checks], default="")[bad]
    rejected = rows.filter(pa.array(bad)).append_column("reason", pa.array(reasons.tolist(), pa.string()))
    return (rows.filter(pa.array(~bad)) if bad.any() else rows), rejected


def _split_unique(rows: pa.Table, checks: Checks, key: str, slug: str) -> tuple[pa.Table, pa.Table]:
    good, bad = (part.take(_content_order(part, key)) for part in _split(rows, checks))
    ids = good[key].to_numpy()
    repeated = np.concatenate([[False], ids[1:] == ids[:-1]]) if len(ids) else np.zeros(0, bool)
    unique, duplicates = _split(good, [(slug, repeated)])
    return unique, pa.concat_tables([bad, duplicates])


def _content_order(rows: pa.Table, key: str) -> pa.Array:
    """Row order by `key`, ties by all other columns: the same whatever the order of reading."""
    keys = [(key, "ascending")] + [(name, "ascending") for name in rows.column_names if name != key]
    sortable = {
        name: rows[name] if not pa.types.is_list(rows[name].type) else pa.array(map(str, rows[name].to_pylist()))
        for name in rows.column_names
    }
    return pc.sort_indices(pa.table(sortable), sort_keys=keys)


def _outside(column: pa.ChunkedArray, allowed: Iterable[str] | pa.Array, null_is_fine: bool = False) -> np.ndarray:
    values = allowed if isinstance(allowed, pa.Array) else pa.array(sorted(allowed), pa.string())
    known = pc.is_in(column, value_set=values)
    return ~_mask(pc.or_(known, column.is_null()) if null_is_fine else known)


def _blank(column: pa.ChunkedArray) -> np.ndarray:
    return _mask(pc.or_(column.is_null(), pc.equal(column, "").fill_null(True)))


def _unbelievable(moments: pa.ChunkedArray) -> np.ndarray:
    first, after = (pa.scalar(moment, moments.type) for moment in (FIRST_TIMESTAMP, AFTER_LAST_TIMESTAMP))
    return _mask(pc.or_(pc.less(moments, first), pc.greater_equal(moments, after)))


def _mask(column: pa.ChunkedArray) -> np.ndarray:
    return column.fill_null(False).to_numpy()


def _data(column: pa.ChunkedArray) -> memoryview | bytes:
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_binary(array.type):
        array = array.cast(pa.binary())
    _, offsets, data = array.buffers()
    if data is None or not len(array):
        return b""
    first = np.frombuffer(offsets, np.int32)[array.offset]
    return memoryview(data)[int(first) :]


def _shown(row: dict) -> str:
    embedding = row.pop("embedding", None)
    if embedding is not None:
        row["embedding"] = f"{len(embedding) // 2} values"
    return json.dumps(row, default=str, ensure_ascii=False)

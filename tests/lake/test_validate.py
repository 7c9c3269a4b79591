"""Validation of rows, without a cluster."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec_ray.columns import fixed_width_column, fixed_width_matrix
from mtrec_ray.errors import UserError
from mtrec_ray.lake.build import to_batch
from mtrec_ray.lake.schema import conform, offered_in, stored_embeddings
from mtrec_ray.lake.validate import (
    BadRowsError,
    Rejected,
    count_bad_rows,
    embedding_problems,
    merge_bad_rows,
    split_rows,
)
from mtrec_ray.sources.calendar import TIMESTAMP, Calendar, Territory
from mtrec_ray.sources.source import DataFacts
from mtrec_ray.sources.values import embedding_bytes

DAY = datetime(2024, 1, 1, tzinfo=UTC)
FACTS = DataFacts(
    source="by hand",
    territories=[Territory(name=name, region="north") for name in ("NO", "SE")],
    attributes={"gender": ["f", "m"]},
    calendar=Calendar(window_start=DAY, window_end=DAY),
)


def _users(*rows: tuple) -> pa.Table:
    columns = ["user_id", "territory", "gender"]
    return pa.Table.from_pylist(
        [dict(zip(columns, row, strict=True)) for row in rows], pa.schema([(c, pa.string()) for c in columns])
    )


@given(st.permutations([("a", "NO", "f"), ("a", "NO", None), ("a", "SE", "f"), ("b", "NO", "m"), ("a", "XX", "f")]))
def test_accepted_duplicate_does_not_depend_on_the_order(rows):
    good, bad = split_rows("users", _users(*rows), FACTS)
    assert good.to_pylist() == _users(("a", "NO", "f"), ("b", "NO", "m")).to_pylist()
    assert sorted(bad["reason"].to_pylist()) == ["duplicate_user", "duplicate_user", "unknown_territory"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "", None]),
            st.sampled_from(["NO", "XX", None]),
            st.sampled_from(["f", "x", None]),
        )
    )
)
def test_every_row_is_accepted_or_has_one_reason(rows):
    good, bad = split_rows("users", _users(*rows), FACTS)
    assert good.num_rows + bad.num_rows == len(rows)
    ids = good["user_id"].to_pylist()
    assert ids == sorted(set(ids))
    for row in good.to_pylist():
        assert row["user_id"]
        assert row["territory"] == "NO"
        assert row["gender"] in ("f", None)
    assert sum(rows.total for rows in count_bad_rows("users", bad).values()) == bad.num_rows


def test_equal_events_are_accepted_and_null_timestamps_are_not():
    events = pa.table(
        {"user_id": ["a", "a", "a"], "title_id": ["t", "t", "t"], "timestamp": pa.array([DAY, DAY, None], TIMESTAMP)}
    )
    good, bad = split_rows("events", events, FACTS, pa.array(["a"]), pa.array(["t"]))
    assert good.num_rows == 2
    assert bad["reason"].to_pylist() == ["null_timestamp"]


def test_times_outside_the_believable_days_are_wild():
    facts = FACTS.model_copy(update={"event_days": (DAY, DAY + timedelta(days=1))})
    times = [DAY, DAY - timedelta(seconds=1), DAY + timedelta(days=1), DAY.replace(year=1969)]
    events = pa.table({"user_id": ["a"] * 4, "title_id": ["t"] * 4, "timestamp": pa.array(times, TIMESTAMP)})
    good, bad = split_rows("events", events, facts, pa.array(["a"]), pa.array(["t"]))
    assert good["timestamp"].to_pylist() == [DAY]
    assert bad["reason"].to_pylist() == ["timestamp_out_of_range", "wild_timestamp", "wild_timestamp"]


def test_events_with_one_timestamp_keep_the_order_of_the_source():
    times = [DAY.replace(day=2), DAY, DAY, DAY]
    events = pa.table({"user_id": ["a"] * 4, "title_id": ["t", "z", "b", "m"], "timestamp": pa.array(times, TIMESTAMP)})
    good, _ = split_rows("events", events, FACTS, pa.array(["a"]), pa.array(["b", "m", "t", "z"]))
    assert good["title_id"].to_pylist() == ["z", "b", "m", "t"]


def test_one_unknown_title_rejects_its_candidates():
    rows = pa.table(
        {"user_id": ["a", "b", "c", "z"], "title_ids": pa.array([["t"], ["t", "x"], [], ["t"]], pa.list_(pa.string()))}
    )
    good, bad = split_rows("candidates", rows, FACTS, pa.array(["a", "b", "c"]), pa.array(["t"]))
    assert good["user_id"].to_pylist() == ["a"]
    assert dict(zip(bad["user_id"].to_pylist(), bad["reason"].to_pylist(), strict=True)) == {
        "b": "unknown_title",
        "c": "no_candidates",
        "z": "unknown_user",
    }


def test_promotion_out_of_order_or_range_is_rejected():
    first, second = DAY, DAY.replace(day=2)
    early, late = first.replace(year=1969), first.replace(year=9999)
    titles = pa.table(
        {
            "title_id": ["a", "b", "c", "d", "e"],
            "territories": pa.array([[], ["NO"], [], [], []], pa.list_(pa.string())),
            "promoted_from": pa.array([first, second, None, early, None], TIMESTAMP),
            "promoted_until": pa.array([second, first, first, None, late], TIMESTAMP),
        }
    )
    good, bad = split_rows("titles", titles, FACTS)
    assert good["title_id"].to_pylist() == ["a", "c"]
    assert bad["reason"].to_pylist() == ["promotion_ends_before_start", *["promotion_out_of_range"] * 2]


def test_columns_of_other_types_are_errors():
    with pytest.raises(UserError, match="string"):
        embedding_bytes(pa.chunked_array([pa.array(["1 2"])]))
    with pytest.raises(UserError, match="column 'territories' of type string cannot become list<"):
        conform("titles", pa.table({"title_id": ["t"], "territories": ["NO"]}), FACTS)


def test_absent_texts_of_titles_are_null_and_absent_territories_empty():
    row = conform("titles", pa.table({"title_id": ["t"]}), FACTS).to_pylist()[0]
    assert row == {"title_id": "t", "name": None, "genres": None, "synopsis": None, "territories": []}


def test_rows_of_more_than_one_batch_are_an_error():
    class TooLarge:
        """Above 2 GiB of text, where `combine_chunks` leaves several."""

        num_rows = 2

        def combine_chunks(self) -> pa.Table:
            return pa.table({"user_id": pa.chunked_array([["a"], ["b"]])})

    with pytest.raises(UserError, match=r"2 raw rows hold more than 2 GiB in a column"):
        to_batch(TooLarge())  # pyright: ignore[reportArgumentType]
    assert to_batch(TooLarge().combine_chunks()).num_rows == 2


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64())),
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.int64())),
        fixed_width_column(np.array([[1, 2], [3, 4]])),
        pa.array([np.array(row, np.float16).tobytes() for row in ([1, 2], [3, 4])], pa.binary()),
    ],
)
def test_embeddings_of_any_layout_become_the_same_bytes(column):
    for layout in (pa.chunked_array([column]), pa.chunked_array([column.slice(0, 1), column.slice(1)])):
        stored = stored_embeddings(pa.chunked_array([embedding_bytes(layout)]), 2)
        assert fixed_width_matrix(stored).tolist() == [[1, 2], [3, 4]]


def test_each_bad_embedding_has_its_reason():
    lists = [[1.0, 2.0], None, [1.0], [float("nan"), 0.0], [1e6, 0.0], [0.0, 0.0]]
    column = pa.chunked_array([embedding_bytes(pa.chunked_array([pa.array(lists, pa.list_(pa.float32()))]))])
    problems = {slug: np.flatnonzero(mask).tolist() for slug, mask in embedding_problems(column, 2)}
    assert problems["null_embedding"] == [1]
    assert problems["embedding_width"] == [1, 2]
    assert problems["embedding_not_finite"] == [3, 4]


def test_merged_totals_do_not_depend_on_the_order():
    parts = [
        {"users/x": Rejected(5, ["c", "d"])},
        {"users/x": Rejected(1, ["a"]), "events/y": Rejected(2, ["q"], 1)},
        {"users/x": Rejected(2, ["b", "e"]), "events/y": Rejected(1, ["r"], 1)},
    ]
    merged = {"users/x": Rejected(8, ["a", "b", "c"]), "events/y": Rejected(3, ["q", "r"], 2)}
    assert merge_bad_rows(parts) == merge_bad_rows(parts[::-1]) == merged


def test_events_of_rejected_users_and_titles_are_counted_as_consequences():
    rows = {"user_id": ["bad", "bad", "new", "a"], "title_id": ["t", "t", "t", "dull"]}
    events = pa.table(rows | {"timestamp": pa.array([DAY] * 4, TIMESTAMP)})
    _, rejected = split_rows("events", events, FACTS, pa.array(["a"]), pa.array(["t"]))
    bad = count_bad_rows("events", rejected, pa.array(["bad", None]), pa.array(["dull"]))
    assert {reason: (rows.total, rows.consequences) for reason, rows in bad.items()} == {
        "events/unknown_user": (3, 2),
        "events/unknown_title": (1, 1),
    }


def test_error_of_bad_rows_names_the_cause_before_its_consequences():
    bad = {
        "events/unknown_title": Rejected(40, ["{}"], 40),
        "events/unknown_user": Rejected(1200, ["{}"], 1199),
        "events/null_timestamp": Rejected(2, ["{}"]),
        "titles/duplicate_title": Rejected(1, ["{}"]),
        "users/unknown_territory": Rejected(3, ['{"territory": "XX"}']),
    }
    lines = str(BadRowsError(bad, "correct them")).splitlines()
    assert lines == [
        "1,246 rows cannot enter the lake, mostly for users/unknown_territory (not one of the declared territories), "
        "from which 1,239 rows of events and candidates follow: correct them",
        "  titles/duplicate_title: 1 rows, first {}",
        '  users/unknown_territory: 3 rows, first {"territory": "XX"}',
        "  events/null_timestamp: 2 rows, first {}",
        "  events/unknown_user: 1,200 rows, 1,199 of rejected users or titles, first {}",
        "  events/unknown_title: 40 rows, all of rejected users or titles",
    ]


def test_titles_without_territories_are_offered_everywhere():
    lists = [["NO"], [], ["SE", "NO"], None, ["DK"]]
    titles = pa.table({"territories": pa.chunked_array([lists[:2], lists[2:]], pa.list_(pa.string()))})
    assert offered_in(titles, ["NO", "SE"]).astype(int).tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 0]]

"""The user's own tables: mapped names, units and values, and damaged files."""

from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import make_source


@pytest.fixture
def raw(tmp_path):
    users = pa.table({"uid": ["u1", "u2", "u3"], "country": ["NO", "SE", "SE"], "sex": ["f", "m", None]})
    (tmp_path / "users").mkdir()
    pq.write_table(users.slice(0, 2), tmp_path / "users" / "1.parquet")
    pq.write_table(users.slice(2), tmp_path / "users" / "2.parquet")
    first_ms = int(datetime(2024, 1, 1, 5, tzinfo=UTC).timestamp()) * 1000
    times = [first_ms, first_ms + 4 * 86_400_000]
    pq.write_table(pa.table({"uid": ["u1", "u2"], "tid": ["t", "t"], "at": times}), tmp_path / "e.parquet")
    pq.write_table(pa.table({"tid": ["t"], "title": ["A film"], "kind": ["film"]}), tmp_path / "titles.parquet")
    return tmp_path


CONFIG = {
    "users": "users/*.parquet",
    "events": "e.parquet",
    "titles": "titles.parquet",
    "user_columns": {"user_id": "uid", "territory": "country", "gender": "sex"},
    "event_columns": {"user_id": "uid", "title_id": "tid", "timestamp": "at"},
    "title_columns": {"title_id": "tid", "name": "title"},
    "title_categoricals": ["kind"],
    "attributes": {"gender": None},
    "timestamp_unit": "ms",
    "num_evaluation_days": 2,
}


def test_columns_are_mapped_and_values_discovered(raw):
    source = make_source("parquet", CONFIG, str(raw))
    facts = source.facts
    assert facts.attributes == {"gender": ["f", "m"]}
    assert [territory.name for territory in facts.territories] == ["NO", "SE"]
    assert facts.num_users == 3
    assert len(source.parts("users")) == 2
    assert source.parts("events")[0]()["timestamp"][0].as_py() == datetime(2024, 1, 1, 5, tzinfo=UTC)
    assert source.titles().to_pylist() == [{"title_id": "t", "kind": "film", "name": "A film"}]


@pytest.mark.parametrize("users", ["users", "users/*.parquet", "users/?.parquet", "users/[12].parquet", "./users/"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_raw_folder_may_be_a_path_or_uri(raw, scheme, users):
    source = make_source("parquet", CONFIG | {"users": users}, f"{scheme}{raw}/")
    found = sorted(user for part in source.parts("users") for user in part()["user_id"].to_pylist())
    assert found == ["u1", "u2", "u3"]
    assert source.facts.num_users == 3
    assert source.titles().num_rows == 1
    with pytest.raises(UserError, match=rf"'{scheme}{raw}/nowhere\.parquet' is missing: check the path and --raw"):
        make_source("parquet", CONFIG | {"users": "nowhere.parquet"}, f"{scheme}{raw}/")


def test_the_last_days_or_those_of_the_settings_are_the_evaluation_days(raw):
    calendar = make_source("parquet", CONFIG, str(raw)).facts.calendar
    assert (calendar.window_start.day, calendar.window_end) == (1, datetime(2024, 1, 4, tzinfo=UTC))
    config = CONFIG | {"window_start": "2024-01-02", "window_end": "2024-01-03T00:00:00+01:00"}
    calendar = make_source("parquet", config, str(raw)).facts.calendar
    assert calendar.window_end == datetime(2024, 1, 2, 23, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"users": "nowhere.parquet"}, r"nowhere\.parquet.*is missing"),
        ({"users": "users/*.csv"}, "names no Parquet file"),
        ({"user_columns": {"user_id": "id", "territory": "country", "gender": "sex"}}, "column 'id' .* is missing"),
        ({"user_columns": {"colour": "x"}}, "maps 'colour', which is never read"),
        ({"regions": {"XX": "north"}}, "regions names 'XX'"),
        ({"timestamp_unit": "fortnights"}, "timestamp_unit"),
        ({"title_columns": {"title_id": "tid", "synopsis": "plot"}}, "column 'plot' .* is missing"),
        ({"num_evaluation_days": 9}, "set window_start and window_end"),
    ],
)
def test_wrong_setting_is_an_error(raw, change, message):
    with pytest.raises(UserError, match=message):
        _read_all(make_source("parquet", CONFIG | change, str(raw)))


def _read_all(source) -> list:
    return [source.facts, source.titles(), *(part() for part in source.parts("users"))]


def test_truncated_file_is_an_error(raw):
    path = raw / "e.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"e\.parquet: no Parquet file, or truncated"):
        make_source("parquet", CONFIG, str(raw))


def test_row_groups_and_candidates_are_read_in_bounded_parts(raw):
    rows = pa.table({"uid": [f"u{n}" for n in range(10)], "country": ["NO"] * 10, "sex": ["f"] * 10})
    for path in (raw / "users").iterdir():
        path.unlink()
    pq.write_table(rows, raw / "users" / "1.parquet", row_group_size=2)
    source = make_source("parquet", CONFIG | {"rows_per_part": 5}, str(raw))
    assert [part().num_rows for part in source.parts("users")] == [4, 4, 2]
    rows = pa.table({"user_id": ["u1", "u2", "u3"], "title_ids": [["t"], ["t"], ["t"]]})
    pq.write_table(rows, raw / "candidates.parquet", row_group_size=1)
    source = make_source("parquet", CONFIG | {"candidates": "candidates.parquet", "rows_per_part": 2}, str(raw))
    assert [part().num_rows for part in source.parts("candidates")] == [2, 1]


def test_promotion_dates_have_the_unit_of_the_timestamps(raw):
    time = datetime(2024, 1, 1, tzinfo=UTC)
    titles = {"tid": ["t"], "title": ["A film"], "kind": ["film"], "promoted_from": [int(time.timestamp()) * 1000]}
    pq.write_table(pa.table(titles), raw / "titles.parquet")
    assert make_source("parquet", CONFIG, str(raw)).titles()["promoted_from"].to_pylist() == [time]

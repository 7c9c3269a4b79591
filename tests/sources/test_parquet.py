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


def rows_of(source, table: str) -> pa.Table:
    return pa.concat_tables(piece for part in source.parts(table) for piece in part())


def test_columns_are_mapped_and_values_discovered(raw):
    source = make_source("parquet", CONFIG, str(raw))
    facts = source.facts
    assert facts.attributes == {"gender": ["f", "m"]}
    assert [territory.name for territory in facts.territories] == ["NO", "SE"]
    assert facts.num_users == 3
    assert len(source.parts("users")) == 2
    assert rows_of(source, "events")["timestamp"][0].as_py() == datetime(2024, 1, 1, 5, tzinfo=UTC)
    assert source.titles().to_pylist() == [{"title_id": "t", "kind": "film", "name": "A film"}]


@pytest.mark.parametrize("users", ["users", "users/*.parquet", "users/?.parquet", "users/[12].parquet", "./users/"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_raw_folder_may_be_a_path_or_uri(raw, scheme, users):
    source = make_source("parquet", CONFIG | {"users": users}, f"{scheme}{raw}/")
    found = sorted(rows_of(source, "users")["user_id"].to_pylist())
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
        ({"users": "users/*.csv"}, "is missing: check the path"),
        ({"user_columns": {"user_id": "id", "territory": "country", "gender": "sex"}}, "column 'id' .* is missing"),
        ({"user_columns": {"colour": "x"}}, "maps 'colour', which is never read"),
        ({"regions": {"XX": "north"}}, "regions names 'XX'"),
        ({"timestamp_unit": "fortnights"}, "timestamp_unit"),
        ({"title_columns": {"title_id": "tid", "synopsis": "plot"}}, "column 'plot' .* is missing"),
        ({"num_evaluation_days": 9}, "set window_start and window_end"),
        ({"timestamp_unit": "us"}, r"e\.parquet: column 'at': all events are of 1970-01-20 to .*: set timestamp_unit"),
        ({"timestamp_unit": "s"}, r"e\.parquet: column 'at': no event has a valid time: check timestamp_unit"),
    ],
)
def test_wrong_setting_is_an_error(raw, change, message):
    with pytest.raises(UserError, match=message):
        _read_all(make_source("parquet", CONFIG | change, str(raw)))


def _read_all(source) -> list:
    return [source.titles(), rows_of(source, "users"), rows_of(source, "events"), source.facts]


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
    assert [sum(piece.num_rows for piece in part()) for part in source.parts("users")] == [4, 4, 2]
    rows = pa.table({"user_id": ["u1", "u2", "u3"], "title_ids": [["t"], ["t"], ["t"]]})
    pq.write_table(rows, raw / "candidates.parquet", row_group_size=1)
    source = make_source("parquet", CONFIG | {"candidates": "candidates.parquet", "rows_per_part": 2}, str(raw))
    assert [sum(piece.num_rows for piece in part()) for part in source.parts("candidates")] == [2, 1]


def test_promotion_dates_have_the_unit_of_the_timestamps(raw):
    time = datetime(2024, 1, 1, tzinfo=UTC)
    titles = {"tid": ["t"], "title": ["A film"], "kind": ["film"], "promoted_from": [int(time.timestamp()) * 1000]}
    pq.write_table(pa.table(titles), raw / "titles.parquet")
    assert make_source("parquet", CONFIG, str(raw)).titles()["promoted_from"].to_pylist() == [time]


def test_parts_of_one_table_may_differ_in_types_and_columns(raw):
    old = pa.table({"tid": pa.array([1, 2], pa.int32()), "title": ["A", None], "kind": pa.array(["film", "show"])})
    new = {"tid": ["3.0"], "title": pa.nulls(1), "synopsis": ["s"], "kind": pa.array(["film"]).dictionary_encode()}
    for name, rows in (("a", old), ("b", pa.table(new))):
        (raw / "titles").mkdir(exist_ok=True)
        pq.write_table(rows, raw / "titles" / f"{name}.parquet")
    source = make_source("parquet", CONFIG | {"titles": "titles"}, str(raw))
    assert source.titles().to_pydict() == {
        "title_id": ["1", "2", "3"],
        "kind": ["film", "show", "film"],
        "name": ["A", None, None],
        "synopsis": [None, None, "s"],
    }
    assert source.facts.notes == ["titles: synopsis is missing in titles/a.parquet"]
    assert [file.model_dump() for file in source.facts.raw_files if file.table == "titles"] == [
        {"table": "titles", "path": "titles/a.parquet", "rows": 2},
        {"table": "titles", "path": "titles/b.parquet", "rows": 1},
    ]


def test_folders_of_hive_are_columns_of_their_files(raw):
    for path in (raw / "users").iterdir():
        path.unlink()
    for territory, sex in (("NO", "f"), ("S%2FE", "__HIVE_DEFAULT_PARTITION__")):
        folder = raw / "users" / f"country={territory}" / f"sex={sex}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"uid": [f"{territory}1"]}), folder / "a.parquet")
    users = rows_of(make_source("parquet", CONFIG | {"users": "users"}, str(raw)), "users")
    assert users.to_pydict() == {"user_id": ["NO1", "S%2FE1"], "territory": ["NO", "S/E"], "gender": ["f", None]}


CSV = {
    "users.csv": "uid,country,sex\n1.0,NO,f\n2.0,nan,\n\n",
    "e.csv": 'uid,tid,at\n1,"7",1704085200000\n2,7,1704430800000.0\n',
    "titles.tsv": '\ufefftid\ttitle\tkind\n7\t"A\nfilm, ""really"""\tfilm\n',
}
TID = {"title_columns": {"title_id": "tid"}}
MAPPED = CONFIG["user_columns"]
CSV_CONFIG = CONFIG | {"users": "users.csv", "events": "e.csv", "titles": "titles.tsv"}


@pytest.mark.parametrize("ending", ["", ".gz", ".zst", ".BZ2"])
def test_csv_is_read_as_parquet_is(tmp_path, ending):
    codec = {".gz": "gzip", ".zst": "zstd", ".BZ2": "bz2"}.get(ending)
    for name, text in CSV.items():
        with pa.output_stream(str(tmp_path / (name + ending)), compression=codec) as file:
            file.write(text.encode())
    files = {name: f"{CSV_CONFIG[name]}{ending}" for name in ("users", "events", "titles")}
    source = make_source("parquet", CSV_CONFIG | files, str(tmp_path))
    users = {"user_id": ["1", "2"], "territory": ["NO", None], "gender": ["f", None]}
    assert rows_of(source, "users").to_pydict() == users
    assert source.titles().to_pydict() == {"title_id": ["7"], "kind": ["film"], "name": ['A\nfilm, "really"']}
    events = rows_of(source, "events").to_pydict()
    assert (events["user_id"], events["title_id"]) == (["1", "2"], ["7", "7"])
    assert events["timestamp"] == [datetime(2024, 1, day, 5, tzinfo=UTC) for day in (1, 5)]
    assert source.facts.attributes == {"gender": ["f"]}
    rows = [(f"users.csv{ending}", 2), (f"e.csv{ending}", 2), (f"titles.tsv{ending}", 1)]
    assert [(file.path, file.rows) for file in source.facts.raw_files] == rows


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"e.csv": "uid;tid;at\n1;7;1\n"}, {}, r"e\.csv: the only column is 'uid;tid;at': set source\.delimiter"),
        ({"e.csv": "uid,tid,at\n1,7\n"}, {}, r"e\.csv: not read as CSV \(.*Expected 3 columns, got 2"),
        ({"e.csv": ""}, {}, r"e\.csv: not read as CSV \(Empty CSV file"),
        ({"e.csv": "uid,tid,at\n"}, {}, r"e\.csv: column 'at': no event has a valid time: check"),
        ({"e.csv": "uid,tid,at\n1,7,soon\n"}, {}, r"e\.csv: column 'at': 'soon' is no time"),
        (
            {"e.csv": "uid,tid,at\n1.5e+18,7,1704085200000\n"},
            {},
            "column .uid.: .* was a number that",
        ),
        ({"e.csv": "uid,tid,uid,at\n1,7,1,1704085200000\n"}, {}, r"e\.csv: there are several columns 'uid'"),
        ({"users.csv": "uid,country,sex\n1,NO,caf\udce9\n"}, {}, r"users\.csv: .*UTF-?8.* source\.encoding"),
        ({}, {"encoding": "klingon"}, "setting 'encoding' = 'klingon': no encoding of that name"),
        ({"e.csv": "uid,uid\n1,7\n"}, {}, r"e\.csv: there are several columns 'uid'"),
        ({"users.csv": "uid,country,sex\n1,NO,\n"}, {}, "attribute 'gender' is missing for all users"),
        (
            {"users.csv": "uid,country,sex\n1,NA,NA\n"},
            {},
            "attribute 'gender' has the value 'NA': if it means a missing",
        ),
        ({}, {"user_width": 2, "user_columns": {**MAPPED, "embedding": "sex"}}, "'sex': embeddings of type string"),
    ],
)
def test_csv_that_could_be_read_wrongly_is_refused(tmp_path, change, config, message):
    for name, text in (CSV | change).items():
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        _read_all(make_source("parquet", CSV_CONFIG | config, str(tmp_path)))


def test_a_csv_file_may_have_one_column(tmp_path):
    for name, text in (CSV | {"t.csv": "tid\n7\n8\n"}).items():
        (tmp_path / name).write_text(text)
    source = make_source("parquet", CSV_CONFIG | {"titles": "t.csv", "title_categoricals": [], **TID}, str(tmp_path))
    assert source.titles().to_pydict() == {"title_id": ["7", "8"]}


def test_encoding_and_delimiter_are_settings(tmp_path):
    for name, text in CSV.items():
        (tmp_path / name).write_text(text.replace(",", ";"))
    (tmp_path / "t.csv").write_bytes("tid;title;kind\n7;Amélie;film".encode("cp1252"))
    config = CSV_CONFIG | {"encoding": "cp1252", "delimiter": ";", "titles": "t.csv"}
    assert make_source("parquet", config, str(tmp_path)).titles()["name"].to_pylist() == ["Amélie"]


def test_dates_far_away_are_no_limit_of_a_promotion(raw):
    far = [datetime(9999, 12, 31, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)]
    titles = {"tid": ["t", "u"], "kind": ["film"] * 2, "title": ["A"] * 2, "promoted_until": far}
    titles["promoted_from"] = [datetime(1900, 1, 1, tzinfo=UTC), None]
    pq.write_table(pa.table(titles), raw / "titles.parquet")
    titles = make_source("parquet", CONFIG, str(raw)).titles()
    assert titles["promoted_until"].to_pylist() == [None, far[1]]
    assert titles["promoted_from"].to_pylist() == [None, None]


def test_several_columns_of_one_name_are_refused(raw):
    rows = pa.Table.from_arrays([pa.array(["u1"])] * 2 + [pa.array(["t"]), pa.array([1])], ["uid", "uid", "tid", "at"])
    pq.write_table(rows, raw / "e.parquet")
    with pytest.raises(UserError, match=r"e\.parquet: there are several columns 'uid': rename all but one"):
        rows_of(make_source("parquet", CONFIG, str(raw)), "events")


def test_int96_of_spark_does_not_wrap_around(raw):
    times = [datetime(1600, 1, 1), datetime(2024, 1, 1, 5), datetime(2024, 1, 5, 5)]
    rows = pa.table({"uid": ["u1"] * 3, "tid": ["t"] * 3, "at": pa.array(times, pa.timestamp("us"))})
    pq.write_table(rows, raw / "e.parquet", use_deprecated_int96_timestamps=True)
    source = make_source("parquet", CONFIG, str(raw))
    assert rows_of(source, "events")["timestamp"].to_pylist() == [time.replace(tzinfo=UTC) for time in times]
    assert source.facts.calendar.window_start == datetime(2024, 1, 1, tzinfo=UTC)
    assert source.facts.event_days == (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 6, tzinfo=UTC))


def test_a_folder_that_contradicts_its_file_is_refused(raw):
    for path in (raw / "users").iterdir():
        path.unlink()
    rows = pa.table({"uid": ["u1", "u2"], "sex": ["f", "f"], "country": ["NO", "SE"]})
    (raw / "users" / "country=NO").mkdir()
    pq.write_table(rows.slice(0, 1), raw / "users" / "country=NO" / "a.parquet")
    source = make_source("parquet", CONFIG | {"users": "users"}, str(raw))
    assert rows_of(source, "users")["territory"].to_pylist() == ["NO"]
    pq.write_table(rows, raw / "users" / "country=NO" / "b.parquet")
    with pytest.raises(
        UserError, match=r"b\.parquet: column 'country' is 'SE' in the file and 'NO' in its folder's name"
    ):
        rows_of(make_source("parquet", CONFIG | {"users": "users"}, str(raw)), "users")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("u.xlsx", b"PK", "neither Parquet nor CSV by its name"),
        ("u.csv", b"PAR1", "a Parquet file by content, CSV by name"),
        ("u.csv", "uid,country,sex\n".encode("utf-16"), "UTF-16 text: set source.encoding to utf-16"),
        ("u.csv.gz", b"uid,country", r"not read as CSV \(zlib inflate failed"),
        ("u.parquet", b"PAR1", "no Parquet file, or truncated"),
    ],
)
def test_files_of_another_format_are_refused(raw, name, data, message):
    (raw / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        make_source("parquet", CONFIG | {"users": name}, str(raw))


def test_a_text_may_be_declared_missing_or_a_value(tmp_path):
    texts = {"users.csv": "uid,country,sex\n1,NA,NA\n2,NO,None\n", "e.csv": CSV["e.csv"] + "1,7,NA\n"}
    for name, text in (CSV | texts).items():
        (tmp_path / name).write_text(text)
    missing = {"missing": ["NA"], "territories": ["NA", "NO"], "attributes": {"gender": ["None"]}}
    source = make_source("parquet", CSV_CONFIG | missing, str(tmp_path))
    assert rows_of(source, "users").to_pydict() == {
        "user_id": ["1", "2"],
        "territory": ["NA", "NO"],
        "gender": [None, "None"],
    }
    assert rows_of(source, "events")["timestamp"].null_count == 1


def test_text_that_is_not_utf8_is_refused_whatever_its_type_says(raw):
    names = pa.array([b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"tid": ["t"], "title": ["A"], "kind": names}), raw / "titles.parquet")
    with pytest.raises(UserError, match=r"titles\.parquet: column 'kind': Invalid UTF8"):
        make_source("parquet", CONFIG, str(raw)).titles()


@pytest.mark.parametrize("column", ["uid", "country"])
def test_a_file_without_an_id_or_a_territory_is_refused(raw, column):
    users = pq.read_table(raw / "users" / "2.parquet")
    pq.write_table(users.drop_columns(column), raw / "users" / "2.parquet")
    with pytest.raises(UserError, match=rf"users/2\.parquet: column '{column}' .* is missing"):
        rows_of(make_source("parquet", CONFIG, str(raw)), "users")

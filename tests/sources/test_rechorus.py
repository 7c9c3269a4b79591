"""ReChorus files of paper B: attributes, repeated rows, pieces, damaged files."""

import gzip
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.inspect import check_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources import rechorus
from mtrec_ray.sources.calendar import UNORDERED
from mtrec_ray.sources.rechorus_scan import attribute_column
from mtrec_ray.sources.source import make_source

HEADER = "user_id\titem_id\tbehavior\ttime\tgender\told\tpower"
DAY_S = 86_400
TRAIN = [
    f"1\t10\tpv\t{10 * DAY_S}\t1\t23\t5",
    f"2\t11\tpv\t{10 * DAY_S + 1}\t2\t67\t9",
    f"1\t12\tbuy\t{11 * DAY_S}\t1.0\t024.0\t00",
    f"3\t10\tpv\t{11 * DAY_S}\t0\t\tnan",
]
DEV = [f"1\t11\tpv\t{11 * DAY_S}\t1\t23\t5\t[12, 13]", f"2\t12\tpv\t{12 * DAY_S}\t2\t67\t9\t[10, 13]"]
TEST = [f"1\t10\tpv\t{11 * DAY_S}\t1\t23\t5\t[11, 13]"]


WITH_NEGATIVES = f"{HEADER}\tneg_items"


def _write(path: Path, lines: list[str], header: str = HEADER) -> None:
    path.write_text("\n".join([header, *lines]) + "\n")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    _write(folder / "train.csv", TRAIN)
    _write(folder / "dev.csv", DEV, WITH_NEGATIVES)
    _write(folder / "test.csv", TEST, WITH_NEGATIVES)
    return folder


def _source(raw: Path, **config):
    return make_source("rechorus", config, str(raw))


@pytest.fixture
def cut(monkeypatch):
    return lambda size: monkeypatch.setattr(rechorus, "BYTES_PER_PIECE", size)


def _events(source) -> list[tuple[str, str, int]]:
    rows = [row for part in source.parts("events") for row in part().to_pylist()]
    return [(row["user_id"], row["title_id"], int(row["timestamp"].timestamp())) for row in rows]


def _users(source) -> dict[str, dict]:
    return {row.pop("user_id"): row for part in source.parts("users") for row in part().to_pylist()}


def test_rows_become_users_titles_and_events_in_the_order_of_train_dev_and_test(raw):
    source = _source(raw)
    assert _users(source) == {
        "1": {"territory": "all", "gender": "male", "age": "18-24", "power": "5"},
        "2": {"territory": "all", "gender": "female", "age": "56+", "power": "9"},
        "3": {"territory": "all", "gender": None, "age": None, "power": None},
    }
    assert source.titles()["title_id"].to_pylist() == ["10", "11", "12"]
    assert _events(source)[:2] == [("1", "10", 10 * DAY_S), ("2", "11", 10 * DAY_S + 1)]
    assert [title for user, title, _ in _events(source) if user == "1"] == ["10", "12", "11", "10"]  # three at one time
    facts = source.facts
    assert list(facts.attributes) == ["gender", "age", "power"]
    assert facts.attributes["power"] == list("123456789")
    assert facts.num_users == 3
    assert not source.parts("candidates")


def test_window_is_all_the_data_without_evaluation_days(raw):
    calendar = _source(raw).facts.calendar
    assert (calendar.window_start, calendar.num_evaluation_days) == (datetime(1970, 1, 11, tzinfo=UTC), 0)
    assert calendar.window_end == datetime(1970, 1, 14, tzinfo=UTC)
    calendar = _source(raw, num_evaluation_days=2).facts.calendar
    assert calendar.window_end == datetime(1970, 1, 12, tzinfo=UTC)
    with pytest.raises(UserError, match=r"3 evaluation days of 1 days leave no training window.*num_evaluation_days"):
        _ = _source(raw, num_evaluation_days=3).facts


def test_rows_of_dev_and_test_that_train_has_too_count_once(raw):
    alone = sorted(_events(_source(raw)))
    _write(raw / "train.csv", [*TRAIN, *(line.rpartition("\t")[0] for line in [*DEV, *TEST])])
    source = _source(raw)
    assert sorted(_events(source)) == alone
    assert any(note.startswith("3 rows that repeat one of an earlier file") for note in source.facts.notes)
    assert source.facts.left_out == {"rows that repeat one of an earlier file": 3}
    assert [(file.table, file.path, file.rows) for file in source.facts.raw_files] == [
        ("events", "train.csv", 7),
        ("events", "dev.csv", 2),
        ("events", "test.csv", 1),
    ]


def test_equal_rows_of_one_file_or_of_different_behaviour_are_several_events(raw):
    _write(raw / "train.csv", [*TRAIN, TRAIN[0]])
    assert _events(_source(raw)).count(("1", "10", 10 * DAY_S)) == 2
    _write(raw / "train.csv", TRAIN)
    _write(raw / "dev.csv", [TRAIN[0].replace("pv", "buy")])
    assert _events(_source(raw)).count(("1", "10", 10 * DAY_S)) == 2
    _write(raw / "dev.csv", [TRAIN[0].replace("pv\t", "")], HEADER.replace("behavior\t", ""))
    assert _events(_source(raw)).count(("1", "10", 10 * DAY_S)) == 1


@pytest.mark.parametrize("size", [1, 20, 70, 90])
def test_small_pieces_read_the_same_as_one(raw, size, cut):
    _write(raw / "train.csv", [*TRAIN, DEV[0].rpartition("\t")[0]])
    large = _source(raw)
    cut(size)
    small = _source(raw)
    assert len(small.parts("events")) > len(large.parts("events")) == 3
    assert _events(small) == _events(large)
    assert _users(small) == _users(large)
    assert small.facts == large.facts


def test_windows_line_ends_and_a_last_line_without_end_read_the_same(raw):
    (raw / "train.csv").write_bytes("\r\n".join([HEADER, *TRAIN]).encode("utf-8-sig"))
    assert len(_events(_source(raw))) == 7
    assert _users(_source(raw))["2"]["power"] == "9"


def test_behaviors_choose_what_is_an_event(raw):
    source = _source(raw, behaviors=["pv"])
    assert [title for user, title, _ in _events(source) if user == "1"] == ["10", "11", "10"]
    assert "rows by behaviour: pv 6, buy 1 (left out)" in source.facts.notes
    assert source.facts.left_out == {"other behaviours": 1}
    with pytest.raises(UserError, match="'cart', which never occurs: there are buy, pv"):
        _ = _source(raw, behaviors=["cart"]).facts


@pytest.mark.parametrize("form", ["{}.0", '"{}"', '"{}.00"', " {} ", '" {}"'])
def test_one_id_in_two_forms_is_one_user_and_one_title(raw, form):
    expected = _source(raw)
    events, users = _events(expected), _users(expected)
    for name, lines in (("dev", DEV), ("test", TEST)):
        fields = [line.split("\t") for line in lines]
        header = "\t".join(f'"{column}"' for column in WITH_NEGATIVES.split("\t"))
        written = ["\t".join([form.format(row[0]), form.format(row[1]), f'"{row[2]}"', *row[3:]]) for row in fields]
        _write(raw / f"{name}.csv", written, header)
    source = _source(raw)
    assert (_events(source), _users(source)) == (events, users)
    assert source.titles()["title_id"].to_pylist() == ["10", "11", "12"]


def test_file_in_the_encoding_of_the_setting(raw):
    """Of a gzip file too."""
    lines = [line.replace("pv", "浏览") for line in TRAIN]
    (raw / "train.csv.gz").write_bytes(gzip.compress("\n".join([HEADER, *lines, ""]).encode("gbk")))
    (raw / "train.csv").unlink()
    source = _source(raw, encoding="gbk", behaviors=["浏览"])
    assert [(user, title) for user, title, _ in _events(source)] == [("1", "10"), ("2", "11"), ("3", "10")]
    with pytest.raises(UserError, match=r"train\.csv\.gz, line 2: not utf-8 text"):
        _source(raw)


def test_wild_timestamp_leaves_the_window_alone_and_equal_ones_have_no_order(raw):
    many = [f"1\t10\tpv\t{1500000000 + 600 * n}\t1\t23\t5" for n in range(200)]
    _write(raw / "train.csv", many)
    calendar = _source(raw, files=["train.csv"]).facts.calendar
    _write(raw / "train.csv", [*many, "1\t10\tpv\t0\t1\t23\t5", "1\t10\tpv\t2147483647\t1\t23\t5"])
    assert _source(raw, files=["train.csv"]).facts.calendar == calendar
    _write(raw / "train.csv", [many[0]] * 200)
    facts = _source(raw, files=["train.csv"]).facts
    assert not facts.calendar.ordered
    assert UNORDERED in facts.notes
    with pytest.raises(UserError, match=r"all events carry one timestamp, of 2017-07-14.*num_evaluation_days=0"):
        _ = _source(raw, files=["train.csv"], num_evaluation_days=1).facts


def test_times_that_were_float32_once_are_an_error(raw):
    times = np.arange(1_500_000_000, 1_500_100_000, 5_001).astype(np.float32).astype(np.int64)
    _write(raw / "train.csv", [f"1\t{n}\tpv\t{time}\t1\t23\t5" for n, time in enumerate(times)])
    (raw / "dev.csv").unlink()
    (raw / "test.csv").unlink()
    with pytest.raises(UserError, match=r"train\.csv: time: the times were float32 once"):
        _source(raw)


def test_only_usual_names_are_read(raw):
    _write(raw / "trainc.csv", ["99\t99\tpv\t1\t1\t23\t5"])
    (raw / "item_meta.csv").write_text("item_id\ti_category\n10\t1\n")
    source = _source(raw)
    assert "99" not in _users(source)
    assert source.facts.notes[0].endswith("train.csv, dev.csv, test.csv; CSV files left out: item_meta.csv, trainc.csv")


def test_every_file_with_the_columns_is_read_without_a_train_file(raw):
    for old, new in (("train", "z_train1"), ("dev", "dev1"), ("test", "a_test")):
        (raw / f"{old}.csv").rename(raw / f"{new}.csv")
    (raw / "item_meta.csv").write_text("item_id\ti_category\n10\t1\n")
    source = _source(raw)
    assert source.facts.notes[0].endswith("z_train1.csv, dev1.csv, a_test.csv; CSV files left out: item_meta.csv")
    assert _users(_source(raw, files=["a_test.csv"])).keys() == {"1"}


def test_columns_may_have_other_names_and_old_may_hold_levels(tmp_path):
    """As in the authors' AliEC reader: no power, and levels in `age`."""
    _write(tmp_path / "train.csv", ["1\t10\t1\t2\t6", "2\t10\t2\t1\t0"], "user_id\titem_id\ttime\tgender\tage")
    config = {"attributes": ["gender", "age"], "columns": {"old": "age"}, "age_bands": "levels"}
    assert _users(_source(tmp_path, **config)) == {
        "1": {"territory": "all", "gender": "female", "age": "6"},
        "2": {"territory": "all", "gender": "male", "age": None},
    }
    with pytest.raises(UserError, match=r"18 or older.*set age_bands=levels"):
        _ = _source(tmp_path, **config | {"age_bands": "movielens"}).facts


@pytest.mark.parametrize(
    ("bands", "years", "expected"),
    [
        ("movielens", [1, 17, 18, 55, 56, 120], ["Under 18", "Under 18", "18-24", "50-55", "56+", "56+"]),
        ("decades", [9, 10, 19, 20, 59, 60], [None, "10-19", "10-19", "20-29", "50-59", None]),
    ],
)
def test_old_becomes_the_bands_of_the_setting(bands, years, expected):
    attribute = attribute_column("age", bands)
    assert [attribute.numbers[year] for year in years] == expected


def test_missing_value_is_taken_from_other_rows(raw):
    _write(raw / "test.csv", [f"3\t11\tpv\t{12 * DAY_S}\t2\t0\t1\t[]"], WITH_NEGATIVES)
    assert _users(_source(raw))["3"] == {"territory": "all", "gender": "female", "age": None, "power": "1"}


@pytest.mark.parametrize("size", [20, 1_000_000])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"2\t12\tpv\t{12 * DAY_S}\t1\t67\t9", "gender, first '2': male and female: fix"),
        (TRAIN[0].replace("\t5", "\t6"), "power, first '1': 5 and 6: fix"),
        (TRAIN[0].replace("23", "25"), "age, first '1': 18-24 and 25-34: fix"),
    ],
)
def test_contradiction_error_names_user_and_both_values(raw, line, message, size, cut):
    """Of repeated rows too; ages of one band do not contradict each other."""
    cut(size)
    assert _users(_source(raw))["1"]["age"] == "18-24"
    _write(raw / "dev.csv", [line])
    with pytest.raises(UserError, match=f"1 users contradict themselves in {message}"):
        _ = _source(raw).facts


def test_rows_without_an_id_reach_validation(raw):
    _write(raw / "dev.csv", ["\t10\tpv\t5\t1\t23\t5", "1\tnan\tpv\t5\t1\t23\t5"])
    source = _source(raw)
    assert set(_users(source)) == {"1", "2", "3"}
    assert source.titles()["title_id"].to_pylist() == ["10", "11", "12"]
    assert {(None, "10", 5), ("1", None, 5)} < set(_events(source))


@pytest.mark.parametrize("size", [20, 1_000_000])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t10\tpv\tnoon\t1\t23\t5", r"line 6: time is 'noon', should be seconds"),
        ("1\t10\tpv\tnan\t1\t23\t5", r"line 6: time is 'nan'"),
        ("1\t10\tpv\t5\t3\t23\t5", r"line 6: gender is '3', should be 1 or 2.* fix"),
        ("1\t10\tpv\t5\t1\t-5\t5", r"line 6: old is '-5', should be an age in years, 1 to 120"),
        ("1\t10\tpv\t5\t1\t121\t5", r"line 6: old is '121'"),
        ("1\t10\tpv\t5\t1\t23.5\t5", r"line 6: old is '23\.5'"),
        ("1\t10\tpv\t5\t1\t23\t12", r"line 6: power is '12', should be 1 to 9"),
        ("1\t10\tpv\t5\t1\t23", r"line 6: 6 fields instead of 7 in '1.*truncated"),
        ("1\t10\tpv\t5\t1\t23\t5\t7\n" + TRAIN[0], r"line 6: 8 fields instead of 7 .* fix or remove"),
        ("\n" + TRAIN[0], r"line 6: time is '', .* fix the line"),
        ("1.5e+10\t10\tpv\t5\t1\t23\t5", r"line 6: user_id is '1\.5e\+10', should be an id, not a number with an exp"),
        ('"1\t10\tpv\t5\t1\t23\t5', r"line 6: user_id is '\"1', should be in quotes at both ends"),
    ],
)
def test_bad_line_error_names_value_and_fix(raw, line, message, size, cut):
    cut(size)
    _write(raw / "train.csv", [*TRAIN, line])
    with pytest.raises(UserError, match=rf"train\.csv, {message}"):
        _ = _source(raw).facts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train\.csv is empty"),
        (HEADER.encode() + b"\n", r"train\.csv: there is nothing after the header"),
        (
            HEADER.replace("gender", "sex").encode() + b"\n1",
            r"line 1: column 'gender' is missing, there are user_id, item",
        ),
        (HEADER.replace("\t", ",").encode() + b"\n1", r"line 1: the only column is 'user_id,item_id.*tab separated"),
        (HEADER.replace("power", "old").encode() + b"\n1", r"line 1: column 'old' occurs twice: rename or remove one"),
        (HEADER.encode() + b"\r1\t10\tpv\t5\t1\t23\t5\r", r"line 1: lines end with carriage returns alone"),
        (HEADER.encode() + b"\nnan\t10\tpv\t5\t1\t23\t5\n", r"train\.csv: user_id is missing in every row"),
        (HEADER.encode() + b"\n\xff\xfe\t10\tpv\t5\t1\t23\t5\n", r"line 2: not utf-8 text"),
        (b"\xff\xfe\n", r"line 1: is UTF-16 text: save it as UTF-8"),
        (b"\xff\xff\n", r"line 1: not utf-8 text"),
        (HEADER.encode() + b"\n1\t10\tpv\t1511544070000\t1\t23\t5\n", r"no event has a valid time"),
    ],
)
def test_damaged_file_is_an_error(tmp_path, content, message):
    (tmp_path / "raw").mkdir()
    (tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = _source(tmp_path).facts
    with pytest.raises(UserError, match=r"no \*\.csv in .*train\.csv, dev\.csv and test\.csv"):
        _source(tmp_path / "raw")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"files": ["all.csv"]}, r"all\.csv is missing: `files` names it; there are dev\.csv, test\.csv, train\.csv"),
        ({"columns": {"old": "years"}}, r"column 'years' \(mapped to 'old'\) is missing"),
        ({"columns": {"age": "old"}}, "columns maps 'age', which is never read"),
        ({"columns": {"power": "power"}, "attributes": ["gender"]}, "columns maps 'power', which is never read"),
        ({"columns": {"behavior": "btag"}}, "column 'btag'"),
        ({"attributes": ["gender", "gender"]}, "names a value twice"),
        ({"attributes": ["sex"]}, "attributes"),
        ({"attributes": ["gender"], "age_bands": "decades"}, "age_bands has no effect"),
        ({"behaviors": []}, "behaviors"),
    ],
)
def test_wrong_setting_is_an_error(raw, config, message):
    with pytest.raises(UserError, match=message):
        _source(raw, **config)


@pytest.mark.ray
def test_lake_is_valid_and_ordered(ray_cluster, raw, tmp_path, cut):
    cut(50)
    source = _source(raw)
    manifest = build_lake(source, str(tmp_path / "lake")).manifest
    assert manifest.counts == {"users": 3, "events": 7, "titles": 3}
    assert "no territory exists: all users are in one, 'all'" in manifest.notes
    check_lake(LakeConfig(lake=str(tmp_path / "lake")))
    lake = Lake.open(str(tmp_path / "lake"))
    events = [row for bucket in range(manifest.num_buckets) for row in lake.read("events", bucket).to_pylist()]
    assert [row["title_id"] for row in events if row["user_id"] == "1"] == ["10", "12", "11", "10"]

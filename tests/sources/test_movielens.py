"""MovieLens in its three layouts, and damaged files."""

import gzip
from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources import movielens
from mtrec_ray.sources.calendar import DAY_S, UNORDERED
from mtrec_ray.sources.movielens import age_band, territory_of
from mtrec_ray.sources.source import make_source


def _write_1m(folder: Path) -> Path:
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::V0E 1A0\n")
    (folder / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les (1998)::Drama\n".encode("latin-1")
    )
    lines = [f"1::1::5e0::{100 * DAY_S}", f"1::2::1::{150 * DAY_S + 7}", f"2::2::4::{199 * DAY_S}"]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    return folder


def _write_100k(folder: Path) -> Path:
    (folder / "u.user").write_text("1|24|M|technician|85711\n")
    flags = "0|0|0|1|1|1" + "|0" * 13
    (folder / "u.item").write_text(f"1|Toy Story (1995)|01-Jan-1995||http://x|{flags}\n")
    (folder / "u.data").write_text(f"1\t1\t5\t{100 * DAY_S}\n1\t1\t5\t{190 * DAY_S}\n")
    return folder


def _write_recbole(folder: Path) -> Path:
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\ttechnician\t85711\n"
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n"
    )
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        f"1\t1\t3\t{100 * DAY_S}\n1\t1\t4\t{190 * DAY_S}.0\n"
    )
    return folder


def _source(folder: Path, **config):
    return make_source("movielens", config, str(folder))


def test_rows_of_1m_become_users_titles_and_events(tmp_path):
    source = _source(_write_1m(tmp_path))
    (users,), (events,) = ([part() for part in parts] for parts in (source.parts("users"), source.parts("events")))
    assert users.to_pylist()[0] == {
        "user_id": "1",
        "territory": "zip-4",
        "gender": "F",
        "age": "Under 18",
        "occupation": "K-12 student",
    }
    assert users["territory"][1].as_py() == "zip-other"
    assert [territory_of(code) for code in ("01002", "9", "T8H1N", "")] == ["zip-0", "zip-9", "zip-other", "zip-other"]
    assert source.titles()["name"].to_pylist() == ["Toy Story", "Misérables, Les"]
    assert source.titles()["decade"].to_pylist() == ["1990s", "1990s"]
    assert events.num_rows == 3
    calendar = source.facts.calendar
    assert (calendar.window_end - calendar.window_start).days == 100 - 84
    assert calendar.day_bounds(3)[1] > events["timestamp"][2].as_py() >= calendar.day_bounds(3)[0]


@pytest.mark.parametrize("write", [_write_1m, _write_100k, _write_recbole])
def test_every_layout_gives_the_same_title(tmp_path, write):
    film = _source(write(tmp_path)).titles().to_pylist()[0]
    assert film == {"title_id": "1", "name": "Toy Story", "genres": "Animation Children's Comedy", "decade": "1990s"}


@pytest.mark.parametrize("write", [_write_100k, _write_recbole])
def test_users_of_100k_have_territory_age_band_and_occupation(tmp_path, write):
    source = _source(write(tmp_path))
    row = source.parts("users")[0]().to_pylist()[0]
    assert row == {"user_id": "1", "territory": "zip-8", "gender": "M", "age": "18-24", "occupation": "technician"}
    assert row["occupation"] in source.facts.attributes["occupation"]


def test_low_ratings_can_be_left_out(tmp_path):
    source = _source(_write_1m(tmp_path), min_rating=4)
    assert source.parts("events")[0]()["title_id"].to_pylist() == ["1", "2"]
    assert source.facts.left_out == {"ratings below min_rating 4": 1}
    assert [file.model_dump() for file in source.facts.raw_files] == [
        {"table": "users", "path": "users.dat", "rows": 2},
        {"table": "events", "path": "ratings.dat", "rows": 3},
        {"table": "titles", "path": "movies.dat", "rows": 2},
    ]


def test_rating_of_zero_is_left_out_and_counted(tmp_path):
    with (_write_1m(tmp_path) / "ratings.dat").open("a") as file:
        file.write(f"1::2::0::{120 * DAY_S}\n")
    source = _source(tmp_path)
    assert source.parts("events")[0]().num_rows == 3
    assert source.facts.left_out == {"ratings below min_rating 1": 1}
    (tmp_path / "ratings.dat").write_text(f"1::2::4::{120 * DAY_S}\n")
    with pytest.raises(UserError, match=r"ratings\.dat: all 1 ratings are below min_rating=5: choose a lower one"):
        _ = _source(tmp_path, min_rating=5).facts


@pytest.mark.parametrize(
    ("stored", "setting", "note"),
    [
        ("utf-8", None, None),
        ("utf-8-sig", None, None),
        ("latin-1", None, "movies.dat is read as latin-1"),
        ("cp1252", "cp1252", "movies.dat is read as cp1252"),
        ("gbk", "gbk", "movies.dat is read as gbk"),
        ("utf-8-sig", "utf-8-sig", "movies.dat is read as utf-8-sig"),
    ],
)
def test_text_is_read_in_the_encoding_of_its_file(tmp_path, stored, setting, note):
    text = "é — è" if stored == "cp1252" else "电影" if stored == "gbk" else "Amélie"
    (_write_1m(tmp_path) / "movies.dat").write_bytes(f"1::{text} (2001)::Drama\n2::B (1999)::Drama\n".encode(stored))
    source = _source(tmp_path, encoding=setting)
    assert source.titles()["name"].to_pylist() == [text, "B"]
    assert source.titles()["title_id"].to_pylist() == ["1", "2"]
    assert [text for text in source.facts.notes if text.startswith("movies.dat")] == [note] * bool(note)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1::A (2001)::Drama\n".encode("utf-16"), r"movies\.dat, line 1: is UTF-16 text: save it as UTF-8"),
        ("1::A (2001)::Drama\n".encode("utf-16-le"), r"movies\.dat, line 1: holds zero bytes: is it UTF-16"),
        (b"PK\x03\x04", r"movies\.dat: is a zip archive: unpack it"),
        (gzip.compress(b"1::A (2001)::Drama\n" * 9, mtime=0)[:-9], r"movies\.dat: truncated or damaged gzip file"),
    ],
)
def test_other_files_than_text_are_errors(tmp_path, content, message):
    (_write_1m(tmp_path) / "movies.dat").write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = _source(tmp_path).facts


@pytest.mark.parametrize(
    ("name", "message"),
    [("klingon", "no encoding of that name is known"), ("utf-16", "'utf-16' does not extend ASCII")],
)
def test_unusable_encoding_is_an_error(tmp_path, name, message):
    with pytest.raises(UserError, match=f"encoding.*{message}"):
        _source(_write_1m(tmp_path), encoding=name)


def test_gzip_files_and_small_pieces_read_the_same(tmp_path, monkeypatch):
    plain = _source(_write_1m(tmp_path))
    users, events = (plain.parts(table)[0]().to_pylist() for table in ("users", "events"))
    titles, facts = plain.titles(), plain.facts
    for name in ("ratings.dat", "users.dat"):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        (tmp_path / name).unlink()
    monkeypatch.setattr(movielens, "BYTES_PER_PIECE", 10)
    packed = _source(tmp_path)
    assert len(packed.parts("events")) == 3
    for table, rows in (("users", users), ("events", events)):
        assert [row for part in packed.parts(table) for row in part().to_pylist()] == rows
    assert packed.titles() == titles
    assert [file.path for file in packed.facts.raw_files] == ["users.dat.gz", "ratings.dat.gz", "movies.dat"]
    assert packed.facts.model_copy(update={"raw_files": facts.raw_files}) == facts


def test_ids_that_became_floats_are_the_same_ids(tmp_path):
    path = _write_1m(tmp_path) / "ratings.dat"
    path.write_text(path.read_text().replace("1::1::", "1.0::1.00::"))
    assert _source(tmp_path).parts("events")[0]()["user_id"].to_pylist() == ["1", "1", "2"]
    path.write_text(f"1::1::5::{100 * DAY_S}\n1::1.2345678901E10::5::{100 * DAY_S}\n")
    with pytest.raises(UserError, match=r"ratings\.dat, line 2: item_id is '1\.2345678901E10', should be an id, not a"):
        _source(tmp_path).parts("events")[0]()


def test_wild_timestamps_leave_the_calendar_alone(tmp_path):
    path = _write_1m(tmp_path) / "ratings.dat"
    path.write_text("".join(f"1::1::5::{946684800 + hour * 3600}\n" for hour in range(24 * 150)))
    calendar = _source(tmp_path).facts.calendar
    with path.open("a") as file:
        file.write("1::2::5::0\n1::2::5::2147483647\n")
    facts = _source(tmp_path).facts
    assert (facts.calendar, facts.raw_files[1].rows) == (calendar, 3602)


def test_one_timestamp_for_all_has_no_order(tmp_path):
    (_write_1m(tmp_path) / "ratings.dat").write_text("1::1::5::946684800\n" * 200 + "2::2::5::0\n")
    with pytest.raises(UserError, match=r"all events carry one timestamp, of 2000-01-01.*set num_evaluation_days=0"):
        _ = _source(tmp_path).facts
    facts = _source(tmp_path, num_evaluation_days=0).facts
    assert not facts.calendar.ordered
    assert UNORDERED in facts.notes


@pytest.mark.parametrize(
    ("age", "band"), [(-3, "-3"), (1, "Under 18"), (17, "Under 18"), (18, "18-24"), (49, "45-49"), (90, "56+")]
)
def test_age_falls_into_the_band_of_its_first_year(age, band):
    assert age_band(age) == band


def test_impossible_timestamps_reach_validation_and_leave_the_calendar_alone(tmp_path):
    calendar = _source(_write_1m(tmp_path)).facts.calendar
    with (tmp_path / "ratings.dat").open("a") as file:
        file.write(f"1::2::5::{10**30}\n1::2::5::-5\n")
    source = _source(tmp_path)
    assert source.facts.calendar == calendar
    assert [time.year for time in source.parts("events")[0]()["timestamp"].to_pylist()[3:]] == [9999, 1969]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.dat", None, r"users\.dat is missing"),
        ("users.dat", b"", r"users\.dat is empty"),
        ("ratings.dat", b"1::1::5::8640000\n1::2::1", r"ratings\.dat, line 2: 3 fields instead of 4 .* truncated"),
        ("ratings.dat", b"1::1::5\n1::2::1::5\n", r"ratings\.dat, line 1: 3 fields .* fix"),
        ("ratings.dat", b"1::1::good::864\n", r"ratings\.dat, line 1: rating is 'good'"),
        ("ratings.dat", b"1::1::1::1e999\n", r"ratings\.dat, line 1: timestamp is '1e999'"),
        ("ratings.dat", b"1::1::5::1\n1::1::4.5::864\n", r"ratings\.dat, line 2: rating is '4\.5'"),
        ("users.dat", b"1::F::1::99::48067\n", r"users\.dat, line 1: occupation is '99', should be 0 to 20"),
    ],
)
def test_damaged_file_error_names_line_and_fix(tmp_path, name, content, message):
    path = _write_1m(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = _source(tmp_path).facts


def test_wrong_header_is_an_error(tmp_path):
    path = _write_recbole(tmp_path) / "ml-100k.user"
    path.write_text(path.read_text().replace("gender:token", "sex:token"))
    with pytest.raises(UserError, match=r"ml-100k\.user, line 1: column 'gender:token' is missing"):
        _ = _source(tmp_path).facts


def test_empty_folder_and_too_short_data_for_the_evaluation_days_are_errors(tmp_path):
    with pytest.raises(UserError, match="no MovieLens in"):
        _source(tmp_path)
    with pytest.raises(UserError, match="day_length_days"):
        _ = _source(_write_1m(tmp_path), day_length_days=60).facts

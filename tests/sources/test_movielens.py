"""MovieLens in its three layouts, and damaged files."""

from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S
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
    (folder / "u.data").write_text(f"1\t1\t5\t{0}\n1\t1\t5\t{90 * DAY_S}\n")
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
        f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t3\t0\n1\t1\t4\t{90 * DAY_S}.0\n"
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

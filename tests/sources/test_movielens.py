"""MovieLens in its three forms, and files that are not as they should be."""

from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.movielens import age_band, territory_of
from mtrec_ray.sources.registry import make_source

DAY_S = 86_400


def _write_1m(folder: Path) -> Path:
    (folder / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::V0E 1A0\n")
    (folder / "movies.dat").write_bytes(
        "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Misérables, Les (1998)::Drama\n".encode("latin-1")
    )
    lines = [f"1::1::5::{100 * DAY_S}", f"1::2::1::{150 * DAY_S + 7}", f"2::2::4::{199 * DAY_S}"]
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
        "1\tToy Story\t1995\tAnimation Comedy\n"
    )
    (folder / "ml-100k.inter").write_text(
        f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t3\t0\n1\t1\t4\t{90 * DAY_S}\n"
    )
    return folder


def test_1m(tmp_path):
    source = make_source("movielens", {}, str(_write_1m(tmp_path)))
    (users,), (events,) = ([part() for part in parts] for parts in (source.user_parts(), source.event_parts()))
    assert users.to_pylist()[0] == {
        "user_id": "1",
        "territory": "zip-4",
        "gender": "F",
        "age": "Under 18",
        "occupation": "K-12 student",
    }
    assert users["territory"][1].as_py() == "zip-other"
    assert source.titles()["name"].to_pylist() == ["Toy Story", "Misérables, Les"]
    assert source.titles()["decade"].to_pylist() == ["1990s", "1990s"]
    assert source.titles()["genres"][0].as_py() == "Animation Children's Comedy"
    assert events.num_rows == 3
    calendar = source.facts.calendar
    assert (calendar.window_end - calendar.window_start).days == 100 - 84
    assert calendar.day_bounds(3)[1] > events["timestamp"][2].as_py() >= calendar.day_bounds(3)[0]


def test_low_ratings_can_be_left_out(tmp_path):
    source = make_source("movielens", {"min_rating": 4}, str(_write_1m(tmp_path)))
    assert source.event_parts()[0]()["title_id"].to_pylist() == ["1", "2"]


@pytest.mark.parametrize("write", [_write_100k, _write_recbole])
def test_100k(tmp_path, write):
    source = make_source("movielens", {}, str(write(tmp_path)))
    row = source.user_parts()[0]().to_pylist()[0]
    assert row == {"user_id": "1", "territory": "zip-8", "gender": "M", "age": "18-24", "occupation": "technician"}
    assert row["occupation"] in source.facts.attributes["occupation"]
    film = source.titles().to_pylist()[0]
    assert film["name"] == "Toy Story"
    assert film["genres"].startswith("Animation")
    assert film["decade"] == "1990s"


@pytest.mark.parametrize(
    ("age", "band"), [(1, "Under 18"), (17, "Under 18"), (18, "18-24"), (49, "45-49"), (90, "56+")]
)
def test_age_bands(age, band):
    assert age_band(age) == band


def test_what_cannot_be_is_left_for_validation_to_name(tmp_path):
    folder = _write_1m(tmp_path)
    before = make_source("movielens", {}, str(folder)).facts.calendar
    with (folder / "ratings.dat").open("a") as file:
        file.write(f"1::2::5::{10**30}\n1::2::5::-5\n")
    source = make_source("movielens", {}, str(folder))
    assert source.facts.calendar == before
    assert [moment.year for moment in source.event_parts()[0]()["timestamp"].to_pylist()[3:]] == [9999, 1969]
    assert age_band(-3) == "-3"


def test_territories():
    assert [territory_of(code) for code in ("01002", "9", "T8H1N", "")] == ["zip-0", "zip-9", "zip-other", "zip-other"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.dat", None, r"users\.dat is missing"),
        ("users.dat", b"", r"users\.dat is empty"),
        ("ratings.dat", b"1::1::5::8640000\n1::2::1", r"ratings\.dat, line 2: 3 fields instead of 4 .* truncated"),
        ("ratings.dat", b"1::1::5\n1::2::1::5\n", r"ratings\.dat, line 1: 3 fields .* fix"),
        ("ratings.dat", b"1::1::good::864\n", r"ratings\.dat, line 1: rating is 'good'"),
        ("users.dat", b"1::F::1::99::48067\n", r"users\.dat, line 1: occupation is 99"),
    ],
)
def test_damaged_files_are_named_with_line_and_mend(tmp_path, name, content, message):
    path = _write_1m(tmp_path) / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        _ = make_source("movielens", {}, str(tmp_path)).facts


def test_wrong_header_is_named(tmp_path):
    path = _write_recbole(tmp_path) / "ml-100k.user"
    path.write_text(path.read_text().replace("gender:token", "sex:token"))
    with pytest.raises(UserError, match=r"ml-100k\.user, line 1: column 'gender:token' is missing"):
        _ = make_source("movielens", {}, str(tmp_path)).facts


def test_too_short_data_for_the_evaluation_days(tmp_path):
    with pytest.raises(UserError, match="day_length_days"):
        _ = make_source("movielens", {"day_length_days": 60}, str(_write_1m(tmp_path))).facts


def test_missing_folder_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="--raw DIR"):
        make_source("movielens", {})
    with pytest.raises(UserError, match="is not a folder"):
        make_source("movielens", {}, str(tmp_path / "no"))
    with pytest.raises(UserError, match="no MovieLens in"):
        make_source("movielens", {}, str(tmp_path))

"""`mtrec lake init`: what it takes files for, what it is unsure of, and that its file builds a lake."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec_ray.config import load_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.quickstart_config import QuickstartConfig
from mtrec_ray.lake.build import build_from_source
from mtrec_ray.lake.cluster import tasks_in_process
from mtrec_ray.lake.config import LakeBuildConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.guess import guess_unit
from mtrec_ray.sources.init import InitConfig, InitResult, init_lake

DAYS = 60


def init(raw: Path, **settings: Any) -> InitResult:
    return init_lake(InitConfig(raw=str(raw), out=str(raw.parent / "lake.yaml"), **settings))


def build(result: InitResult, tmp_path: Path) -> Lake:
    """A lake from the file alone, as `mtrec lake build parquet --config` makes it."""
    out = str(tmp_path / "lake")
    with tasks_in_process():
        build_from_source(load_config(LakeBuildConfig, result.out, [f"out={out}"], {"dataset": "parquet"}))
    return Lake.open(out)


def events(users: int = 30, unit: int = 1, extra: str = "") -> str:
    """A line for each of 60 days and user: user, title, time in seconds x `unit`."""
    start = 1_640_995_200  # 2022-01-01
    lines = [
        f"u{user},t{(user + day) % 7},{(start + day * 86_400 + user) * unit}{extra}"
        for day in range(DAYS)
        for user in range(users)
    ]
    return "\n".join(lines) + "\n"


@pytest.fixture
def raw(tmp_path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def test_three_csv_files_with_names_of_their_own(raw, tmp_path):
    (raw / "views.csv").write_text("customer_id,movie_id,watched_at\n" + events())
    people = [f"u{n},{'NO' if n % 2 else 'SE'},{'f' if n % 3 else 'm'},{20 + n}" for n in range(30)]
    (raw / "people.csv").write_text("customer_id,country,gender,shoe size\n" + "\n".join(people) + "\n")
    (raw / "films.csv").write_text("movie_id,title,categories\n" + "".join(f"t{n},Film {n},Drama\n" for n in range(7)))
    result = init(raw)
    source = result.settings.source
    assert (source["events"], source["users"], source["titles"]) == ("views.csv", "people.csv", "films.csv")
    assert source["event_columns"] == {"user_id": "customer_id", "title_id": "movie_id", "timestamp": "watched_at"}
    assert source["user_columns"] == {"user_id": "customer_id", "territory": "country"}
    assert source["title_columns"] == {"title_id": "movie_id", "name": "title", "genres": "categories"}
    assert (source["timestamp_unit"], list(source["attributes"])) == ("s", ["gender", "shoe size"])
    assert any("shoe size" in line for line in result.settings.doubts["attributes"])
    lake = build(result, tmp_path)
    assert lake.territory_names() == ["NO", "SE"]
    assert lake.manifest.attributes["gender"] == ["f", "m"]
    assert lake.titles["name"].to_pylist()[0] == "Film 0"


def test_one_file_of_events_gives_users_and_titles(raw, tmp_path):
    text = "user_id,item,ts,market,rating\n" + events(unit=1000, extra=",jp,5")
    (raw / "log.csv.gz").write_bytes(gzip.compress(text.encode()))
    result = init(raw)
    assert result.settings.source["user_columns"] == {"territory": "market"}
    assert result.settings.source["timestamp_unit"] == "ms"
    assert any("'rating' is not read" in line for line in result.settings.doubts["events"])
    assert "read from the events" in result.settings.doubts["users"][0]
    lake = build(result, tmp_path)
    assert (lake.territory_names(), lake.titles.num_rows) == (["jp"], 7)
    assert pq.read_table(Path(lake.uri) / "users").num_rows == 30


def test_the_first_event_of_a_user_says_its_territory(raw, tmp_path):
    text = events(users=2).replace("\n", ",a\n", 1).replace("\n", ",b\n").replace(",a,b", ",a")
    (raw / "log.csv").write_text("user_id,title_id,timestamp,country\n" + text)
    lake = build(init(raw), tmp_path)
    assert lake.territory_names() == ["a", "b"]
    users = pq.read_table(Path(lake.uri) / "users")
    territories = dict(zip(users["user_id"].to_pylist(), users["territory"].to_pylist(), strict=True))
    assert territories == {"u0": "a", "u1": "b"}


def test_a_file_a_market_is_one_table(raw):
    for market in ("fr", "mx"):
        (raw / f"events_{market}.csv").write_text("user_id,title_id,timestamp,market\n" + events(extra=f",{market}"))
    (raw / "titles.csv").write_text("title_id,name\nt0,A\n")
    result = init(raw)
    assert result.settings.source["events"] == "events_*.csv"
    assert result.settings.facts["territories"] == "2: fr, mx"


def test_a_user_of_two_files_comes_once(raw, tmp_path):
    for month in ("jan", "feb"):
        (raw / f"log_{month}.csv").write_text("user_id,title_id,timestamp\n" + events(users=5))
    lake = build(init(raw), tmp_path)
    users = pq.read_table(Path(lake.uri) / "users")["user_id"].to_pylist()
    assert sorted(users) == [f"u{number}" for number in range(5)]


def test_parquet_in_folders_of_a_territory(raw, tmp_path):
    for market in ("fr", "mx"):
        (raw / "events" / f"country={market}").mkdir(parents=True)
        table = pa.table({"user_id": [f"{market}{n % 5}" for n in range(200)], "title_id": [n % 7 for n in range(200)]})
        times = pa.array([n * 86_400 for n in range(19_000, 19_200)], pa.timestamp("s"))
        pq.write_table(table.append_column("time", times), raw / "events" / f"country={market}" / "part-0.parquet")
    result = init(raw)
    assert result.settings.source["events"] == "events"
    assert "timestamp_unit" not in result.settings.source
    assert build(result, tmp_path).territory_names() == ["fr", "mx"]


def test_without_a_territory_all_are_in_one(raw, tmp_path):
    (raw / "log.csv").write_text("user_id,title_id,timestamp\n" + events())
    result = init(raw)
    assert result.settings.source["one_territory"] == "all"
    assert build(result, tmp_path).territory_names() == ["all"]


def test_few_events_a_day_make_evaluation_days_longer(raw):
    lines = [f"u{n % 40},t{n % 7},{1_500_000_000 + n * 86_400}" for n in range(2000)]
    (raw / "log.csv").write_text("user_id,title_id,timestamp\n" + "\n".join(lines) + "\n")
    result = init(raw)
    assert result.settings.source["evaluation_day_length"] == 168
    assert result.settings.doubts["evaluation_day_length"][1].startswith("504 events are few")


def test_the_file_serves_the_quickstart_too_and_keeps_its_comments(raw):
    (raw / "log.csv").write_text("user_id,title_id,timestamp\n" + events())
    result = init(raw)
    config = load_config(QuickstartConfig, result.out, [], {"dataset": "parquet"})
    assert (config.dataset, config.raw) == ("parquet", str(raw))
    assert config.source["one_territory"] == "all"
    text = Path(result.out).read_text()
    assert "  # no column says a territory: all users are in one\n  one_territory: all\n" in text


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (["1640995200"], "s"),
        (["1640995200000"], "ms"),
        ([1640995200000000], "us"),
        ([1640995200000000000], "ns"),
        (["2022-01-01T10:00:00Z"], None),
    ],
)
def test_the_unit_of_times_is_told_by_their_size(values, unit):
    assert guess_unit(pa.chunked_array([values]))[0] == unit


class TestRefusals:
    def test_an_empty_folder(self, raw):
        with pytest.raises(UserError, match=r"holds no Parquet or CSV file"):
            init(raw)

    def test_a_folder_that_is_not_there(self, raw):
        with pytest.raises(UserError, match=r"nowhere' cannot be listed"):
            init(raw / "nowhere")

    def test_no_time(self, raw):
        (raw / "log.csv").write_text("user_id,title_id\nu,t\n")
        with pytest.raises(UserError, match=r"no table has a time for each event \(log\.csv: user_id, title_id\)"):
            init(raw)

    def test_numbers_that_are_no_time(self, raw):
        (raw / "log.csv").write_text("user_id,title_id,date\nu,t,20190131\n")
        with pytest.raises(UserError, match=r"times such as 20190131 are neither epoch numbers nor dates"):
            init(raw)

    def test_a_file_that_is_there(self, raw):
        (raw / "log.csv").write_text("user_id,title_id,timestamp\n" + events())
        init(raw)
        with pytest.raises(UserError, match=r"lake\.yaml' exists: choose another --out"):
            init(raw)
        init(raw, overwrite=True)

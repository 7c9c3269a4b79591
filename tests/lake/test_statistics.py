"""What `mtrec lake show` says of the data, counted in this process."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from mtrec_ray.lake import build as lake_build
from mtrec_ray.lake import inspect
from mtrec_ray.lake.config import LakeConfig
from mtrec_ray.lake.inspect import LakeSummary, show_lake
from mtrec_ray.lake.statistics import QUANTILES, LakeCounts
from mtrec_ray.sources.source import RawFile
from mtrec_ray.streams.ordered import LocalReader
from tests.lake.conftest import START_S, build

DAY_S = 86_400


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    for module in (lake_build, inspect):
        monkeypatch.setattr(module, "map_tasks", LocalReader().map)


@pytest.mark.parametrize("num_buckets", [1, 4, 64])
def test_shares_and_quantiles_are_those_of_the_rows(service, out, num_buckets):
    """User 0 has 160 further events, user 39 none; half of the users have two last events at one time."""
    service.events = [event for event in service.events if event["user_id"] != "user-39"]
    last = {event["user_id"]: event["timestamp"] for event in service.events}
    tied = [f"user-{n}" for n in range(1, 20)]
    service.events += [{"user_id": user, "title_id": "title-1", "timestamp": last[user]} for user in tied]
    service.events += [{"user_id": "user-0", "title_id": "title-2", "timestamp": START_S + n} for n in range(160)]
    service.titles[0]["name"] = None
    build(service.source(), out, num_buckets=num_buckets)
    document = show_lake(LakeConfig(lake=out)).document()
    assert document["events_per_user"] == {
        "quantiles": {"0": 0, "25": 5, "50": 5, "75": 6, "90": 6, "99": 6, "100": 165},
        "without_events": 1 / 40,
        "last_two_at_one_time": 19 / 39,
    }
    assert document["missing"] == {
        "users": {"gender": 13 / 40},
        "titles": {"name": 1 / 6, "genres": 1.0, "synopsis": 1.0},
    }
    days = Counter((event["timestamp"] - START_S) // DAY_S for event in service.events)
    assert document["event_times"] == {
        "first": "2024-01-01T00:00:00+00:00",
        "last": "2024-01-09T06:00:00+00:00",
        "first_day": days[0] / len(service.events),
        "last_day": days[8] / len(service.events),
    }


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200))
def test_quantiles_are_those_of_all_users(sizes):
    found = LakeCounts(np.zeros((4, 1)), users_by_events=Counter(sizes)).events_per_user()
    expected = np.quantile(sizes, np.array(QUANTILES) / 100, method="lower")
    assert list(found.values()) == expected.astype(int).tolist()


def text_of(summary: LakeSummary) -> str:
    console = Console(width=80, record=True)
    for table in summary.tables():
        console.print(table)
    return console.export_text()


def test_table_names_raw_files_and_what_is_left_out(service, out):
    service.users[0]["territory"] = "XX"
    manifest = build(service.source(), out, on_bad_rows="quarantine")
    files = [RawFile(table="events", path=f"events/{n}.csv", rows=1000 + n) for n in range(23)]
    known = {"raw_files": files, "left_out": {"ratings below min_rating 4": 464_015}}
    summary = LakeSummary(out, manifest.model_copy(update=known))
    text = text_of(summary)
    for line in (
        "events/0.csv: 1,000 rows of events",
        "and 3 more",
        "ratings below min_rating 4: 464,015",
        "users/unknown_territory: 1",
    ):
        assert line in text
    assert "events/20.csv" not in text
    assert summary.document()["left_out"] == known["left_out"]
    assert summary.document()["raw_files"][22] == {"table": "events", "path": "events/22.csv", "rows": 1022}


def test_shown_lake_fits_80_columns(service, out):
    build(service.source(), out)
    text = text_of(show_lake(LakeConfig(lake=out)))
    assert max(map(len, text.splitlines())) <= 80
    assert "least 5, 25% 5, 50% 5, 75% 5, 90% 5, 99% 5, most 5" in text
    assert "gender 32.5%" in text


def test_lake_without_events_has_no_shares(service, out):
    build(service.source(window_start="2024-01-01", window_end="2024-01-05"), out)
    lake = inspect.Lake.open(out)
    document = LakeCounts.of_all([], 2).document(lake)
    assert document["events_per_user"] == {
        "quantiles": {},
        "without_events": None,
        "last_two_at_one_time": None,
    }
    assert set(document["event_times"].values()) == {None}

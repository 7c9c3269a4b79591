"""Users, candidates and labels of a test day, on a lake that can be counted by hand."""

from collections.abc import Iterable
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams import scored_users
from mtrec_ray.streams.scored_users import ScoringChunk, read_candidates, scoring_chunks
from tests.streams.lakes import CALENDAR, day, lake_of, title_table

TITLES = {"everywhere": [], "north only": ["north"], "other": [], "south only": ["south"]}
EVENTS = [
    ("anna", "other", day(4, 1)),  # seen on day 1, so no candidate on day 2
    ("anna", "everywhere", day(3, 31)),  # seen last month: may be discovered again
    ("anna", "everywhere", day(4, 2)),
    ("anna", "other", day(4, 2)),  # seen again: no discovery
    ("bert", "north only", day(4, 2)),
    ("bert", "north only", day(4, 2, 20)),
    ("bert", "south only", day(4, 2)),  # not offered in the north
    ("carl", "other", day(4, 3)),  # after the day
    ("dora", "south only", day(4, 2)),
]
HOMES = {"anna": "north", "bert": "north", "carl": "south", "dora": "south"}


@pytest.fixture
def lake(tmp_path) -> Lake:
    return lake_of(tmp_path / "lake", HOMES, EVENTS, title_table(TITLES))


def chunks_of(
    lake: Lake, number: int, fixed: pa.Table | None = None, users: Iterable[str] = HOMES
) -> list[ScoringChunk]:
    catalogue = Catalogue.of(lake, *CALENDAR.day_bounds(number))
    bucket = Bucket.read(lake, 0, ("user_id", "embedding"))
    rows = np.flatnonzero(np.isin(bucket.users["user_id"].to_numpy(), list(users)))
    return list(scoring_chunks(lake, bucket, rows, catalogue, fixed))


def named(lake: Lake, chunks: list[ScoringChunk], what: str) -> dict[str, set[str]]:
    """User -> names of the titles marked in `candidates` or `labels`."""
    users, titles = lake.read("users")["user_id"].to_pylist(), lake.titles["title_id"].to_pylist()
    return {
        users[row]: {titles[index] for index in chunk.title_index[marked]}
        for chunk in chunks
        for row, marked in zip(chunk.rows.tolist(), getattr(chunk, what), strict=True)
    }


def test_candidates_are_offered_and_not_seen_earlier_in_the_month(lake):
    assert named(lake, chunks_of(lake, 2), "candidates") == {
        "anna": {"everywhere", "north only"},
        "bert": {"everywhere", "north only", "other"},
        "carl": {"everywhere", "other", "south only"},
        "dora": {"everywhere", "other", "south only"},
    }
    assert named(lake, chunks_of(lake, 1), "candidates")["anna"] == {"everywhere", "north only", "other"}  # the first


def test_labels_are_the_discoveries_of_the_day(lake):
    assert named(lake, chunks_of(lake, 1), "labels") == {"anna": {"other"}, "bert": set(), "carl": set(), "dora": set()}
    assert named(lake, chunks_of(lake, 2), "labels") == {
        "anna": {"everywhere"},
        "bert": {"north only"},
        "carl": set(),
        "dora": {"south only"},
    }


def test_sampled_negatives_are_candidates_and_discoveries_stay(lake):
    full, sampled = (named(lake, chunks, "candidates") for chunks in (chunks_of(lake, 2), one_negative(lake, 2, 0)))
    labels = named(lake, chunks_of(lake, 2), "labels")
    for user, titles in sampled.items():
        assert labels[user] & full[user] <= titles <= full[user]
        assert len(titles - labels[user]) == 1


def test_candidates_are_drawn_uniformly_and_independently_of_other_users(lake):
    drawn = [named(lake, one_negative(lake, 2, seed), "candidates")["carl"] for seed in range(300)]
    counts = np.array([sum(title in titles for titles in drawn) for title in ("everywhere", "other", "south only")])
    assert counts.sum() == 300
    assert (np.abs(counts - 100) < 35).all()
    alone = chunks_of(lake, 2, users=("carl",))[0].with_sampled_negatives(1, 7)
    assert named(lake, [alone], "candidates")["carl"] == drawn[7]


def one_negative(lake: Lake, number: int, seed: int) -> list[ScoringChunk]:
    return [chunk.with_sampled_negatives(1, seed) for chunk in chunks_of(lake, number)]


def test_promotion_ends_the_offer(tmp_path):
    ends = {"promoted_from": [None] * 4, "promoted_until": [day(4, 2, 0), None, None, None]}
    lake = lake_of(tmp_path / "lake", HOMES, EVENTS, title_table(TITLES, **ends))
    assert "everywhere" in named(lake, chunks_of(lake, 1), "candidates")["bert"]
    assert named(lake, chunks_of(lake, 2), "candidates")["bert"] == {"north only", "other"}


def test_fixed_list_replaces_the_offer_of_its_user_alone(lake):
    lists = {"anna": ["other", "everywhere", "south only", "unknown"], "nobody": ["other"]}
    fixed = pa.table({"user_id": list(lists), "title_ids": list(lists.values())})
    candidates = named(lake, chunks_of(lake, 2, fixed), "candidates")
    assert candidates["anna"] == {"other", "everywhere"}
    assert candidates["bert"] == {"everywhere", "north only", "other"}
    assert read_candidates(lake, 0) is None  # without lists


def test_only_the_users_asked_for_are_scored(lake):
    assert set(named(lake, chunks_of(lake, 2, users=("bert", "dora")), "labels")) == {"bert", "dora"}
    assert chunks_of(lake, 2, users=()) == []


def test_a_chunk_holds_one_territory_and_its_users_own_rows_which_can_be_picked(lake):
    north, south = chunks_of(lake, 2)
    assert (north.territory, south.territory) == (0, 1)
    bucket = Bucket.read(lake, 0)
    for chunk in (north, south):
        assert np.array_equal(chunk.keys, bucket.keys[chunk.rows])
        assert set(bucket.territory[chunk.rows]) == {chunk.territory}
        assert chunk.embedding.shape == (2, 4)
        assert (np.diff(chunk.title_index) > 0).all()
    part = north.only(np.array([False, True]))
    assert part.rows.tolist() == north.rows[1:].tolist()
    assert np.array_equal(part.labels, north.labels[1:])
    assert np.array_equal(part.title_index, north.title_index)


@pytest.mark.parametrize("max_cells", [17, 600])
def test_the_size_of_chunks_does_not_change_their_content(random_lake, monkeypatch, max_cells):
    def scored() -> dict[int, tuple]:
        catalogue = Catalogue.of(random_lake, *CALENDAR.day_bounds(2))
        found = {}
        for index in range(random_lake.manifest.num_buckets):
            bucket = Bucket.read(random_lake, index, ("embedding",))
            rows = np.arange(len(bucket.keys))
            for chunk in scoring_chunks(random_lake, bucket, rows, catalogue, None):
                per_user = [
                    f.name for f in fields(chunk) if f.name not in ("territory", "title_index", "keys", "history")
                ]
                for row, key in enumerate(chunk.keys.tolist()):
                    own = (getattr(chunk, name)[row].tobytes() for name in per_user)
                    found[key] = (index, chunk.territory, chunk.title_index.tobytes(), *own)
        return found

    expected = scored()
    monkeypatch.setattr(scored_users, "MAX_CELLS", max_cells)
    assert len(expected) == 400
    assert scored() == expected


def test_chunks_stay_below_the_limit(random_lake, monkeypatch):
    monkeypatch.setattr(scored_users, "MAX_CELLS", 600)
    chunks = chunks_of(random_lake, 1, users=random_lake.read("users", 0)["user_id"].to_pylist())
    assert len(chunks) > 4
    assert max(chunk.labels.size for chunk in chunks) <= 600
    assert min(len(chunk.rows) for chunk in chunks) > 0

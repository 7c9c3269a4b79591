"""Users and their held-out events: what is read without Ray from a lake that can be counted, subsets and chunks."""

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams import held_out
from mtrec_ray.streams.held_out import HeldOutUsers, read_held_out, read_prefixes
from mtrec_ray.streams.sequences import TEST_EVENT, VALIDATION_EVENT, SequenceConfig, in_audit_split
from tests.streams.lakes import day, event_table, title_table, write_lake

CONFIG = SequenceConfig(min_events=5)
NUM_TITLES, NUM_BUCKETS, LENGTH = 40, 4, 6
TITLES = [f"t{index:02d}" for index in range(NUM_TITLES)]
LENGTHS = {f"user{number}": number for number in range(2, 26)}
"""User n watches the titles n, n + 1, ... in this order, n of them."""
NUMBER_OF = {int(user_keys([user])[0]): number for user, number in LENGTHS.items()}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    users = pa.table(
        {
            "user_id": list(LENGTHS),
            "territory": ["north" if number % 2 else "south" for number in LENGTHS.values()],
            "gender": [["F", "M", None][number % 3] for number in LENGTHS.values()],
        }
    )
    events = [
        (user, TITLES[(number + place) % NUM_TITLES], day(1 + place // 25, 1 + place % 25))
        for user, number in LENGTHS.items()
        for place in reversed(range(number))
    ]
    titles = title_table({title: [] for title in TITLES})
    folder = tmp_path_factory.mktemp("held out") / "lake"
    lake = write_lake(folder, users, event_table(events), titles, NUM_BUCKETS)
    return Lake(lake.uri, lake.manifest.model_copy(update={"attributes": {"gender": ["F", "M"]}}))


def read(lake: Lake, event: int = TEST_EVENT, buckets: range = range(NUM_BUCKETS), share: float = 1.0) -> HeldOutUsers:
    return read_held_out(lake, CONFIG, event, LENGTH, buckets, share)


def path_of(key: np.uint64) -> list[int]:
    """The titles a user watched."""
    number = NUMBER_OF[int(key)]
    return [(number + place) % NUM_TITLES for place in range(number)]


def other_titles(users: HeldOutUsers) -> list[list[int]]:
    """Of each user, cut out of the flat array."""
    return [part.tolist() for part in np.split(users.other_titles, np.cumsum(users.other_counts)[:-1])]


def seen_titles(users: HeldOutUsers) -> list[set[int]]:
    """Of each user, out of the chunks."""
    return [set(np.flatnonzero(row).tolist()) for _, seen in users.chunks(NUM_TITLES) for row in seen]


@pytest.mark.parametrize(("event", "place"), [(TEST_EVENT, 1), (VALIDATION_EVENT, 2)], ids=["test", "validation"])
def test_the_event_is_held_out_of_the_users_history_and_other_titles(lake, event, place):
    users = read(lake, event)
    assert sorted(NUMBER_OF[int(key)] for key in users.keys) == list(range(5, 26))  # 5 events or more
    for row, others in enumerate(other_titles(users)):
        path = path_of(users.keys[row])
        history = users.history[row]
        assert users.target[row] == path[-place]
        assert history[history >= 0].tolist() == path[:-place][-LENGTH:]
        assert (history[len(path) - place :] == -1).all()
        assert others == path[: len(path) - place] + path[len(path) - place + 1 :]  # later titles too


def test_columns_and_types(lake):
    users = read(lake)
    numbers = np.array([NUMBER_OF[int(key)] for key in users.keys])
    assert len(users) == 21
    assert users.history.shape == (21, LENGTH)
    assert {users.history.dtype, users.target.dtype, users.other_titles.dtype} == {np.dtype(np.int64)}
    assert users.territory.tolist() == [1 - number % 2 for number in numbers]
    assert users.attribute_index.tolist() == [[[0, 1, -1][number % 3]] for number in numbers]
    assert users.audit_split.tolist() == in_audit_split(users.keys, CONFIG).tolist()
    assert 0 < users.audit_split.sum() < 21


def test_buckets_add_up_and_none_is_nobody(lake):
    whole = read(lake)
    parts = HeldOutUsers.concatenate([read(lake, buckets=range(b, b + 1)) for b in range(NUM_BUCKETS)])
    for name in ("keys", "history", "target", "other_titles", "other_counts"):
        assert np.array_equal(getattr(parts, name), getattr(whole, name)), name
    nobody = read(lake, buckets=range(0))
    assert len(nobody) == 0
    assert nobody.history.shape == (0, LENGTH)
    assert list(nobody.chunks(NUM_TITLES)) == []


def test_a_share_of_the_users_is_the_same_each_time_and_grows_with_the_share(lake):
    few, again, more = (set(read(lake, share=share).keys.tolist()) for share in (0.4, 0.4, 0.8))
    assert few == again
    assert few < more < set(read(lake).keys.tolist())


def test_only_some_users_with_all_that_is_theirs(lake):
    users = read(lake)
    chosen = users.audit_split
    some = users.only(chosen)
    assert len(some) == chosen.sum()
    for name in ("keys", "territory", "attribute_index", "audit_split", "history", "target", "other_counts"):
        assert np.array_equal(getattr(some, name), getattr(users, name)[chosen]), name
    expected = [titles for titles, wanted in zip(other_titles(users), chosen, strict=True) if wanted]
    assert other_titles(some) == expected
    assert seen_titles(some) == [set(titles) for titles in expected]
    assert len(users.only(np.zeros(len(users), dtype=bool))) == 0


def test_seen_titles_are_all_but_the_held_out_one(lake):
    users = read(lake)
    for key, target, seen in zip(users.keys, users.target, seen_titles(users), strict=True):
        assert seen == set(path_of(key)) - {int(target)}


def test_a_held_out_title_watched_before_stays_seen():
    users = HeldOutUsers(
        keys=np.array([1], dtype=np.uint64),
        territory=np.zeros(1, dtype=np.int32),
        attribute_index=np.zeros((1, 0), dtype=np.int64),
        audit_split=np.zeros(1, dtype=bool),
        history=np.array([[3, 2]]),
        target=np.array([3]),
        other_titles=np.array([3, 2, 3]),
        other_counts=np.array([3]),
    )
    assert seen_titles(users) == [{2, 3}]


@pytest.mark.parametrize("cells", [1, NUM_TITLES, 4 * NUM_TITLES + 1, 1000 * NUM_TITLES])
def test_chunks_are_bounded_and_cover_every_user_once(lake, monkeypatch, cells):
    users = read(lake)
    expected = seen_titles(users)
    monkeypatch.setattr(held_out, "MAX_CELLS", cells)
    chunks = list(users.chunks(NUM_TITLES))
    assert [row for rows, _ in chunks for row in range(rows.start, rows.stop)] == list(range(len(users)))
    for rows, seen in chunks:
        assert seen.shape == (rows.stop - rows.start, NUM_TITLES)
        assert seen.dtype == bool
        assert seen.size <= max(cells, NUM_TITLES)  # one user at least
    assert len(chunks) == -(-len(users) // max(1, cells // NUM_TITLES))
    assert seen_titles(users) == expected


def test_prefixes_are_whole_histories_of_users_who_are_not_attacked_without_what_is_held_out(lake):
    found = read_prefixes(lake, CONFIG, LENGTH, range(NUM_BUCKETS), 1.0, 3)
    users = read(lake, VALIDATION_EVENT)
    allowed = set(users.keys[~users.audit_split].tolist())
    assert set(found.keys.tolist()) == allowed
    assert len(found.keys) == 3 * len(allowed)
    whole = {int(key): users.history[row] for row, key in enumerate(users.keys)}
    shorter = 0
    for key, history in zip(found.keys, found.history, strict=True):
        titles, path = history[history >= 0].tolist(), path_of(key)[:-2]
        assert len(titles) == min(LENGTH, len(path))
        start = path.index(titles[0])
        assert path[start : start + len(titles)] == titles
        shorter += history.tolist() != whole[int(key)].tolist()
    assert shorter > 0
    as_they_are = {(int(key), tuple(history)) for key, history in zip(found.keys, found.history, strict=True)}
    assert all((key, tuple(whole[key])) in as_they_are for key in allowed)
    assert len(read_prefixes(lake, CONFIG, LENGTH, [], 1.0, 3).keys) == 0

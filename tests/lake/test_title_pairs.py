"""Pairs for fine-tuning: of one user each, of the window alone, bounded, and popular titles are damped."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.title_pairs import (
    MAX_PAIRS_PER_USER,
    PAIRS_PER_BATCH,
    TitlePairs,
    batches_without_repeats,
    sample_title_pairs,
)
from tests.streams.lakes import CALENDAR, day, lake_of, title_table

NUM_USERS, NUM_TITLES, OWN = 300, 31, 4
HIT = NUM_TITLES - 1
WINDOW = CALENDAR.window_start, CALENDAR.window_end


def service(folder: Path, num_buckets: int) -> Lake:
    """Each user watches the hit and 4 of its third of the titles in the window, after it those of another third."""
    random = np.random.default_rng(0)
    titles = [f"t{number:02d}" for number in range(NUM_TITLES)]
    events = []
    for user in range(NUM_USERS):
        for month, taste in ((2, user % 3), (4, (user + 1) % 3)):
            own = 10 * taste + random.choice(10, OWN, replace=False)
            events += [(f"u{user}", titles[title], day(month, 1)) for title in (*own, HIT)] * 2
    homes = {f"u{user}": "north" for user in range(NUM_USERS)}
    return lake_of(folder, homes, events, title_table({title: [] for title in titles}), num_buckets, embedded=False)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return service(tmp_path_factory.mktemp("pairs") / "lake", num_buckets=3)


def sample(lake: Lake, max_pairs: int, seed: int = 0, users: np.ndarray | None = None) -> np.ndarray:
    """(P, 2) pairs of all buckets, the last bucket first."""
    watched = np.array([NUM_USERS * OWN / 30] * HIT + [NUM_USERS]) if users is None else users
    found = TitlePairs.none()
    for index in reversed(range(lake.manifest.num_buckets)):
        part = sample_title_pairs(index, lake, WINDOW, watched, max_pairs, seed)
        assert len(part.titles) <= max_pairs
        found = found.merge(part, max_pairs)
    return found.shuffled(seed)


def test_pairs_are_of_one_user_and_of_the_window(lake):
    pairs = sample(lake, 10_000)
    assert len(pairs) == NUM_USERS * 2  # of five titles
    tastes = np.where(pairs == HIT, -1, pairs // 10)
    assert all(one == other or -1 in (one, other) for one, other in tastes)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert sorted(set(pairs.ravel())) == list(range(NUM_TITLES))


def test_sample_is_bounded_and_independent_of_the_number_of_buckets(lake, tmp_path):
    other = service(tmp_path / "lake", num_buckets=1)
    pairs = sample(lake, 100)
    assert pairs.shape == (100, 2)
    assert np.array_equal(pairs, sample(other, 100))
    assert not np.array_equal(pairs, sample(lake, 100, seed=1))
    everything = Counter(map(tuple, sample(lake, 10_000).tolist()))
    assert not Counter(map(tuple, pairs.tolist())) - everything


def test_popular_titles_are_damped(lake):
    """The hit has 7.5 times as many users as another title: it is in half as many pairs as undamped."""
    undamped = (sample(lake, 100, users=np.ones(NUM_TITLES)) == HIT).mean()
    damped = (sample(lake, 100) == HIT).mean()
    assert undamped == pytest.approx(0.2, abs=0.05)
    assert damped < 0.12


def test_titles_without_users_are_left_out(lake):
    users = np.where(np.arange(NUM_TITLES) < 10, 0, 40)
    assert (sample(lake, 10_000, users=users) >= 10).all()


def test_no_user_has_more_pairs_than_the_limit(tmp_path):
    titles = [f"t{number:02d}" for number in range(2 * MAX_PAIRS_PER_USER + 9)]
    events = [("a", title, day(2, 1)) for title in titles] + [("b", titles[0], day(2, 1))]
    table = title_table({title: [] for title in titles})
    lake = lake_of(tmp_path / "lake", {"a": "north", "b": "north"}, events, table, embedded=False)
    pairs = sample_title_pairs(0, lake, WINDOW, np.ones(len(titles)), 1000, 0).titles
    assert pairs.shape == (MAX_PAIRS_PER_USER, 2)
    assert len(set(pairs.ravel())) == 2 * MAX_PAIRS_PER_USER


def test_batches_go_round_and_hold_no_text_twice():
    batches = batches_without_repeats([("a", "b"), ("b", "c"), ("c", "d"), ("e", "f")])
    assert [next(batches) for _ in range(2)] == [[("a", "b"), ("c", "d"), ("e", "f")]] * 2
    assert next(batches_without_repeats([]), None) is None
    long = batches_without_repeats([(f"a{n}", f"b{n}") for n in range(PAIRS_PER_BATCH + 1)])
    assert [next(long)[0][0] for _ in range(2)] == ["a0", f"a{PAIRS_PER_BATCH}"]

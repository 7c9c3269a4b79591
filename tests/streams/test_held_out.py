"""Users and their held-out events: what is read without Ray, subsets and chunks."""

from collections.abc import Iterable

import numpy as np
import pytest

from mtrec_ray.columns import concatenate_rows
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams import sequences
from mtrec_ray.streams.crops import Prefixes, make_sequence_plan, read_prefixes
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.recent_histories import RecentHistories, read_recent_histories
from mtrec_ray.streams.sequences import TEST_EVENT, VALIDATION_EVENT, HeldOutUsers, SequenceConfig, UserSplit, in_split
from tests.streams.lakes import NUM_TITLES, NUMBER_OF, day, lake_of, title_table, titles_of

CONFIG = SequenceConfig(min_events=5)
NUM_BUCKETS, LENGTH, NUM_USERS = 4, 6, 26


def read(
    lake: Lake, event: int = TEST_EVENT, buckets: Iterable[int] = range(NUM_BUCKETS), fraction: float = 1.0
) -> HeldOutUsers:
    return sequences.read_held_out(lake, CONFIG, event, LENGTH, buckets, fraction)


def prefixes(
    lake: Lake, buckets: Iterable[int], split: UserSplit = "train", recent: int | None = None, per_user: int = 3
) -> Prefixes:
    plan = make_sequence_plan(lake, CONFIG, LENGTH, split, reader=LocalReader())
    return read_prefixes(lake, plan, buckets, 1.0, per_user, recent)


@pytest.fixture(scope="module")
def rewatched(tmp_path_factory) -> Lake:
    """Users `a`, who watches titles again, and `b`, who watches one title only; an event a day."""
    watched = {"a": [0, 1, 2, 3, 2, 4, 4, 3], "b": [5] * 6}
    events = [
        (u, f"t{title}", day(1, 1 + place)) for u, titles in watched.items() for place, title in enumerate(titles)
    ]
    titles = title_table({f"t{title}": [] for title in range(6)})
    return lake_of(tmp_path_factory.mktemp("rewatched") / "lake", dict.fromkeys(watched, "north"), events, titles)


def other_titles(users: HeldOutUsers) -> list[list[int]]:
    """Of each user, cut out of the flat array."""
    return [part.tolist() for part in np.split(users.other_titles, np.cumsum(users.other_counts)[:-1])]


def seen_titles(users: HeldOutUsers) -> list[set[int]]:
    """Of each user, out of the chunks."""
    return [set(np.flatnonzero(row).tolist()) for _, seen in users.chunks(NUM_TITLES) for row in seen]


@pytest.mark.parametrize(("event", "place"), [(TEST_EVENT, 1), (VALIDATION_EVENT, 2)], ids=["test", "validation"])
def test_event_is_held_out_of_history_and_other_titles(histories, event, place):
    users = read(histories, event)
    assert sorted(NUMBER_OF[int(key)] for key in users.keys) == list(range(5, 31))  # 5 events or more
    for key, history, target, others in zip(users.keys, users.history, users.target, other_titles(users), strict=True):
        watched = titles_of(NUMBER_OF[int(key)])
        assert target == watched[-place]
        assert history[history >= 0].tolist() == watched[:-place][-LENGTH:]
        assert (history[len(watched) - place :] == -1).all()
        assert others == watched[: len(watched) - place] + watched[len(watched) - place + 1 :]  # later titles too


def test_columns_have_a_row_a_user_and_their_dtypes(histories):
    users = read(histories)
    numbers = np.array([NUMBER_OF[int(key)] for key in users.keys])
    assert len(users) == NUM_USERS
    assert users.history.shape == (NUM_USERS, LENGTH)
    assert {users.history.dtype, users.target.dtype, users.other_titles.dtype} == {np.dtype(np.int64)}
    assert users.territory.tolist() == [1 - number % 2 for number in numbers]
    assert users.attribute_index.tolist() == [[[0, 1, -1][number % 3]] for number in numbers]
    assert users.audit_split.tolist() == in_split(users.keys, CONFIG, "audit").tolist()
    assert 0 < users.audit_split.sum() < NUM_USERS


def test_buckets_add_up_and_no_buckets_are_nobody(histories):
    together = read(histories)
    parts = concatenate_rows([read(histories, buckets=[bucket]) for bucket in range(NUM_BUCKETS)])
    for name in ("keys", "history", "target", "other_titles", "other_counts"):
        assert np.array_equal(getattr(parts, name), getattr(together, name)), name
    nobody = read(histories, buckets=[])
    assert len(nobody) == 0
    assert nobody.history.shape == (0, LENGTH)
    assert [(rows, seen.shape) for rows, seen in nobody.chunks(NUM_TITLES)] == [(slice(0, 0), (0, NUM_TITLES))]
    assert len(prefixes(histories, []).keys) == 0


def test_larger_fractions_of_the_users_contain_smaller_ones(histories):
    few, again, more = (set(read(histories, fraction=f).keys.tolist()) for f in (0.4, 0.4, 0.8))
    assert few == again
    assert few < more < set(read(histories).keys.tolist())


def test_some_users_take_their_titles_with_them(histories):
    users = read(histories)
    chosen = users.audit_split
    some = users.only(chosen)
    assert len(some) == chosen.sum()
    for name in (
        "keys",
        "territory",
        "attribute_index",
        "audit_split",
        "history",
        "target",
        "target_time",
        "other_counts",
    ):
        assert np.array_equal(getattr(some, name), getattr(users, name)[chosen]), name
    expected = [titles for titles, wanted in zip(other_titles(users), chosen, strict=True) if wanted]
    assert other_titles(some) == expected
    assert seen_titles(some) == [set(titles) for titles in expected]
    assert len(users.only(np.zeros(len(users), dtype=bool))) == 0


def test_seen_titles_are_all_but_the_held_out_one(histories):
    users = read(histories)
    for key, target, seen in zip(users.keys, users.target, seen_titles(users), strict=True):
        assert seen == set(titles_of(NUMBER_OF[int(key)])) - {int(target)}


def test_held_out_title_watched_before_counts_as_seen():
    users = HeldOutUsers(
        keys=np.array([1], dtype=np.uint64),
        territory=np.zeros(1, dtype=np.int32),
        attribute_index=np.zeros((1, 0), dtype=np.int64),
        audit_split=np.zeros(1, dtype=bool),
        history=np.array([[3, 2]]),
        target=np.array([3]),
        target_time=np.zeros(1, dtype="datetime64[us]"),
        other_titles=np.array([3, 2, 3]),
        other_counts=np.array([3]),
    )
    assert seen_titles(users) == [{2, 3}]


@pytest.mark.parametrize(
    ("settings", "event", "history", "target", "unranked"),
    [
        ({}, TEST_EVENT, [0, 1, 2, 3, 2], 4, {0, 1, 2, 3}),
        ({}, VALIDATION_EVENT, [0, 1, 2], 3, {0, 1, 2, 4}),
        ({"max_events": 5}, VALIDATION_EVENT, [1, 2], 3, {1, 2, 4}),
        ({"exclude_seen": False}, TEST_EVENT, [1, 2, 3, 2, 4, 4], 3, set()),
        ({"exclude_seen": False, "max_events": 4}, TEST_EVENT, [2, 4, 4], 3, set()),
    ],
)
def test_seen_titles_are_neither_held_out_nor_ranked_unless_rewatching_counts(
    rewatched, settings, event, history, target, unranked
):
    config = CONFIG.model_copy(update=settings)
    users = sequences.read_held_out(rewatched, config, event, LENGTH, [0])
    assert users.history[0][users.history[0] >= 0].tolist() == history
    assert users.target.tolist() == [target, 5][: len(users)]
    assert seen_titles(users)[0] == unranked
    plan = make_sequence_plan(rewatched, config, LENGTH, "all", reader=LocalReader())
    assert (plan.users, plan.users_left_out) == ((1, 1) if config.exclude_seen else (2, 0))
    assert plan.events_cut == {5: 1, 4: 4 + 2}.get(config.max_events, 0)
    assert len(plan.notes()) == (plan.users_left_out > 0) + (plan.users_cut > 0)


def test_lake_of_rewatched_titles_is_refused_with_the_setting(rewatched):
    with pytest.raises(UserError, match=r"all 2 users .* set sequences.exclude_seen=false if rewatching counts"):
        make_sequence_plan(rewatched, CONFIG.model_copy(update={"max_events": 4}), LENGTH, "all", reader=LocalReader())


@pytest.mark.parametrize("cells", [1, NUM_TITLES, 4 * NUM_TITLES + 1, 1000 * NUM_TITLES])
def test_chunks_are_bounded_and_cover_every_user_once(histories, monkeypatch, cells):
    users = read(histories)
    expected = seen_titles(users)
    monkeypatch.setattr(sequences, "MAX_CELLS", cells)
    chunks = list(users.chunks(NUM_TITLES))
    assert [row for rows, _ in chunks for row in range(rows.start, rows.stop)] == list(range(len(users)))
    for rows, seen in chunks:
        assert seen.shape == (rows.stop - rows.start, NUM_TITLES)
        assert seen.dtype == bool
        assert seen.size <= max(cells, NUM_TITLES)  # one user at least
    assert len(chunks) == -(-len(users) // max(1, cells // NUM_TITLES))
    assert seen_titles(users) == expected


@pytest.mark.parametrize("split", ["train", "train_lower"])
def test_prefixes_are_crops_of_the_splits_histories_without_held_out_events(histories, split):
    found = prefixes(histories, range(NUM_BUCKETS), split)
    users = read(histories, VALIDATION_EVENT)
    full = {int(key): history for key, history in zip(users.keys, users.history, strict=True)}
    expected = set(users.keys[in_split(users.keys, CONFIG, split)].tolist())
    assert set(found.keys.tolist()) == expected
    assert len(found.keys) == 3 * len(expected)
    for key, history in zip(found.keys, found.history, strict=True):
        titles, watched = history[history >= 0].tolist(), titles_of(NUMBER_OF[int(key)])[:-2]
        assert len(titles) == min(LENGTH, len(watched))
        start = watched.index(titles[0])
        assert watched[start : start + len(titles)] == titles
    drawn = {(int(key), tuple(history)) for key, history in zip(found.keys, found.history, strict=True)}
    assert all((key, tuple(full[key])) in drawn for key in expected)
    assert len(drawn) > len(expected)


def recent(lake: Lake, buckets: Iterable[int], fraction: float = 1.0) -> RecentHistories:
    return read_recent_histories(lake, CONFIG, "audit", LENGTH, buckets, fraction, 4, 2)


def test_recent_histories_end_ever_earlier_before_the_test_event(histories):
    found, users = recent(histories, range(NUM_BUCKETS)), read(histories)
    audited = users.only(users.audit_split)
    np.testing.assert_array_equal(found.keys, audited.keys)
    np.testing.assert_array_equal(found.attribute_index, audited.attribute_index)
    np.testing.assert_array_equal(found.history[:, 0], audited.history)
    for key, own in zip(found.keys, found.history, strict=True):
        watched = titles_of(NUMBER_OF[int(key)])[:-1]
        step = min(2, (len(watched) - 2) / 3)  # closer together where the oldest would have less than two events
        for number, history in enumerate(own):
            end = len(watched) - int(number * step)
            assert end >= 2
            assert history[history >= 0].tolist() == watched[max(0, end - LENGTH) : end]


def test_recent_histories_of_a_fraction_are_of_the_users_who_are_drawn_for_it(histories):
    some, users = recent(histories, range(NUM_BUCKETS), 0.5), read(histories, fraction=0.5)
    np.testing.assert_array_equal(some.keys, users.keys[users.audit_split])
    assert recent(histories, []).history.shape == (0, 4, LENGTH)


def test_recent_prefixes_end_at_most_so_many_events_earlier(histories):
    found = prefixes(histories, range(NUM_BUCKETS), recent=2, per_user=40)
    ends: dict[int, set[int]] = {}
    for key, history in zip(found.keys, found.history, strict=True):
        watched = titles_of(NUMBER_OF[int(key)])[:-2]  # before the validation event
        read = history[history >= 0].tolist()
        places = [end for end in range(1, len(watched) + 1) if watched[max(0, end - LENGTH) : end] == read]
        assert places
        ends.setdefault(int(key), set()).add(len(watched) - places[-1])
    assert set().union(*ends.values()) == {0, 1, 2}

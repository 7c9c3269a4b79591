"""Positives counted by hand; distribution of the negatives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.bucket import Bucket, Catalogue, pair_code
from mtrec_ray.streams.reader import bernoulli_positions, labelled_pairs
from tests.streams.lakes import day, lake_of, title_table

WINDOW = day(1, 1, 0), day(4, 1, 0)


@pytest.fixture
def bucket(tmp_path):
    """ann discovers x twice (in two months) and y once; bob's z is not offered to him; eve has nothing."""
    events = [
        ("ann", "x", day(1, 5)),
        ("ann", "x", day(1, 9)),  # the same month: not the first
        ("ann", "x", day(2, 1)),
        ("ann", "y", day(3, 31)),
        ("ann", "y", day(4, 1)),  # after the window, first of April
        ("bob", "z", day(2, 2)),  # north only
    ]
    homes = {"ann": "north", "bob": "south", "eve": "south"}
    lake = lake_of(tmp_path / "lake", homes, events, title_table({"w": [], "x": [], "y": [], "z": ["north"]}))
    return Bucket.read(lake, 0), Catalogue.of(lake, *WINDOW)


def test_positives_are_first_events_within_a_month(bucket):
    rows, catalogue = bucket
    events = rows.discoveries(*WINDOW, catalogue.offer_mask)
    found = {(int(rows.event_user[e]), int(rows.event_title[e]), str(rows.event_time[e])[:10]) for e in events}
    assert found == {(0, 1, "2022-01-05"), (0, 1, "2022-02-01"), (0, 2, "2022-03-31")}


def test_the_day_after_the_window_has_its_own_first_time(bucket):
    rows, catalogue = bucket
    events = rows.discoveries(day(4, 1, 0), day(4, 2, 0), catalogue.offer_mask)
    assert [(int(rows.event_user[e]), int(rows.event_title[e])) for e in events] == [(0, 2)]


def test_negatives_at_rate_one_are_all_offered_unseen_titles(bucket):
    rows, catalogue = bucket
    pairs = labelled_pairs(rows, np.array([0, 1, 2]), catalogue, 1.0, salt=0)
    negatives = {(u, t) for u, t, y in zip(pairs.user_row, pairs.title_index, pairs.label, strict=True) if not y}
    assert negatives == {(0, 0), (0, 3), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)}
    assert (np.diff(pairs.user_row) >= 0).all()


def test_only_titles_promoted_in_the_window_count(tmp_path):
    dates = {"promoted_from": [None, day(4, 2), day(1, 1)], "promoted_until": [day(1, 1, 0), None, day(2, 1)]}
    titles = title_table({"over": [], "later": [], "now": []}, **dates)
    events = [("ann", t, day(1, 20)) for t in ("over", "later", "now")]
    lake = lake_of(tmp_path / "lake", {"ann": "north"}, events, titles)
    catalogue = Catalogue.of(lake, *WINDOW)
    assert [catalogue.title_ids[i].as_py() for i in catalogue.offers[0]] == ["now"]
    assert len(Bucket.read(lake, 0).discoveries(*WINDOW, catalogue.offer_mask)) == 1


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(0, 60), rate=st.floats(0.001, 1.0), num_users=st.integers(0, 20), salt=st.integers(0, 2**63 - 1)
)
def test_bernoulli_positions_are_distinct_ordered_and_depend_on_the_user_alone(length, rate, num_users, salt):
    keys = user_keys([f"u{i}" for i in range(num_users)])
    row, position = bernoulli_positions(keys, length, rate, salt)
    assert ((position >= 0) & (position < length)).all()
    code = pair_code(row, position)
    assert (np.diff(code) > 0).all()
    for user in range(num_users):
        alone = bernoulli_positions(keys[user : user + 1], length, rate, salt)[1]
        assert position[row == user].tolist() == alone.tolist()


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.95])
def test_bernoulli_positions_have_the_rate_everywhere(rate):
    keys, length = user_keys([f"u{i}" for i in range(20_000)]), 25
    _, position = bernoulli_positions(keys, length, rate, salt=3)
    counts = np.bincount(position, minlength=length)
    deviation = np.sqrt(len(keys) * rate * (1 - rate))
    assert np.abs(counts - len(keys) * rate).max() < 5 * deviation

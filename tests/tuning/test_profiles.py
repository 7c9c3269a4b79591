"""Discoveries of territories: counted by hand, and as evidence of a taste."""

import numpy as np
import pytest

from mtrec_ray.hashing import bucket_of, user_keys
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sampling import TRAIN, split_of
from mtrec_ray.tuning.data import TrialData
from mtrec_ray.tuning.partitions import count_discoveries, taste_evidence
from tests.streams.lakes import CALENDAR, day, lake_of, title_table

SAMPLE = SampleConfig(test_fraction=0.3, validation_fraction=0.3)
USERS = [f"u{number}" for number in range(80)]
NUM_BUCKETS = 5


def title_of(number: int) -> int:
    return number % 3


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """Each user discovers a title twice in the window, and another after it."""
    rows = []
    for number, user in enumerate(USERS):
        title = f"t{title_of(number)}"
        rows += [(user, title, day(2, 3)), (user, title, day(2, 9)), (user, f"t{title_of(number + 1)}", day(4, 1))]
    homes = dict(zip(USERS, ["north", "south"] * 40, strict=True))
    folder = tmp_path_factory.mktemp("profiles") / "lake"
    return lake_of(folder, homes, rows, title_table({"t0": [], "t1": [], "t2": []}), NUM_BUCKETS)


def counted(lake: Lake, buckets: tuple[int, ...] = (0, 1, 2, 3, 4), sample: SampleConfig = SAMPLE, **settings):
    data = TrialData(lake, CALENDAR, buckets, CALENDAR.day_bounds(0), held_back=False)
    return count_discoveries(data, sample, LocalReader(), **settings)


def counted_by_hand(parity: int) -> np.ndarray:
    """(N, T) discoveries of training users of the even or odd buckets."""
    keys = user_keys(np.array(USERS, dtype=object))
    buckets, split, counts = bucket_of(keys, NUM_BUCKETS), split_of(keys, SAMPLE), np.zeros((2, 3), int)
    for number in range(len(USERS)):
        if split[number] == TRAIN and buckets[number] % 2 == parity:
            counts[number % 2, title_of(number)] += 1
    return counts


def test_first_discoveries_of_training_users_are_counted_by_half(lake):
    reported = []
    counts = counted(lake, progress=lambda *state: reported.append(state))
    assert reported == [("counting discoveries", done, NUM_BUCKETS) for done in range(1, NUM_BUCKETS + 1)]
    np.testing.assert_array_equal(counts, np.stack([counted_by_hand(0), counted_by_hand(1)]))
    assert counts.sum(axis=(1, 2)).min() > 5


def test_only_training_users_are_counted(lake):
    keys = user_keys(np.array(USERS, dtype=object))
    counts = counted(lake)
    assert counts.sum() == (split_of(keys, SAMPLE) == TRAIN).sum() < len(USERS)
    nobody = SampleConfig(test_fraction=0.0, validation_fraction=0.0)
    assert counted(lake, sample=nobody).sum() == len(USERS)


def test_the_halves_are_even_and_odd_buckets(lake):
    both = counted(lake)
    even, odd = (counted(lake, part) for part in ((0, 2, 4), (1, 3)))
    np.testing.assert_array_equal(even + odd, both)
    assert even[1].sum() == odd[0].sum() == 0


def test_territories_with_the_same_taste_have_no_evidence():
    counts = np.array([[10], [40], [1000]]) * np.ones((3, 8), int)
    evidence = taste_evidence(np.stack([counts, 2 * counts]), np.ones((3, 8), bool))
    np.testing.assert_allclose(evidence.vectors, 0, atol=1e-12)
    skewed = np.array([[100], [200], [300]]) * np.array([1, 2, 5, 20])
    evidence = taste_evidence(np.stack([skewed, skewed]), np.ones((3, 4), bool))
    deviations = evidence.vectors / np.sqrt(evidence.pairs)[:, :, None]
    assert np.abs(deviations).max() < 0.02  # from the half discovery that smooths


def test_titles_discovered_more_than_elsewhere_are_positive():
    one, other = [300, 100, 100, 100], [100, 100, 100, 300]
    counts = np.array([one, one, other, other])
    evidence = taste_evidence(np.stack([counts, counts]), np.ones((4, 4), bool))
    assert (evidence.vectors[:, :2, 0] > 3).all()
    assert (evidence.vectors[:, 2:, 0] < -3).all()
    assert evidence.clusters(2).tolist() == [0, 0, 1, 1]


def test_a_title_of_a_single_territory_has_no_effect():
    offers = np.array([[1, 1, 1, 0], [1, 1, 0, 1], [1, 1, 0, 1]], bool)  # the third title is the first territory's own
    counts = np.array([[50, 20, 7, 0], [30, 30, 0, 40], [10, 60, 0, 5]])
    more = counts.copy()
    more[0, 2] = 5000
    before, after = (taste_evidence(np.stack([rows, rows]), offers) for rows in (counts, more))
    np.testing.assert_array_equal(before.vectors, after.vectors)
    np.testing.assert_array_equal(before.pairs, after.pairs)
    assert (before.vectors[:, :, 2] == 0).all()


def test_a_territory_without_discoveries_has_no_evidence():
    counts = np.array([[0, 0, 0], [5, 9, 1], [8, 2, 2]])
    evidence = taste_evidence(np.stack([counts, counts]), np.ones((3, 3), bool))
    assert (evidence.vectors[:, 0] == 0).all()
    assert np.isfinite(evidence.vectors).all()

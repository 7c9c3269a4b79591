"""The prior against counts by hand and scipy, and that neither later events nor held-out users have an influence."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy.optimize import minimize

from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.bucket import Bucket, Catalogue, to_datetime64
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PeriodPlan, make_plan
from mtrec_ray.streams.prior import (
    FLOOR,
    NUM_ACTIVITIES,
    RECENCIES,
    RIDGE,
    Prior,
    PriorFit,
    PriorGrid,
    count_prior,
    fit_shares,
    log_lift,
)
from mtrec_ray.streams.sampling import TRAIN, split_of
from tests.streams.lakes import CALENDAR, Event, day, event_table, lake_of, random_rows, title_table, write_lake

EIGHT_DAYS = CALENDAR.model_copy(update={"window_start": day(1, 1, 0), "window_end": day(1, 9, 0)})
EVERYBODY = SampleConfig(test_fraction=0.0, random_fraction=1.0, active_fraction=0.0, alpha=1.0)
HELD_OUT = SampleConfig(test_fraction=0.2, validation_fraction=0.2)
HOMES = {"ann": "north", "bob": "north", "cat": "south", "dan": "south"}
EVENTS = [
    ("dan", "t1", day(12, 20).replace(year=2021)),
    ("ann", "t1", day(1, 1)),
    ("ann", "t0", day(1, 2)),
    ("bob", "t0", day(1, 3)),
    ("cat", "t0", day(1, 5)),
    ("ann", "t0", day(1, 6)),  # seen in the same month: no discovery
    ("bob", "t2", day(1, 8)),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Lake:
    return lake_of(
        tmp_path_factory.mktemp("tiny") / "lake", HOMES, EVENTS, title_table({f"t{n}": [] for n in range(4)})
    )


@pytest.fixture(scope="module")
def tiny_prior(tiny) -> Prior:
    _, prior = make_plan(tiny, EVERYBODY, EIGHT_DAYS, reader=LocalReader())
    assert prior is not None
    return prior


def prior_of(lake: Lake, sample: SampleConfig = HELD_OUT, num_periods: int = 2) -> Prior:
    _, prior = make_plan(lake, sample, CALENDAR, num_periods, reader=LocalReader())
    assert prior is not None
    return prior


def fit_of(lake: Lake, sample: SampleConfig, calendar=CALENDAR) -> PriorFit:
    """Counts of all buckets, not fitted yet."""
    catalogue = Catalogue.of(lake, *calendar.day_bounds(0))
    grid = PriorGrid.of(calendar, 1, catalogue.offer_mask.size)
    assert grid is not None
    fit = PriorFit(lake, catalogue, grid)
    for index in range(lake.manifest.num_buckets):
        fit.add(count_prior(Bucket.read(lake, index), sample, catalogue, grid))
    return fit


def features_of(fit: PriorFit, cutoff: int) -> np.ndarray:
    return fit._features(np.cumsum(fit.counts, axis=0), cutoff)


def random_lake(folder: Path, more: list[Event] = [], until=None, num_buckets: int = 2) -> Lake:  # noqa: B006
    users, events, titles = random_rows(num_users=300, num_titles=12)
    if until is not None:
        events = events.filter(pc.less(events["timestamp"], pa.scalar(until)))
    return write_lake(folder, users, pa.concat_tables([events, event_table(more)]), titles, num_buckets)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Lake:
    return random_lake(tmp_path_factory.mktemp("plain") / "lake")


class TestTitles:
    def test_counts_of_a_recency_are_those_by_hand(self, tiny):
        fit = fit_of(tiny, EVERYBODY, EIGHT_DAYS)
        assert fit.grid.num_parts == 8
        assert fit.grid.cutoffs[-1] == to_datetime64(EIGHT_DAYS.window_end)
        found = features_of(fit, -1)  # (G, T, K) at the window's end
        week = np.array([[2, 0, 1, 0], [1, 0, 0, 0]])  # since January 2
        ever = np.array([[2, 1, 1, 0], [1, 1, 0, 0]])
        for recency, own, everywhere in ((7, week, [4, 1, 2, 1]), (30, ever, [4, 3, 2, 1]), (None, ever, [4, 3, 2, 1])):
            share = np.array(everywhere) / sum(everywhere)  # with one more discovery of each title
            of_region = (own + 100 * share) / (own.sum(axis=1, keepdims=True) + 100)
            expected = np.log(own + 100 * of_region + FLOOR)
            np.testing.assert_allclose(found[:, :, RECENCIES.index(recency)], expected, rtol=1e-6)

    def test_a_discovery_counts_from_the_cutoff_at_or_after_its_time(self, tiny):
        fit = fit_of(tiny, EVERYBODY, EIGHT_DAYS)
        before = np.cumsum(fit.counts, axis=0)[np.searchsorted(fit.grid.edges, fit.grid.cutoffs)]
        assert before[:, 0, 0].tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 2]  # t0 in the north: January 2 and 3
        assert before[:, 1, 1].tolist() == [1] * 9  # of dan, before the window

    def test_a_new_title_has_the_lowest_prior(self, tiny_prior):
        for territory in tiny_prior.after(0):
            assert territory.argmin() == 3
            assert territory.argmax() == 0

    def test_mean_lift_over_offered_titles_is_one(self):
        rng = np.random.default_rng(0)
        scores, offered = rng.normal(0, 50, (5, 40)), rng.random((5, 40)) < 0.4
        offered[3] = False
        found = log_lift(scores, offered)
        np.testing.assert_allclose([np.exp(found[g, offered[g]]).mean() for g in (0, 1, 2, 4)], 1.0)
        assert not found[~offered].any()

    def test_weights_are_those_that_scipy_finds(self):
        rng = np.random.default_rng(1)
        offered = rng.random((3, 9)) < 0.7
        features = [rng.normal(size=(3, 9, len(RECENCIES))) for _ in range(4)]
        counts = [rng.poisson(3, (3, 9)) * offered for _ in features]

        def loss(weights: np.ndarray) -> float:
            value = RIDGE / 2 * np.square(weights - 1 / len(RECENCIES)).sum()
            for x, y in zip(features, counts, strict=True):
                scores = np.where(offered, x @ weights, -np.inf)
                log_share = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
                value -= (y * np.where(offered, log_share, 0)).sum()
            return float(value)

        expected = minimize(loss, np.zeros(len(RECENCIES)), tol=1e-12).x
        np.testing.assert_allclose(fit_shares(features, counts, offered), expected, atol=1e-3)
        assert np.abs(expected - 1 / len(RECENCIES)).max() > 0.02


class TestLeaks:
    @pytest.mark.parametrize("seed", range(3))
    def test_events_at_or_after_a_cutoff_have_no_influence(self, plain, tmp_path, seed):
        rng = np.random.default_rng(seed)
        later = [
            (f"u{rng.integers(300)}", f"t{rng.integers(12):02d}", day(4, 1, int(rng.integers(48) // 2)))
            for _ in range(400)
        ]
        later.append(("u0", "t05", CALENDAR.window_end))
        one, two = prior_of(plain), prior_of(random_lake(tmp_path / "lake", later))
        window = slice(0, one.num_parts + 1)
        assert np.array_equal(one.titles[window], two.titles[window])
        assert not np.array_equal(one.after(1), two.after(1))
        for name in ("users", "rates", "seen"):
            assert np.array_equal(getattr(one, name), getattr(two, name)), name

    @pytest.mark.parametrize("part", [1, 20, 58])
    def test_counts_of_a_cutoff_in_the_window_know_nothing_later(self, plain, tmp_path, part):
        fit = fit_of(plain, HELD_OUT)
        until = fit.grid.cutoffs[part].item().replace(tzinfo=CALENDAR.window_start.tzinfo)
        short = fit_of(random_lake(tmp_path / "lake", until=until), HELD_OUT)
        assert np.array_equal(features_of(short, part), features_of(fit, part))
        assert not np.array_equal(features_of(short, -1), features_of(fit, -1))

    def test_test_and_validation_users_have_no_influence(self, plain, tmp_path):
        names = np.array([f"u{number}" for number in range(300)], dtype=object)
        held_out = names[split_of(user_keys(names), HELD_OUT) != TRAIN]
        assert 80 < len(held_out) < 160
        more = [(user, f"t{n % 12:02d}", day(1 + n % 3, 1 + n % 27)) for n, user in enumerate(held_out)]
        again = [(user, "t05", day(3, number)) for user in held_out for number in (2, 20)]
        lake = random_lake(tmp_path / "lake", more + again)
        assert prior_of(lake).dump() == prior_of(plain).dump()
        assert prior_of(lake, EVERYBODY).dump() != prior_of(plain, EVERYBODY).dump()


def test_prior_does_not_depend_on_the_number_of_buckets(plain, tmp_path):
    other = random_lake(tmp_path / "lake", num_buckets=5)
    one, two = prior_of(plain), prior_of(other)
    assert two.seen == pytest.approx(one.seen)
    assert replace(two, seen=one.seen).dump() == one.dump()


def test_round_trip(plain):
    prior = prior_of(plain)
    loaded = Prior.load(prior.dump())
    for field in fields(Prior):
        before, after = getattr(prior, field.name), getattr(loaded, field.name)
        assert np.array_equal(before, after), field.name
        assert np.asarray(before).dtype == np.asarray(after).dtype, field.name
    assert loaded.dump() == prior.dump()


def test_unordered_window_has_no_prior(tiny):
    unordered = EIGHT_DAYS.model_copy(update={"ordered": False})
    plan, prior = make_plan(tiny, EVERYBODY, unordered, reader=LocalReader())
    assert prior is None
    assert plan.periods[0].positives == [4, 1]


class TestPairs:
    def test_value_is_the_sum_of_titles_users_and_seen(self, tiny, tiny_prior):
        prior = replace(tiny_prior, users=np.arange(NUM_ACTIVITIES, dtype=np.float32) / 16, seen=-0.5)
        bucket = Bucket.read(tiny, 0)
        row = {name: index for index, name in enumerate(tiny.read("users", 0)["user_id"].to_pylist())}
        # user, title, time; then by hand: cutoff, territory, activity, watched before the cutoff
        cases = [
            ("ann", 0, day(1, 1, 0), 0, 0, 5 * 8 + 0, 0),  # no event yet
            ("ann", 0, day(1, 2, 23), 1, 0, 0 * 8 + 1, 0),  # t1 the day before; t0 at noon is after the cutoff
            ("ann", 0, day(1, 6), 5, 0, 0 * 8 + 2, 1),
            ("ann", 2, day(1, 8, 23), 7, 0, 0 * 8 + 2, 0),
            ("bob", 0, day(1, 5), 4, 0, 0 * 8 + 1, 1),
            ("cat", 0, day(1, 5), 4, 1, 5 * 8 + 0, 0),
            ("dan", 1, day(1, 5), 4, 1, 1 * 8 + 1, 1),  # 15.5 days ago
        ]
        users, titles, times, cutoffs, territories, activities, seen = zip(*cases, strict=True)
        rows, when = np.array([row[user] for user in users]), np.array([to_datetime64(time) for time in times])
        found = prior.of_pairs(bucket, 0, rows, np.array(titles), when)
        shares = prior.titles[list(cutoffs), list(territories), list(titles)].astype(np.float32)
        expected = shares + np.array(activities) / 16 - 0.5 * np.array(seen)
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        assert found.dtype == np.float16

    def test_pairs_of_a_later_day_have_the_prior_of_its_start(self, plain):
        prior = prior_of(plain)
        times = np.array([to_datetime64(day(4, 1, hour)) for hour in (0, 12, 23)])
        assert prior.cutoff_of(1, times).tolist() == [prior.num_parts] * 3
        assert (prior.cutoffs[prior.num_parts :] == [to_datetime64(day(4, 1, 0)), to_datetime64(day(4, 2, 0))]).all()
        assert prior.after(0) is not prior.after(1)
        assert np.array_equal(prior.after(0), prior.titles[prior.num_parts])

    def test_seen_is_the_log_ratio_of_found_to_expected(self, plain):
        prior = prior_of(plain)
        assert prior.with_seen(9.0, 4.0).seen == pytest.approx(np.log(2))
        catalogue, found = Catalogue.of(plain, *CALENDAR.day_bounds(0)), 0
        for index in range(plain.manifest.num_buckets):
            bucket = Bucket.read(plain, index)
            training = split_of(bucket.keys, HELD_OUT) == TRAIN
            for event in bucket.discoveries(*CALENDAR.day_bounds(0), catalogue.offer_mask):
                user, title, time = bucket.event_user[event], bucket.event_title[event], bucket.event_time[event]
                cutoff = prior.cutoffs[prior.cutoff_of(0, np.array([time]))[0]]
                own = (bucket.event_user == user) & (bucket.event_title == title)
                found += bool(
                    training[user] and cutoff >= prior.cutoffs[56] and (bucket.event_time[own] < cutoff).any()
                )
        counted = [prior.count_seen(Bucket.read(plain, index), HELD_OUT, catalogue.offer_mask) for index in range(2)]
        assert sum(counts[0] for counts in counted) == found > 0


def test_negatives_are_offered_when_positives_were_found():
    slices = [0] * 256
    slices[0], slices[255] = 30, 10
    start, end = CALENDAR.day_bounds(0)
    counts = {"alpha": 1.0, "negative_rate": 1.0, "positives": [40], "eligible": [40]}
    period = PeriodPlan(day=0, start=start, end=end, slices=slices, **counts)
    slice_length = timedelta(days=90) / 256
    expected = [start, start + slice_length / 2, end - slice_length / 2]
    found = period.times(np.array([0.0, 0.375, 0.875]))
    np.testing.assert_array_less(np.abs(found - np.array([to_datetime64(time) for time in expected])).astype(int), 2)


def test_slices_count_the_positives_of_the_window(plain):
    period = make_plan(plain, HELD_OUT, CALENDAR, reader=LocalReader())[0].periods[0]
    assert sum(period.slices) == sum(period.positives)

"""The counting passes against counts by hand, and the effect of alpha and tau."""

# pyright: reportAttributeAccessIssue=false

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.plan import make_plan as count_plan
from mtrec_ray.streams.reader import read_pairs
from mtrec_ray.streams.sampling import TEST, in_random_sample, sampled_users, split_of
from tests.streams.lakes import CALENDAR, day, lake_of, random_rows, title_table, write_lake


def make_plan(lake: Lake, sample: SampleConfig, calendar: Calendar = CALENDAR, num_periods: int = 1) -> PairPlan:
    plan, _ = count_plan(lake, sample, calendar, num_periods, reader=LocalReader())
    return plan


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return write_lake(tmp_path_factory.mktemp("plan") / "lake", *random_rows(num_users=4000), num_buckets=4)


def members(lake, plan):
    """(keys, territory, added) of the sample."""
    found = []
    for index in range(lake.manifest.num_buckets):
        bucket = Bucket.read(lake, index)
        rows, added = sampled_users(bucket, plan.sample, plan.calendar, np.array(plan.added_rates))
        found.append((bucket.keys[rows], bucket.territory[rows], added))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def test_counts_are_those_of_the_sample(lake):
    plan = make_plan(lake, SampleConfig(random_fraction=0.3, active_fraction=0.5))
    keys, territory, added = members(lake, plan)
    assert sum(plan.sampled_per_bucket) == len(keys)
    assert plan.added_users == np.bincount(territory[added], minlength=2).tolist()
    assert plan.random_users == np.bincount(territory[~added], minlength=2).tolist()
    assert not (split_of(keys, plan.sample) == TEST).any()
    assert sum(plan.added_users) == pytest.approx(0.5 * sum(plan.random_users), rel=0.1)


def test_every_added_user_is_active(lake):
    plan = make_plan(lake, SampleConfig(random_fraction=0.3, active_fraction=0.5, active_days=30))
    for index in range(lake.manifest.num_buckets):
        bucket = Bucket.read(lake, index)
        rows, added = sampled_users(bucket, plan.sample, plan.calendar, np.array(plan.added_rates))
        assert bucket.active(*CALENDAR.day_bounds(0), 30)[rows[added]].all()


def test_pairs_come_from_the_folds_alone_and_activity_from_the_window(lake):
    whole, start = make_plan(lake, SampleConfig(active_days=60)), CALENDAR.window_end - timedelta(days=20)
    embeddings = lake.manifest.embeddings.model_copy(update={"fold_starts": [start]})
    folded = replace(lake, manifest=lake.manifest.model_copy(update={"embeddings": embeddings}))
    late = make_plan(folded, SampleConfig(active_days=60))
    assert (late.periods[0].start, late.periods[0].end) == (start, CALENDAR.window_end)
    assert sum(late.periods[0].positives) < sum(whole.periods[0].positives)
    assert (late.active_users, late.calendar) == (whole.active_users, whole.calendar)


def test_counted_positives_are_the_trained_ones_where_watched_titles_are_left_out(lake):
    embeddings = lake.manifest.embeddings.model_copy(update={"interaction_width": 4})
    with_interactions = replace(lake, manifest=lake.manifest.model_copy(update={"embeddings": embeddings}))
    everything, few = ([], [])
    for one, found in ((lake, everything), (with_interactions, few)):
        plan, prior = count_plan(one, SampleConfig(), CALENDAR, 3, reader=LocalReader())
        assert prior is not None
        for period, counted in enumerate(plan.periods):
            read = [read_pairs(period, bucket, one, prior, plan) for bucket in range(one.manifest.num_buckets)]
            trained = sum(int(part.pairs.label.sum()) for part in read)
            assert sum(counted.positives) == trained
            found.append(trained)
    assert all(one > other for one, other in zip(everything, few, strict=True))


def test_events_before_the_window_make_no_user_active(tmp_path):
    events = [("a", "t", day(1, 9)), ("b", "t", day(1, 11))]
    bucket = Bucket.read(lake_of(tmp_path / "lake", dict.fromkeys("ab", "north"), events, title_table({"t": []})), 0)
    for active_days, wanted in ((90, [False, True]), (10**7, [False, True]), (1, [False, False])):
        assert bucket.active(day(1, 10), day(1, 20), active_days).tolist() == wanted


def test_users_who_watched_all_titles_leave_no_negatives(tmp_path):
    users = {f"user{number}": "north" for number in range(9)}
    events = [(user, "t0", day(1, 5)) for user in users]
    lake = lake_of(tmp_path / "lake", users, events, title_table({"t0": []}))
    with pytest.raises(
        UserError, match=r"no eligible negatives .* shorten the window, or take a lake with more titles"
    ):
        make_plan(lake, SampleConfig())


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_alpha_is_the_ratio_of_negatives_to_positives(lake, alpha):
    period = make_plan(lake, SampleConfig(alpha=alpha)).periods[0]
    assert period.negative_rate * sum(period.eligible) == pytest.approx(alpha * sum(period.positives))


def test_alpha_auto_without_added_users_is_sampled_users_over_users_with_a_positive_on_a_mean_day(lake):
    plan = make_plan(lake, SampleConfig(alpha="auto", random_fraction=1.0, active_fraction=0))
    assert sum(plan.added_users) == 0
    # 70% of the users watch 6 times in 90 days: nearly each event is a (user, day) of its own
    assert plan.periods[0].alpha == pytest.approx(90 / (0.7 * 6), rel=0.15)


def test_alpha_auto_counts_the_random_sample_and_not_the_added_active_users(lake):
    alone, added = (
        make_plan(lake, SampleConfig(alpha="auto", random_fraction=0.3, active_fraction=fraction))
        for fraction in (0.0, 1.0)
    )
    assert sum(added.added_users) > 0.9 * sum(added.random_users)
    assert [period.alpha for period in added.periods] == [period.alpha for period in alone.periods]


def test_alpha_auto_is_refused_where_no_user_of_the_random_sample_has_a_positive(tmp_path):
    users = {f"user{number}": "north" for number in range(40)}
    sample = SampleConfig(alpha="auto", random_fraction=0.1, active_fraction=9)
    random = in_random_sample(user_keys(list(users)), sample)
    assert 0 < random.sum() < 20
    events = [(user, "t0", day(1, 5)) for user, chosen in zip(users, random, strict=True) if not chosen]
    lake = lake_of(tmp_path / "lake", users, events, title_table({"t0": [], "t1": []}))
    message = rf"sample\.alpha = auto: none of the {random.sum()} users .* raise sample\.random_fraction, or set"
    with pytest.raises(UserError, match=message):
        make_plan(lake, sample)
    assert make_plan(lake, sample.model_copy(update={"alpha": 1.0})).periods[0].alpha == 1.0


def test_tau_zero_adds_equally_many_users_in_each_territory(lake):
    fraction = {}
    for tau in (0.0, 1.0):
        added = make_plan(lake, SampleConfig(random_fraction=0.2, active_fraction=0.4, tau=tau)).added_users
        fraction[tau] = added[1] / sum(added)
    assert fraction[0.0] == pytest.approx(0.5, abs=0.06)
    assert fraction[1.0] == pytest.approx(0.2, abs=0.05)


def test_control_brings_as_many_positives_as_the_active_set(lake):
    active = make_plan(lake, SampleConfig(random_fraction=0.3, active_fraction=0.5))
    control = make_plan(lake, SampleConfig(random_fraction=0.3, active_fraction=0.5, upsample="control"))
    assert sum(control.periods[0].positives) == pytest.approx(sum(active.periods[0].positives), rel=0.06)
    assert sum(control.added_users) > 1.1 * sum(active.added_users)


def test_each_later_day_is_a_period_with_its_own_positives(lake):
    plan = make_plan(lake, SampleConfig(random_fraction=1.0, active_fraction=0), CALENDAR, num_periods=2)
    window, first_day = plan.periods
    assert (first_day.day, first_day.start) == (1, CALENDAR.window_end)
    assert 0 < sum(first_day.positives) < sum(window.positives)
    assert sum(first_day.positives) == pytest.approx(0.2 * sum(plan.training_users), rel=0.15)

"""Two samples are called the same where they are, by the users that a reader would draw."""

import numpy as np
import pytest

from mtrec_ray.jobs.same_users import notes_on_samples, shared_added_users
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PairPlan, make_plan
from mtrec_ray.streams.sampling import sampled_users
from tests.streams.lakes import CALENDAR, day, event_table, random_rows, write_lake


def plan_of(lake: Lake, **settings) -> PairPlan:
    sample = SampleConfig.model_validate({"random_fraction": 0.3} | settings)
    return make_plan(lake, sample, CALENDAR, reader=LocalReader())[0]


def added_users(lake: Lake, plan: PairPlan) -> set[int]:
    bucket = Bucket.read(lake, 0)
    rows, added = sampled_users(bucket, plan.sample, plan.calendar, np.array(plan.added_rates))
    return set(bucket.keys[rows[added]].tolist())


@pytest.fixture(scope="module")
def lakes(tmp_path_factory) -> dict[str, Lake]:
    """Of users who are all active, and of users of whom a third has no event."""
    users, events, titles = random_rows(num_users=900)
    ids = users["user_id"].to_pylist()
    for_all = event_table([(user, f"t{int(user[1:]) % 6 + 2:02d}", day(3, 15)) for user in ids])
    folder = tmp_path_factory.mktemp("same")
    return {
        "all active": write_lake(folder / "all", users, for_all, titles, num_buckets=1),
        "differ": write_lake(folder / "differ", users, events, titles, num_buckets=1),
    }


def test_where_every_user_is_active_upsampling_and_control_are_one_draw(lakes):
    lake = lakes["all active"]
    plans = [plan_of(lake, active_fraction=0.8, **settings) for settings in ({}, {"upsample": "control"})]
    first, second = (added_users(lake, plan) for plan in plans)
    assert shared_added_users(*plans) == (len(first & second), max(len(first), len(second)))
    assert len(first & second) > 0.95 * len(first)
    (note,) = notes_on_samples({"up": [plans[0]], "mtl+up": [plans[0]], "control": [plans[1]]})
    number = f"of {max(len(first), len(second))} added ones {len(first & second)} are in both"
    assert note == f"up and control were trained on the same users: {number}"


def test_where_users_differ_in_activity_the_samples_are_not_called_the_same(lakes):
    lake = lakes["differ"]
    plans = {name: [plan_of(lake, upsample=name)] for name in ("active", "control")}
    assert added_users(lake, plans["active"][0]) != added_users(lake, plans["control"][0])
    assert list(notes_on_samples(plans)) == []


def test_fewer_added_users_by_the_same_rule_are_a_part_and_not_the_same(lakes):
    plans = [plan_of(lakes["differ"], active_fraction=fraction) for fraction in (0.2, 0.6)]
    few, many = (added_users(lakes["differ"], plan) for plan in plans)
    assert few < many
    assert shared_added_users(*plans) == (len(few), len(many))
    assert list(notes_on_samples({"few": [plans[0]], "many": [plans[1]]})) == []


def test_a_random_sample_of_everybody_leaves_nobody_to_add_and_other_seeds_cannot_be_told(lakes):
    plans = {name: [plan_of(lakes["differ"], random_fraction=1.0, upsample=name)] for name in ("active", "control")}
    message = "active and control were trained on the same users: neither adds any to the random sample"
    assert list(notes_on_samples(plans)) == [message]
    assert shared_added_users(plan_of(lakes["differ"]), plan_of(lakes["differ"], seed=1)) is None

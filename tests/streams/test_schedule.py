"""The schedule: every slot once an epoch, the same batches for any number of workers, resumable at any step."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.plan import PairPlan, PeriodPlan
from mtrec_ray.streams.schedule import Schedule
from tests.streams.lakes import CALENDAR


def make_schedule(per_bucket, pairs, *, lanes=4, epochs=(2,), folds=1, batch_pairs=100) -> Schedule:
    return make_plan(per_bucket, pairs, len(epochs), folds).schedule(epochs, batch_pairs, lanes, seed=0)


def make_plan(per_bucket, pairs, num_periods=1, folds=1) -> PairPlan:
    counts: dict[str, Any] = {"alpha": 1.0, "negative_rate": 0.0, "positives": [pairs], "eligible": [1]}
    periods = [
        PeriodPlan(day=day, start=start, end=end, rows_per_user=folds if day == 0 else 1, **counts)
        for day, (start, end) in enumerate(map(CALENDAR.day_bounds, range(num_periods)))
    ]
    names = ("users", "training_users", "random_users", "added_users", "active_users")
    nobody: dict[str, Any] = {key: [0] for key in names} | {"added_rates": [0.0], "not_offered_positives": 0}
    given = {"lake_hash": "", "sample": SampleConfig(), "calendar": CALENDAR}
    return PairPlan(sampled_per_bucket=per_bucket, periods=periods, **nobody | given)


def slots_by_step(schedule, rank=0, num_workers=1, from_step=0):
    found = Counter()
    for s in schedule.segments(rank, num_workers, from_step):
        slots, steps = s.slots_and_steps(from_step)
        found.update((int(t), s.period, s.epoch, s.bucket, int(p)) for t, p in zip(steps, slots, strict=True))
    return found


@settings(max_examples=60, deadline=None)
@given(
    per_bucket=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda b: sum(b) > 0),
    pairs=st.integers(1, 3000),
    lanes=st.integers(1, 6),
    folds=st.integers(1, 3),
)
def test_each_slot_comes_once_an_epoch_in_batches_of_similar_size(per_bucket, pairs, lanes, folds):
    schedule = make_schedule(per_bucket, pairs, lanes=lanes, folds=folds)
    found = slots_by_step(schedule)
    total = sum(per_bucket) * folds
    assert len(found) == 2 * total
    assert set(found.values()) == {1}
    sizes = Counter(step for step, *_ in found)
    assert max(sizes) < schedule.num_steps
    mean = total / schedule.steps_per_epoch[0]
    assert all(abs(size - mean) <= lanes + 1 for size in sizes.values())


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("from_step", [0, 1, 5, 9, 17])
def test_workers_together_read_the_remaining_slots_of_the_same_batches(num_workers, from_step):
    schedule = make_schedule([13, 40, 7, 22], 900, epochs=(2, 1))
    together = sum((slots_by_step(schedule, rank, num_workers, from_step) for rank in range(num_workers)), Counter())
    assert together == Counter({key: n for key, n in slots_by_step(schedule).items() if key[0] >= from_step})


def test_epochs_differ_in_order_and_periods_follow_each_other():
    schedule = make_schedule([10, 10, 10, 10], 400, epochs=(2, 1), lanes=1)
    assert schedule.period_ends() == [8, 12]
    orders = {}
    for segment in schedule.segments(0, 1):
        orders.setdefault((segment.period, segment.epoch), []).append(segment.bucket)
    assert orders[0, 0] != orders[0, 1] or orders[0, 0] != orders[1, 0]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders.values())


def test_segments_are_read_in_the_order_of_their_steps():
    schedule = make_schedule([13, 40, 7, 22], 900, epochs=(3,))
    begins = [segment.steps(segment.start) for segment in schedule.segments(0, 1)]
    assert begins == sorted(begins)

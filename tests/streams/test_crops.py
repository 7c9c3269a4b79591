"""Windows of histories, read without Ray: every position once an epoch, whoever reads, from any step."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import user_keys
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.crops import (
    SequenceBatch,
    SequencePlan,
    collate,
    in_any_order,
    make_sequence_plan,
    read_crops,
    slots_of,
)
from mtrec_ray.streams.held_out import sampling_hash
from mtrec_ray.streams.ordered import rows_by_step
from mtrec_ray.streams.schedule import Schedule, lanes_of_worker
from mtrec_ray.streams.sequences import TEST_EVENT, VALIDATION_EVENT, SequenceConfig, Sequences, in_audit_split
from tests.streams.lakes import day, event_table, title_table, write_lake

LENGTH = 5
CONFIG = SequenceConfig(min_events=4)
TITLES = [f"t{index:02d}" for index in range(40)]
LENGTHS = {f"user{number}": number for number in range(2, 31)}
"""User n watches the titles n, n + 1, ... in this order, n of them."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    users = pa.table(
        {
            "user_id": list(LENGTHS),
            "territory": ["north"] * len(LENGTHS),
            "gender": [["F", "M", None][number % 3] for number in LENGTHS.values()],
        }
    )
    events = [
        (user, TITLES[(number + place) % 40], day(1 + place // 25, 1 + place % 25))
        for user, number in LENGTHS.items()
        for place in range(number)
    ]
    lake = write_lake(
        tmp_path_factory.mktemp("windows") / "lake",
        users,
        event_table(events),
        title_table({title: [] for title in TITLES}),
        num_buckets=4,
    )
    manifest = lake.manifest.model_copy(update={"attributes": {"gender": ["F", "M"]}})
    return Lake(lake.uri, manifest)


def plan_of(lake: Lake, train_split_only: bool = False) -> SequencePlan:
    """Counted without Ray."""
    windows = []
    for bucket in range(lake.manifest.num_buckets):
        sequences = Sequences.read(lake, bucket, CONFIG)
        kept = sequences.only(~in_audit_split(sequences.keys, CONFIG)) if train_split_only else sequences
        windows.append(len(slots_of(kept, LENGTH)[0]))
    return SequencePlan(
        lake_hash="",
        sequences=CONFIG,
        length=LENGTH,
        train_split_only=train_split_only,
        users=1,
        positions=1,
        crops_per_bucket=windows,
        value_counts=[[0, 0]],
    )


def schedule_of(plan: SequencePlan) -> Schedule:
    return plan.schedule(epochs=3, batch_crops=20, lanes=4, seed=1)


def read(
    lake: Lake, plan: SequencePlan, rank: int = 0, num_workers: int = 1, from_step: int = 0
) -> list[SequenceBatch]:
    schedule = schedule_of(plan)
    lanes = lanes_of_worker(rank, num_workers, schedule.lanes)
    blocks = (read_crops(s, lake, plan, from_step, schedule.seed) for s in schedule.segments(lanes, from_step))
    steps = range(from_step, schedule.num_steps)
    return [collate(step, tables, LENGTH, 1) for step, tables in rows_by_step(blocks, lanes, steps)]


def positions(batches: list[SequenceBatch]) -> Counter:
    """(title, the title that follows) of every position; each pair belongs to one place of each user that has it."""
    return Counter(
        (int(title), int(target))
        for batch in batches
        for title, target in zip(batch.history.ravel(), batch.targets.ravel(), strict=True)
        if target >= 0
    )


def expected(users: dict[str, int]) -> Counter:
    pairs = Counter()
    for number in users.values():
        path = [(number + place) % 40 for place in range(number - 2)]  # the last two are held out
        pairs.update(itertools.pairwise(path))
    return pairs


def test_every_position_comes_once_an_epoch_and_held_out_events_never(lake):
    plan = plan_of(lake)
    steps = schedule_of(plan).steps_per_epoch[0]
    batches = read(lake, plan)
    long_enough = {user: number for user, number in LENGTHS.items() if number >= CONFIG.min_events}
    for epoch in range(3):
        assert positions(batches[epoch * steps : (epoch + 1) * steps]) == expected(long_enough)


@pytest.mark.parametrize("train_split_only", [True, False])
def test_a_plan_counts_the_users_that_are_trained_on_and_no_other(lake, train_split_only):
    def map_here(function, buckets, *shared, **_):
        return ((bucket, function(bucket, *shared)) for bucket in buckets)

    keys = {number: user_keys([user]) for user, number in LENGTHS.items() if number >= CONFIG.min_events}
    attacked = {number for number, key in keys.items() if in_audit_split(key, CONFIG)[0]}
    trained_on = [number for number in keys if not (train_split_only and number in attacked)]
    assert 0 < len(attacked) < len(keys)
    plan = make_sequence_plan(lake, CONFIG, LENGTH, train_split_only, map_over=map_here)
    assert plan.users == len(trained_on)
    assert plan.positions == sum(number - 3 for number in trained_on)
    assert plan.value_counts == [[sum(number % 3 == value for number in trained_on) for value in (0, 1)]]
    lots = [sampling_hash(keys[number], CONFIG)[0] for number in trained_on]
    assert plan.min_sampling_hash == min(lots)
    least = next(users for users in range(1, 100) if min(lots) < users / len(trained_on))
    assert plan.validation_fraction_of(least) == min(1.0, least / len(trained_on))
    with pytest.raises(UserError, match=rf"optim.validation_users = 0 draws none .* make it {least} or more"):
        plan.validation_fraction_of(0)


def test_a_plan_that_an_older_run_wrote_is_read(lake):
    plan = plan_of(lake)
    assert SequencePlan.model_validate(plan.model_dump(exclude={"min_sampling_hash"}) | {"short_users": 3}) == plan


def test_windows_are_consecutive_events_with_their_users_values(lake):
    values = {number: [0, 1, -1][number % 3] for number in LENGTHS.values()}
    for batch in read(lake, plan_of(lake)):
        assert batch.history.shape[1] == batch.targets.shape[1] == LENGTH
        for history, targets, attributes in zip(batch.history, batch.targets, batch.attribute_index, strict=True):
            size = (history >= 0).sum()
            assert (history[size:] == -1).all()
            assert (targets[size:] == -1).all()
            assert (np.diff(history[:size]) % 40 == 1).all()
            assert attributes[0] in values.values()


def test_cuts_move_from_epoch_to_epoch(lake):
    plan = plan_of(lake)
    steps = schedule_of(plan).steps_per_epoch[0]
    batches = read(lake, plan)
    starts = [{int(row[0]) for b in batches[e * steps : (e + 1) * steps] for row in b.history} for e in range(2)]
    assert starts[0] != starts[1]


def test_titles_of_one_moment_change_places_with_each_other_alone():
    titles = np.array([[7, 1, 2, 3, 4, -1], [9, 8, -1, -1, -1, -1]])
    moments = np.array([[5, 6, 6, 6, 9, -1], [5, 5, -1, -1, -1, -1]])
    seen = {tuple(in_any_order(titles, moments, np.arange(w, w + 2, dtype=np.uint64)).ravel()) for w in range(200)}
    first, second = {row[:6] for row in seen}, {row[6:] for row in seen}
    assert first == {(7, *middle, 4, -1) for middle in itertools.permutations([1, 2, 3])}
    assert second == {(9, 8, -1, -1, -1, -1), (8, 9, -1, -1, -1, -1)}


@pytest.mark.parametrize("ties", ["drawn", "stored"])
def test_events_of_one_moment_come_in_a_new_order_each_epoch_if_ties_are_drawn(tmp_path, ties):
    """One user, a day of which holds all events but the first."""
    users = pa.table({"user_id": ["u"], "territory": ["north"], "gender": ["F"]})
    events = [("u", title, day(1, min(1 + place, 2))) for place, title in enumerate(TITLES[: LENGTH + 3])]
    titles = title_table({title: [] for title in TITLES})
    lake = write_lake(tmp_path / "lake", users, event_table(events), titles, num_buckets=1)
    lake = Lake(lake.uri, lake.manifest.model_copy(update={"attributes": {"gender": ["F", "M"]}}))
    plan = plan_of(lake)
    plan = plan.model_copy(update={"sequences": plan.sequences.model_copy(update={"ties": ties})})
    rows = [(h, t) for batch in read(lake, plan) for h, t in zip(batch.history, batch.targets, strict=True)]
    windows = [[*history[history >= 0].tolist(), int(targets[targets >= 0][-1])] for history, targets in rows]
    assert all(set(window) <= set(range(LENGTH + 1)) for window in windows)  # never the two held out
    assert all(0 not in window[1:] for window in windows)
    assert (windows != [sorted(window) for window in windows]) == (ties == "drawn")


def test_attacked_users_are_left_out(lake):
    keys = user_keys(list(LENGTHS))
    free = {
        user: number
        for (user, number), attacked in zip(LENGTHS.items(), in_audit_split(keys, CONFIG), strict=True)
        if not attacked and number >= CONFIG.min_events
    }
    assert 5 < len(free) < 22
    plan = plan_of(lake, train_split_only=True)
    steps = schedule_of(plan).steps_per_epoch[0]
    assert positions(read(lake, plan)[:steps]) == expected(free)


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_shares_add_up(lake, num_workers):
    plan = plan_of(lake)
    shares = [read(lake, plan, rank, num_workers) for rank in range(num_workers)]
    for alone, *parts in zip(read(lake, plan), *shares, strict=True):
        assert positions(list(parts)) == positions([alone])


def test_resuming_gives_the_same_batches(lake):
    plan = plan_of(lake)
    for one, other in zip(read(lake, plan)[7:], read(lake, plan, from_step=7), strict=True):
        assert one.step == other.step
        assert (one.history == other.history).all()
        assert (one.attribute_index == other.attribute_index).all()


def test_leave_one_out_takes_the_last_event_for_the_test_and_the_one_before_for_validation(lake):
    number_of = dict(zip(user_keys(list(LENGTHS)).tolist(), LENGTHS.values(), strict=True))
    for bucket in range(lake.manifest.num_buckets):
        sequences = Sequences.read(lake, bucket, CONFIG)
        for held_out, place in ((TEST_EVENT, 1), (VALIDATION_EVENT, 2)):
            histories, titles = sequences.history_before(held_out, LENGTH), sequences.held_out_title(held_out)
            for key, history, title in zip(sequences.keys.tolist(), histories, titles, strict=True):
                number = number_of[key]
                path = [(number + step) % 40 for step in range(number)]
                assert title == path[-place]
                assert history[history >= 0].tolist() == path[:-place][-LENGTH:]

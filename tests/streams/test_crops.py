"""Crops of histories, read without Ray: every position once an epoch, for any number of workers, from any step."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.crops import SequenceBatch, SequencePlan, make_sequence_plan, sequence_batches, shuffle_ties
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.schedule import Schedule
from mtrec_ray.streams.sequences import SequenceConfig, UserSplit, in_split, sampling_hash
from tests.streams.lakes import NUM_TITLES, NUMBER_OF, day, event_table, title_table, titles_of, with_gender, write_lake

LENGTH, EPOCHS = 5, 3
CONFIG = SequenceConfig(min_events=4)
KEYS = np.array([key for key, number in NUMBER_OF.items() if number >= CONFIG.min_events], dtype=np.uint64)
SPLITS: list[UserSplit] = ["all", "train", "train_lower", "train_upper"]


def plan_of(lake: Lake, split: UserSplit = "all", **settings) -> SequencePlan:
    return make_sequence_plan(lake, CONFIG.model_copy(update=settings), LENGTH, split, reader=LocalReader())


def schedule_of(plan: SequencePlan) -> Schedule:
    return plan.schedule(EPOCHS, batch_crops=20, lanes=4, seed=1)


def read(lake: Lake, plan: SequencePlan, rank: int = 0, num_workers: int = 1, step: int = 0) -> list[SequenceBatch]:
    return list(sequence_batches(lake, plan, schedule_of(plan), rank, num_workers, step, LocalReader()))


def numbers_of(split: UserSplit) -> list[int]:
    return [NUMBER_OF[int(key)] for key in KEYS[in_split(KEYS, CONFIG, split)]]


def positions(batches: list[SequenceBatch]) -> Counter:
    """(title, the title that follows) of every position; each pair comes once in each history that has it."""
    return Counter(
        (int(title), int(target))
        for batch in batches
        for title, target in zip(batch.history.ravel(), batch.targets.ravel(), strict=True)
        if target >= 0
    )


@pytest.mark.parametrize("split", SPLITS)
def test_each_epoch_holds_every_position_of_the_split_once_and_no_held_out_event(histories, split):
    plan = plan_of(histories, split)
    steps, batches = schedule_of(plan).steps_per_epoch[0], read(histories, plan)
    expected = Counter(pair for number in numbers_of(split) for pair in itertools.pairwise(titles_of(number)[:-2]))
    assert len(batches) == EPOCHS * steps
    for epoch in range(EPOCHS):
        assert positions(batches[epoch * steps : (epoch + 1) * steps]) == expected


def test_splits_partition_the_users():
    masks = {split: in_split(KEYS, CONFIG, split) for split in (*SPLITS, "audit")}
    assert masks["all"].all()
    assert (masks["audit"] ^ masks["train"]).all()
    assert (masks["train_lower"] ^ masks["train_upper"] == masks["train"]).all()
    assert 5 < masks["train"].sum() < 22


@pytest.mark.parametrize("split", SPLITS)
def test_plan_counts_the_users_of_the_split(histories, split):
    plan, numbers = plan_of(histories, split), numbers_of(split)
    assert plan.users == len(numbers)
    assert plan.positions == sum(number - 3 for number in numbers)
    assert plan.value_counts == [[sum(number % 3 == value for number in numbers) for value in (0, 1)]]


def test_splits_without_validation_users_or_long_histories_are_refused_with_the_fix(histories):
    plan = plan_of(histories, "train")
    smallest = sampling_hash(KEYS[in_split(KEYS, CONFIG, "train")], CONFIG).min()
    assert plan.min_sampling_hash == smallest
    fewest = next(users for users in range(1, 100) if smallest < users / plan.users)
    assert plan.validation_fraction_of(fewest) == min(1.0, fewest / plan.users)
    with pytest.raises(UserError, match=rf"optim.validation_users = 0 draws none .* make it {fewest} or more"):
        plan.validation_fraction_of(0)
    with pytest.raises(UserError, match=r"no user of the train split has 31 events: lower sequences.min_events"):
        plan_of(histories, "train", min_events=31)


def test_crops_are_consecutive_events_with_their_users_values(histories):
    for batch in read(histories, plan_of(histories)):
        assert batch.history.shape[1] == batch.targets.shape[1] == LENGTH
        for history, targets, attributes in zip(batch.history, batch.targets, batch.attribute_index, strict=True):
            size = (history >= 0).sum()
            assert (history[size:] == -1).all()
            assert (targets[size:] == -1).all()
            assert (np.diff(history[:size]) % NUM_TITLES == 1).all()
            assert attributes[0] in (0, 1, -1)


def test_cuts_move_from_epoch_to_epoch(histories):
    plan = plan_of(histories)
    steps, batches = schedule_of(plan).steps_per_epoch[0], read(histories, plan)
    starts = [{int(row[0]) for b in batches[e * steps : (e + 1) * steps] for row in b.history} for e in range(2)]
    assert starts[0] != starts[1]


def test_ties_are_shuffled_within_their_group():
    titles = np.array([[7, 1, 2, 3, 4, -1], [9, 8, -1, -1, -1, -1]])
    groups = np.array([[5, 6, 6, 6, 9, -1], [5, 5, -1, -1, -1, -1]])
    seen = {tuple(shuffle_ties(titles, groups, np.arange(c, c + 2, dtype=np.uint64)).ravel()) for c in range(200)}
    assert {row[:6] for row in seen} == {(7, *middle, 4, -1) for middle in itertools.permutations([1, 2, 3])}
    assert {row[6:] for row in seen} == {(9, 8, -1, -1, -1, -1), (8, 9, -1, -1, -1, -1)}


def test_ties_come_in_a_new_order_each_epoch(tmp_path):
    """One user, all of whose events but the first share a day."""
    users = pa.table({"user_id": ["u"], "territory": ["north"], "gender": ["F"]})
    events = [("u", f"t{place}", day(1, min(1 + place, 2))) for place in range(LENGTH + 3)]
    titles = title_table({f"t{place}": [] for place in range(LENGTH + 3)})
    lake = with_gender(write_lake(tmp_path / "lake", users, event_table(events), titles, num_buckets=1))
    rows = [(h, t) for b in read(lake, plan_of(lake)) for h, t in zip(b.history, b.targets, strict=True)]
    crops = [[*history[history >= 0].tolist(), int(targets[targets >= 0][-1])] for history, targets in rows]
    assert all(set(crop) <= set(range(LENGTH + 1)) for crop in crops)  # never the two held out
    assert all(0 not in crop[1:] for crop in crops)
    assert crops != [sorted(crop) for crop in crops]


@pytest.mark.parametrize("num_workers", [2, 3])
def test_workers_together_read_the_global_batch(histories, num_workers):
    plan = plan_of(histories)
    parts = [read(histories, plan, rank, num_workers) for rank in range(num_workers)]
    for alone, *together in zip(read(histories, plan), *parts, strict=True):
        assert positions(list(together)) == positions([alone])


def test_resumed_stream_gives_the_same_batches(histories):
    plan = plan_of(histories)
    for one, other in zip(read(histories, plan)[7:], read(histories, plan, step=7), strict=True):
        assert one.step == other.step
        assert (one.history == other.history).all()
        assert (one.attribute_index == other.attribute_index).all()

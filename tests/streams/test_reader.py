"""The rows of each step, read without Ray: the same for any number of workers, from any step, for any bucket count."""

import itertools
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader, rows_by_step
from mtrec_ray.streams.plan import make_plan as count_plan
from mtrec_ray.streams.reader import collate_pairs, labelled_pairs, read_pairs, training_batches
from mtrec_ray.streams.sampling import sampled_users
from mtrec_ray.streams.schedule import Schedule
from tests.streams.lakes import CALENDAR, day, event_table, random_rows, write_lake
from tests.streams.test_schedule import make_plan

NEGATIVE_RATE = 0.2


def plan_of(lake, seed=0):
    """A plan that samples every training user, counted without Ray."""
    sample = SampleConfig(random_fraction=1.0, active_fraction=0.0, seed=seed)
    counts = []
    for bucket in range(lake.manifest.num_buckets):
        rows = Bucket.read(lake, bucket)
        counts.append(len(sampled_users(rows, sample, CALENDAR, np.zeros(2))[0]))
    base = make_plan(counts, 1)
    period = base.periods[0].model_copy(
        update={"negative_rate": NEGATIVE_RATE, "positives": [900], "eligible": [5000], "slices": [1]}
    )
    return base.model_copy(
        update={"sample": sample, "periods": [period], "added_rates": [0.0, 0.0], "lake_hash": lake.manifest.lake_hash}
    )


def schedule_of(plan) -> Schedule:
    return plan.schedule(epochs=(2,), batch_pairs=200, lanes=4, seed=plan.sample.seed)


def read_steps(lake, plan=None, rank=0, num_workers=1, from_step=0, prior=None):
    plan = plan or plan_of(lake)
    return list(training_batches(lake, plan, schedule_of(plan), rank, num_workers, from_step, LocalReader(), prior))


def content(batch):
    """Rows of a batch as a multiset, in any order."""
    found = Counter()
    for row, (start, stop) in enumerate(itertools.pairwise(batch.offsets)):
        columns = (batch.title_index, batch.label, batch.prior)
        pairs = sorted(zip(*(column[start:stop].tolist() for column in columns), strict=True))
        found[batch.embedding[row].tobytes(), int(batch.territory[row]), tuple(pairs)] += 1
    return found


def test_every_step_comes_once_and_in_order(random_lake):
    schedule, batches = schedule_of(plan_of(random_lake)), read_steps(random_lake)
    assert [batch.step for batch in batches] == list(range(schedule.num_steps))
    pairs = [len(batch.label) for batch in batches]
    assert min(pairs) > 0.5 * np.mean(pairs)


def test_epoch_holds_exactly_the_labelled_pairs_of_the_sample(random_lake):
    plan = plan_of(random_lake)
    read = Counter()
    for batch in read_steps(random_lake, plan)[: schedule_of(plan).steps_per_epoch[0]]:
        read.update(zip(batch.title_index.tolist(), batch.label.tolist(), strict=True))
    expected = Counter()
    catalogue = Catalogue.of(random_lake, *CALENDAR.day_bounds(0))
    salt = int(mix(np.array([0], dtype=np.uint64), "phase", 0)[0])
    for index in range(random_lake.manifest.num_buckets):
        bucket = Bucket.read(random_lake, index)
        rows, _ = sampled_users(bucket, plan.sample, CALENDAR, np.zeros(2))
        pairs = labelled_pairs(bucket, rows, catalogue, NEGATIVE_RATE, salt)
        expected.update(zip(pairs.title_index.tolist(), pairs.label.tolist(), strict=True))
    assert read == expected


def test_embeddings_belong_to_their_users(random_lake):
    users = random_lake.read("users")
    vectors = fixed_width_matrix(users["embedding"])
    home = {vector.tobytes(): name for vector, name in zip(vectors, users["territory"].to_pylist(), strict=True)}
    for batch in read_steps(random_lake):
        for vector, territory in zip(batch.embedding, batch.territory, strict=True):
            assert home[vector.tobytes()] == ["north", "south"][territory]


@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_workers_together_read_the_global_batch(random_lake, num_workers):
    plan = plan_of(random_lake)
    parts = [read_steps(random_lake, plan, rank, num_workers) for rank in range(num_workers)]
    for alone, *together in zip(read_steps(random_lake, plan), *parts, strict=True):
        assert sum((content(part) for part in together), Counter()) == content(alone)


@pytest.mark.parametrize("from_step", [1, 7, 11])
def test_resumed_stream_gives_the_same_batches_bit_for_bit(random_lake, from_step):
    straight = read_steps(random_lake)[from_step:]
    resumed = read_steps(random_lake, from_step=from_step)
    for one, other in zip(straight, resumed, strict=True):
        for name in ("embedding", "territory", "offsets", "title_index", "label", "prior"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("num_buckets", [1, 8])
def test_the_pairs_do_not_depend_on_the_bucket_count(random_lake, tmp_path, num_buckets):
    other = write_lake(tmp_path / "lake", *random_rows(), num_buckets=num_buckets)

    def pairs(lake):
        plan = plan_of(lake)
        return sum((content(b) for b in read_steps(lake, plan)[: schedule_of(plan).steps_per_epoch[0]]), Counter())

    assert pairs(other) == pairs(random_lake)


def test_another_seed_draws_other_negatives(random_lake):
    one, two = (read_steps(random_lake, plan_of(random_lake, seed))[0] for seed in (0, 1))
    assert content(one) != content(two)


def test_a_step_without_rows_is_an_empty_batch():
    ((step, rows),) = rows_by_step([], {0}, range(1))
    batch = collate_pairs(step, rows, user_width=4)
    assert batch.embedding.shape == (0, 4)
    assert batch.offsets.tolist() == [0]


EVERYBODY = SampleConfig(random_fraction=1.0, active_fraction=0.0, alpha=2.0)


def earlier_lake(folder, num_buckets=4) -> Lake:
    """Two of three users have watched titles in the year before the window too."""
    users, events, titles = random_rows()
    before = [
        (f"u{n}", f"t{(n + k) % 30:02d}", day(11, 1 + k).replace(year=2021)) for n in range(266) for k in range(8)
    ]
    return write_lake(folder, users, pa.concat_tables([events, event_table(before)]), titles, num_buckets)


def with_interactions(lake: Lake) -> Lake:
    embeddings = lake.manifest.embeddings.model_copy(update={"interaction_width": 4})
    return Lake(lake.uri, lake.manifest.model_copy(update={"embeddings": embeddings}))


def counted(lake: Lake):
    plan, prior = count_plan(lake, EVERYBODY, CALENDAR, 2, reader=LocalReader())
    assert prior is not None
    return plan, prior


def seen_before_cutoff(lake: Lake) -> tuple[int, int]:
    """Trained pairs, and those among them that were watched before the prior's cutoff, as far as the time is known."""
    (plan, prior), pairs, seen = counted(lake), 0, 0
    for bucket in range(lake.manifest.num_buckets):
        for period in (0, 1):
            found = read_pairs(period, bucket, lake, prior, plan)
            times = np.where(found.pairs.label, found.pairs.time, prior.cutoffs[0])  # negatives: the window's start
            cutoffs = prior.cutoffs[prior.cutoff_of(period, times)]
            pairs += len(times)
            seen += found.bucket.seen(found.pairs.user_row, found.pairs.title_index, cutoffs).sum()
            assert len(found.prior) == len(found.slot_of_pair) == len(times)
    return pairs, int(seen)


def test_with_interaction_vectors_no_pair_that_was_watched_before_is_trained_on(tmp_path):
    lake = earlier_lake(tmp_path / "lake")
    (all_pairs, seen), (fewer, none) = seen_before_cutoff(lake), seen_before_cutoff(with_interactions(lake))
    assert none == 0 < seen
    assert fewer <= all_pairs - seen


def test_batches_carry_the_prior_of_their_pairs(tmp_path):
    """The same for any number of buckets and workers."""
    lakes = [with_interactions(earlier_lake(tmp_path / f"lake{n}", n)) for n in (1, 4)]
    epochs = []
    for lake in lakes:
        plan, prior = counted(lake)
        schedule = plan.schedule((1, 1), batch_pairs=200, lanes=4, seed=0)
        parts = [
            list(training_batches(lake, plan, schedule, rank, workers, reader=LocalReader(), prior=prior))
            for workers in (1, 2)
            for rank in range(workers)
        ]
        alone, *together = (sum((content(batch) for batch in part), Counter()) for part in parts)
        assert sum(together, Counter()) == alone
        epochs.append(alone)
        read = np.concatenate([batch.prior for batch in parts[0]])
        expected = [
            read_pairs(period, bucket, lake, prior, plan).prior
            for period in (0, 1)
            for bucket in range(lake.manifest.num_buckets)
        ]
        assert np.array_equal(np.sort(read), np.sort(np.concatenate(expected)))
        assert len(np.unique(read)) > 100
    assert epochs[0] == epochs[1]


def test_positives_have_the_prior_of_their_time(tmp_path):
    lake = earlier_lake(tmp_path / "lake", num_buckets=1)
    plan, prior = counted(lake)
    found = read_pairs(0, 0, lake, prior, plan)
    positive = found.pairs.label
    pairs = (found.pairs.user_row[positive], found.pairs.title_index[positive], found.pairs.time[positive])
    np.testing.assert_array_equal(found.prior[positive], prior.of_pairs(found.bucket, 0, *pairs))
    without = read_pairs(0, 0, lake, None, plan)
    assert not without.prior.any()
    assert np.array_equal(without.pairs.title_index, found.pairs.title_index)

"""The rows of each step, read without Ray: the same for any number of workers, from any step, for any bucket count."""

import itertools
from collections import Counter

import numpy as np
import pytest

from mtrec_ray.columns import fixed_width_matrix
from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader, rows_by_step
from mtrec_ray.streams.reader import collate_pairs, labelled_pairs, training_batches
from mtrec_ray.streams.sampling import sampled_users
from mtrec_ray.streams.schedule import Schedule
from tests.streams.lakes import CALENDAR, random_rows, write_lake
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
    period = base.periods[0].model_copy(update={"negative_rate": NEGATIVE_RATE, "positives": [900], "eligible": [5000]})
    return base.model_copy(
        update={"sample": sample, "periods": [period], "added_rates": [0.0, 0.0], "lake_hash": lake.manifest.lake_hash}
    )


def schedule_of(plan) -> Schedule:
    return plan.schedule(epochs=(2,), batch_pairs=200, lanes=4, seed=plan.sample.seed)


def read_steps(lake, plan=None, rank=0, num_workers=1, from_step=0):
    plan = plan or plan_of(lake)
    return list(training_batches(lake, plan, schedule_of(plan), rank, num_workers, from_step, LocalReader()))


def content(batch):
    """Rows of a batch as a multiset, in any order."""
    found = Counter()
    for row, (start, stop) in enumerate(itertools.pairwise(batch.offsets)):
        pairs = sorted(zip(batch.title_index[start:stop].tolist(), batch.label[start:stop].tolist(), strict=True))
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


def test_cold_rows_lose_their_vector_and_keep_their_pairs(random_lake):
    embeddings = random_lake.manifest.embeddings.model_copy(update={"interaction_width": 4})
    lake = Lake(random_lake.uri, random_lake.manifest.model_copy(update={"embeddings": embeddings}))
    warm = plan_of(lake)
    period = warm.periods[0].model_copy(update={"cold_fraction": 0.3})
    cold = warm.model_copy(update={"periods": [period]})
    empty = []
    for before, after in zip(read_steps(lake, warm), read_steps(lake, cold), strict=True):
        is_empty = ~after.embedding.any(axis=1)
        assert (after.title_index == before.title_index).all()
        assert (after.embedding[~is_empty] == before.embedding[~is_empty]).all()
        empty.append(is_empty)
    epochs = np.array_split(np.concatenate(empty), 2)
    assert np.mean(epochs) == pytest.approx(0.3, abs=0.05)
    assert 0.2 < (epochs[0] != epochs[1][: len(epochs[0])]).mean() < 0.6  # drawn again in each epoch


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
        for name in ("embedding", "territory", "offsets", "title_index", "label"):
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

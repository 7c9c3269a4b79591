"""What trials read: held-back days, and each bucket once for all trials."""

from dataclasses import astuple
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

import mtrec_ray.streams.reader
import mtrec_ray.streams.scored_users
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.prior import Prior
from mtrec_ray.streams.reader import StepRows, read_pairs, training_batches
from mtrec_ray.streams.sampling import VALIDATION, split_of
from mtrec_ray.tuning.data import TrialCache, TrialData, trial_data

DAY_S = 86_400
SAMPLE = SampleConfig(validation_fraction=0.3, alpha=4.0)


def embedded_until(lake: Lake, end: datetime) -> Lake:
    embeddings = lake.manifest.embeddings.model_copy(update={"window_end": end})
    return Lake(lake.uri, lake.manifest.model_copy(update={"embeddings": embeddings}))


def calendar_of(lake: Lake, **changes) -> Calendar:
    return lake.manifest.calendar.model_copy(update=changes)


@pytest.mark.parametrize(
    ("asked", "day_s", "hours"), [(None, DAY_S, 168), (7, DAY_S, 168), (3, DAY_S, 72), (30, DAY_S, 720), (4, 7200, 8)]
)
def test_held_back_days_shorten_the_window_and_validate(trial_lake, asked, day_s, hours):
    calendar = calendar_of(trial_lake, day_s=day_s)
    data = trial_data(trial_lake, calendar, None, asked)
    start = calendar.window_end - timedelta(hours=hours)
    assert data.held_back
    assert data.calendar == calendar.model_copy(update={"window_end": start})
    assert data.validation == (start, calendar.window_end)
    assert data.buckets == (0, 1, 2, 3)


def test_without_held_back_days_the_days_after_the_window_validate(trial_lake):
    calendar = calendar_of(trial_lake)
    data = trial_data(trial_lake, calendar, 2, 0)
    assert not data.held_back
    assert data.calendar == calendar
    assert data.validation == (calendar.window_end, calendar.window_end + timedelta(days=2))
    assert data.buckets == (0, 1)


def test_a_lake_without_order_or_seven_days_validates_after_the_window(trial_lake):
    start = datetime(2022, 2, 20, tzinfo=UTC)
    assert not trial_data(trial_lake, calendar_of(trial_lake, window_start=start), None, None).held_back
    unordered = calendar_of(trial_lake, ordered=False)
    assert not trial_data(trial_lake, unordered, None, None).held_back
    with pytest.raises(UserError, match=r"validation_days = 7: .* no order of time.*set validation_days=0"):
        trial_data(trial_lake, unordered, None, 7)


def test_embeddings_that_know_the_held_back_days_are_refused_with_the_fix(trial_lake):
    calendar = calendar_of(trial_lake)
    lake = embedded_until(trial_lake, calendar.window_end)
    with pytest.raises(UserError) as caught:
        trial_data(lake, calendar, None, 7)
    start = calendar.window_end - timedelta(days=7)
    for part in ("validation_days = 7", str(calendar.window_end), f"embed with window.end={start:%Y-%m-%dT%H:%M}"):
        assert part in str(caught.value)
    assert not trial_data(lake, calendar, None, None).held_back
    assert trial_data(embedded_until(trial_lake, start), calendar, None, 7).held_back


def test_settings_that_do_not_fit_are_refused_before_any_work(trial_lake):
    calendar = calendar_of(trial_lake)
    with pytest.raises(UserError, match="buckets = 5: the lake has 4"):
        trial_data(trial_lake, calendar, 5, None)
    with pytest.raises(UserError, match="validation_days = 31: less than half of the window"):
        trial_data(trial_lake, calendar, None, 31)
    with pytest.raises(UserError, match="validation_days = 0: there is no day after the window"):
        trial_data(trial_lake, calendar_of(trial_lake, num_evaluation_days=0), None, 0)


def validation_keys(data: TrialData) -> np.ndarray:
    return np.concatenate([chunk.keys for chunk in TrialCache().validation(data, SAMPLE, data.buckets)])


def test_only_validation_users_are_scored_up_to_about_the_maximum(trial_lake, monkeypatch):
    data, fewer = (trial_data(trial_lake, calendar_of(trial_lake), count, 7) for count in (None, 2))
    keys = validation_keys(data)
    assert (split_of(keys, SAMPLE) == VALIDATION).all()
    assert len(np.unique(keys)) == len(keys) == pytest.approx(0.3 * 1600, rel=0.15)
    monkeypatch.setattr(mtrec_ray.streams.scored_users, "MAX_VALIDATION_USERS", 150)
    assert set(validation_keys(data)) < set(keys)
    for some in (data, fewer):
        assert len(validation_keys(some)) == pytest.approx(150, rel=0.3)


@pytest.mark.parametrize(("days", "listed"), [(7, False), (0, True)])
def test_candidate_lists_apply_to_test_days_only(trial_lake, monkeypatch, days, listed):
    data = trial_data(trial_lake, calendar_of(trial_lake), None, days)
    offered = [chunk.candidates.sum(axis=1) for chunk in TrialCache().validation(data, SAMPLE, data.buckets)]

    def lists(lake: Lake, bucket: int) -> pa.Table:
        users = lake.read("users", bucket)["user_id"].combine_chunks()
        two = lake.titles["title_id"].to_pylist()[:2]
        return pa.table({"user_id": users, "title_ids": [two] * len(users)})

    monkeypatch.setattr("mtrec_ray.streams.scored_users.read_candidates", lists)
    chosen = [chunk.candidates.sum(axis=1) for chunk in TrialCache().validation(data, SAMPLE, data.buckets)]
    if listed:
        assert np.concatenate(chosen).max() <= 2 < np.concatenate(offered).min()
    else:
        np.testing.assert_array_equal(np.concatenate(chosen), np.concatenate(offered))


def test_cached_validation_users_are_the_same_in_one_chunk_per_territory(trial_lake):
    data = trial_data(trial_lake, calendar_of(trial_lake), None, 7)
    cache = TrialCache()
    chunks = cache.validation(data, SAMPLE, data.buckets)
    assert len({chunk.territory for chunk in chunks}) == len(chunks)
    plain = [chunk for bucket in data.buckets for chunk in TrialCache().validation(data, SAMPLE, (bucket,))]
    assert len(plain) > len(chunks)
    assert sum(chunk.labels.sum() for chunk in plain) == sum(chunk.labels.sum() for chunk in chunks) > 0
    assert {key for chunk in plain for key in chunk.keys} == {key for chunk in chunks for key in chunk.keys}
    assert cache.validation(data, SAMPLE, data.buckets) is chunks
    assert cache.validation(data, SAMPLE, data.buckets[:2]) is not chunks


class CountedReads:
    """`read_pairs` that records which buckets it read."""

    def __init__(self) -> None:
        self.buckets: list[int] = []

    def __call__(self, period: int, bucket: int, lake: Lake, prior: Prior | None, plan: PairPlan):
        self.buckets.append(bucket)
        return read_pairs(period, bucket, lake, prior, plan)


@pytest.fixture
def reads(monkeypatch) -> CountedReads:
    counted = CountedReads()
    monkeypatch.setattr(mtrec_ray.streams.reader, "read_pairs", counted)
    return counted


def batches(data: TrialData, cache: TrialCache, sample: SampleConfig, seed: int, reader=None) -> list[StepRows]:
    plan, prior = cache.plan(data, sample)
    schedule = plan.schedule((2,), batch_pairs=2048, lanes=2, seed=seed)
    return list(training_batches(data.lake, plan, schedule, 0, 1, reader=reader or cache, prior=prior))


def test_two_trials_of_two_epochs_read_each_bucket_once(trial_lake, reads):
    data, cache = trial_data(trial_lake, calendar_of(trial_lake), 3, 7), TrialCache()
    for seed in (0, 1):
        assert batches(data, cache, SAMPLE, seed)
    assert sorted(reads.buckets) == [0, 1, 2]


def test_cached_batches_equal_those_read_from_the_lake(trial_lake):
    data, cache = trial_data(trial_lake, calendar_of(trial_lake), None, 7), TrialCache()
    for seed in (0, 1):
        plain = batches(data, TrialCache(), SAMPLE, seed, reader=LocalReader())
        again = batches(data, cache, SAMPLE, seed)
        assert len(plain) == len(again) > 5
        for one, other in zip(plain, again, strict=True):
            for before, after in zip(astuple(one), astuple(other), strict=True):
                np.testing.assert_array_equal(before, after)


def test_the_pairs_of_the_last_two_samples_are_cached(trial_lake, reads):
    data, cache = trial_data(trial_lake, calendar_of(trial_lake), 1, 7), TrialCache()
    samples = [SAMPLE.model_copy(update={"alpha": alpha}) for alpha in (1.0, 2.0, 3.0)]
    for sample in (samples[0], samples[1], samples[0], samples[1]):
        batches(data, cache, sample, seed=0)
    assert len(reads.buckets) == 2
    for sample in (samples[2], samples[1], samples[0]):  # the third pushed the first out
        batches(data, cache, sample, seed=0)
    assert len(reads.buckets) == 4


def test_no_pair_of_a_held_back_day_is_trained_on(trial_lake):
    data = trial_data(trial_lake, calendar_of(trial_lake), None, 7)
    plan, _ = TrialCache().plan(data, SAMPLE)
    assert plan.periods[0].end == data.validation[0]
    assert len(plan.periods) == 1

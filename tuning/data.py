"""What a trial reads: a stated sample of buckets, and users and days to validate on that no test ever sees."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import read_here
from mtrec_ray.streams.plan import PairPlan, make_plan
from mtrec_ray.streams.reader import BucketPairs, read_pairs
from mtrec_ray.streams.schedule import Segment
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.streams.sequences import SequenceConfig, Sequences, UserSplit
from mtrec_ray.streams.validation_users import by_territory, validation_chunks, validation_sampling_fraction

AUTO_DAYS = 7
"""Days held back unless told otherwise: a week has every weekday once."""


@dataclass(frozen=True)
class TrialData:
    """A sample of a lake, its training window, and the stretch of time that trials are validated on."""

    lake: Lake
    calendar: Calendar
    """Its window ends where validation begins."""
    buckets: tuple[int, ...]
    """Each is a random sample of the users."""
    validation: tuple[datetime, datetime]
    """[start, end)."""
    held_back: bool
    """True: validated on the last days of the window; False: on the days after it, by validation users alone."""


def trial_data(lake: Lake, calendar: Calendar, num_buckets: int | None, validation_days: int | None) -> TrialData:
    """Choose buckets and validation days.

    Args:
        lake: the lake.
        calendar: its window and evaluation days.
        num_buckets: the first so many are read; None is all.
        validation_days: days at the end of the window that are not trained on; None: 7 where the lake's events have an
            order and its embeddings know nothing of these days, else 0; 0: validation users on the days after it.

    Raises:
        UserError: more buckets than there are, or days that cannot be held back.
    """
    buckets = first_buckets(lake, num_buckets)
    if validation_days is None:
        days = AUTO_DAYS if _why_not(lake, calendar, AUTO_DAYS) is None else 0
    else:
        days = validation_days
    if days:
        problem = _why_not(lake, calendar, days)
        if problem:
            raise UserError(f"validation_days = {days}: {problem}; or set validation_days=0")
        start = calendar.window_end - timedelta(seconds=days * calendar.day_s)
        shorter = calendar.model_copy(update={"window_end": start})
        return TrialData(lake, shorter, buckets, (start, calendar.window_end), held_back=True)
    if not calendar.num_evaluation_days:
        raise UserError("validation_days = 0: there is no day after the window; set window.num_evaluation_days or end")
    bounds = calendar.window_end, calendar.day_bounds(calendar.num_evaluation_days)[1]
    return TrialData(lake, calendar, buckets, bounds, held_back=False)


def first_buckets(lake: Lake, count: int | None) -> tuple[int, ...]:
    """The first so many buckets, None is all; UserError where there are fewer."""
    there = lake.manifest.num_buckets
    if count is not None and count > there:
        raise UserError(f"buckets = {count}: the lake has {there}; lower it, or leave it out to read all")
    return tuple(range(there if count is None else count))


def _why_not(lake: Lake, calendar: Calendar, days: int) -> str | None:
    """Why so many days cannot be held back; None where they can."""
    start = calendar.window_end - timedelta(seconds=days * calendar.day_s)
    if not calendar.ordered:
        return "the lake's window has no order of time, so no day of it can be held back"
    if calendar.window_start + (calendar.window_end - calendar.window_start) / 2 > start:
        return f"less than half of the window ({calendar.window_start} to {calendar.window_end}) would be left"
    known = lake.manifest.embeddings.window_end
    if known is not None and known > start:
        return f"the lake's embeddings know events up to {known}: embed with window.end={start:%Y-%m-%dT%H:%M} first"
    return None


def trial_validation_chunks(
    data: TrialData, sample: SampleConfig, buckets: Sequence[int], max_users: int
) -> Iterator[ScoringChunk]:
    """Validation users of some buckets, at most about `max_users` in all of the trial's buckets."""
    fraction = validation_sampling_fraction(data.lake, sample, len(data.buckets), max_users)
    fixed = not data.held_back
    return validation_chunks(data.lake, sample, data.validation, buckets, fraction=fraction, fixed_candidates=fixed)


class TrialCache:
    """What trials of one process share of the last few samples: plans, the sampled buckets' pairs, validation users.

    Trials that differ in the model or the optimiser alone read the lake once. Memory is that of the sample.
    """

    def __init__(self, num_samples: int = 2) -> None:
        self.num_samples = num_samples
        self._plans: OrderedDict[str, PairPlan] = OrderedDict()
        self._pairs: dict[str, dict[tuple[int, int], BucketPairs]] = {}
        self._chunks: dict[str, list[ScoringChunk]] = {}
        self._users: dict[tuple[str, int, str], Sequences] = {}

    @staticmethod
    def _key(data: TrialData, sample: SampleConfig) -> str:
        return f"{data.lake.uri} {data.lake.manifest.lake_hash} {data.calendar} {data.buckets} {sample}"

    def plan(self, data: TrialData, sample: SampleConfig) -> PairPlan:
        key = self._key(data, sample)
        if key not in self._plans:
            while len(self._plans) >= self.num_samples:
                self._pairs.pop(self._plans.popitem(last=False)[0], None)
            self._plans[key] = make_plan(data.lake, sample, data.calendar, buckets=data.buckets, map_over=map_here)
            self._pairs[key] = {}
        self._plans.move_to_end(key)
        return self._plans[key]

    def validation(
        self, data: TrialData, sample: SampleConfig, buckets: Sequence[int], max_users: int
    ) -> list[ScoringChunk]:
        """`trial_validation_chunks`, those of a territory in one."""
        split = (sample.split_seed, sample.test_fraction, sample.validation_fraction)
        key = f"{data.lake.uri} {data.lake.manifest.lake_hash} {data.validation} {buckets} {split} {max_users}"
        if key not in self._chunks:
            self._chunks = {key: by_territory(trial_validation_chunks(data, sample, buckets, max_users))}
        return self._chunks[key]

    def stream(self, read_segment: Any, segments: list[Segment], num_blocks: int, **shared: Any) -> Iterator[pa.Table]:
        """`read_here`, each bucket read once for all epochs and trials of a plan."""
        key = next(key for key, plan in self._plans.items() if plan is shared["plan"])
        known = self._pairs[key]

        def read(period: int, bucket: int, lake: Lake, plan: PairPlan) -> BucketPairs:
            if (period, bucket) not in known:
                known[period, bucket] = read_pairs(period, bucket, lake, plan)
            return known[period, bucket]

        return read_here(read_segment, segments, num_blocks, read=read, **shared)

    def crops(self, read_crops: Any, segments: list[Segment], num_blocks: int, **shared: Any) -> Iterator[pa.Table]:
        """`read_here` for crops, each bucket's histories read once for all epochs and trials."""

        def read(lake: Lake, bucket: int, config: SequenceConfig, split: UserSplit) -> Sequences:
            key = (lake.manifest.lake_hash, bucket, f"{config} {split}")
            if key not in self._users:
                self._users[key] = Sequences.read(lake, bucket, config, split)
            return self._users[key]

        return read_here(read_crops, segments, num_blocks, read=read, **shared)


def map_here(
    function: Callable[..., Any],
    items: Sequence[Any],
    *shared: object,
    stage: str = "",
    progress: ProgressCallback | None = None,
) -> Iterator[tuple[Any, Any]]:
    """`map_tasks` in this process: a trial holds its CPU already and starts no task."""
    for done, item in enumerate(items, 1):
        result = function(item, *shared)
        if progress:
            progress(stage, done, len(items))
        yield item, result

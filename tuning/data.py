"""What trials have in common: buckets, validation users that no test reads, and a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import PairPlan, make_plan
from mtrec_ray.streams.prior import Prior
from mtrec_ray.streams.reader import BucketPairs
from mtrec_ray.streams.scored_users import ScoringChunk, validation_users
from mtrec_ray.streams.sequences import Sequences

Figures = dict[str, dict[str, float]]  # metric -> its `value`, and where it has bounds `low` and `high`
AUTO_DAYS = 7  # default number of held-back days: a week has every weekday once
NUM_SAMPLES = 2  # samples whose pairs a process keeps; memory is that of each


@dataclass(frozen=True)
class TrialData:
    """A sample of a lake, its training window, and the time span that trials are validated on."""

    lake: Lake
    calendar: Calendar  # its training window ends where validation starts
    buckets: tuple[int, ...]  # each is a random sample of the users
    validation: tuple[datetime, datetime]  # [start, end)
    held_back: bool  # True: validated on the last days of the window; False: on the days after it


def trial_data(lake: Lake, calendar: Calendar, num_buckets: int | None, validation_days: int | None) -> TrialData:
    """Choose buckets and validation days; UserError for those that the lake cannot give."""
    buckets = first_buckets(lake, num_buckets)
    days = AUTO_DAYS if validation_days is None else validation_days
    start = calendar.window_end - timedelta(seconds=days * calendar.day_s)
    problem = _why_not_held_back(lake, calendar, start) if days else None
    if days and not problem:
        shorter = calendar.model_copy(update={"window_end": start})
        return TrialData(lake, shorter, buckets, (start, calendar.window_end), held_back=True)
    if problem and validation_days:
        raise UserError(f"validation_days = {days}: {problem}; or set validation_days=0")
    if not calendar.num_evaluation_days:
        raise UserError("validation_days = 0: there is no day after the window; set window.num_evaluation_days or end")
    bounds = calendar.window_end, calendar.day_bounds(calendar.num_evaluation_days)[1]
    return TrialData(lake, calendar, buckets, bounds, held_back=False)


def first_buckets(lake: Lake, count: int | None) -> tuple[int, ...]:
    """The first so many buckets, None is all; UserError where there are fewer."""
    available = lake.manifest.num_buckets
    if count is not None and count > available:
        raise UserError(f"buckets = {count}: the lake has {available}; lower it, or leave it out to read all")
    return tuple(range(available if count is None else count))


def _why_not_held_back(lake: Lake, calendar: Calendar, start: datetime) -> str | None:
    """Why the days from `start` cannot be held back; None where they can."""
    if not calendar.ordered:
        return "the lake's window has no order of time, so no day of it can be held back"
    if calendar.window_start + (calendar.window_end - calendar.window_start) / 2 > start:
        return f"less than half of the window ({calendar.window_start} to {calendar.window_end}) would be left"
    known = lake.manifest.embeddings.window_end
    if known is not None and known > start:
        return f"the lake's embeddings know events up to {known}: embed with window.end={start:%Y-%m-%dT%H:%M} first"
    return None


class TrialCache(LocalReader):
    """What trials of one process share: plans, pairs, validation users and histories.

    Trials that differ only in the model or the optimiser read the lake once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._samples: dict[
            str, tuple[PairPlan, Prior | None, dict[tuple[int, int], BucketPairs]]
        ] = {}  # last used last
        self._chunks: dict[str, list[ScoringChunk]] = {}
        self._histories: dict[tuple[str, int, str], Sequences] = {}

    def plan(self, data: TrialData, sample: SampleConfig) -> tuple[PairPlan, Prior | None]:
        key = f"{data.lake.uri} {data.lake.manifest.lake_hash} {data.calendar} {data.buckets} {sample}"
        found = self._samples.pop(key, None)
        if found is None:
            found = (*make_plan(data.lake, sample, data.calendar, buckets=data.buckets, reader=self), {})
        self._samples = dict([*self._samples.items(), (key, found)][-NUM_SAMPLES:])
        return found[:2]

    def validation(self, data: TrialData, sample: SampleConfig, buckets: Sequence[int]) -> list[ScoringChunk]:
        """Validation users of some buckets, at most `MAX_VALIDATION_USERS` over all of `data`."""
        split = (sample.split_seed, sample.test_fraction, sample.validation_fraction)
        key = f"{data.lake.uri} {data.lake.manifest.lake_hash} {data.validation} {buckets} {split}"
        if key not in self._chunks:
            of, fixed = (data.lake, sample, data.validation, buckets, len(data.buckets)), not data.held_back
            self._chunks = {key: validation_users(*of, fixed_candidates=fixed)}
        return self._chunks[key]

    def bucket(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """Pairs or histories of a bucket, read once for all epochs and trials of a plan."""
        known: dict[Any, Any]
        if isinstance(arguments[-1], PairPlan):
            period, bucket, *_, plan = arguments
            known, key = next(pairs for one, _, pairs in self._samples.values() if one is plan), (period, bucket)
        else:
            lake, bucket, *of = arguments
            known, key = self._histories, (lake.manifest.lake_hash, bucket, str(of))
        if key not in known:
            known[key] = read(*arguments)
        return known[key]

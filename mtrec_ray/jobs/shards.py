"""What evaluation does inside a bucket: counting titles, finding each cohort's users, scoring them.

These are the tasks of `jobs.evaluate`; they return counts and histograms, never a score.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState
from mtrec_ray.jobs.scorers import Scorer
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.sampling import TEST, TRAIN, VALIDATION, in_random_sample, split_of
from mtrec_ray.streams.scored_users import FixedCandidates, ScoringChunk, scoring_chunks

HELD_OUT, TRAINED, VALIDATED = "held_out", "trained", "validation"


@dataclass(frozen=True)
class Entry:
    """One scorer on one day; `plan` tells whom it was trained on (a reference: whom the runs beside it were)."""

    name: str
    day: int
    scorer: Scorer
    plan: PairPlan


def count_bucket(
    index: int,
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    days: list[int],
    cohort: str,
    catalogues: dict[int, Catalogue],
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, int]:
    """What a bucket adds to the counts before scoring; `catalogues` by day, 0 = the window.

    Returns:
        (cells, counts) of territory * num_titles + title with discoveries of training users in the window;
        (num_titles,) discoveries of the cohort on the evaluation days; those of them that are not offered.
    """
    window = catalogues[0]
    num_titles = len(window.title_ids)
    bucket = Bucket.read(lake, index, window.title_ids)
    split = split_of(bucket.keys, sample)
    found = bucket.discoveries(*calendar.day_bounds(0), window.offer_mask)
    found = found[split[bucket.event_user[found]] == TRAIN]
    cell = bucket.territory[bucket.event_user[found]].astype(np.int64) * num_titles + bucket.event_title[found]
    positives, not_offered = np.zeros(num_titles, dtype=np.int64), 0
    wanted = {HELD_OUT: TEST, TRAINED: TRAIN, VALIDATED: VALIDATION}[cohort]
    for day in days:
        mask = catalogues[day].offer_mask
        events = bucket.discoveries(*calendar.day_bounds(day))
        events = events[split[bucket.event_user[events]] == wanted]
        offered = mask[bucket.territory[bucket.event_user[events]], bucket.event_title[events]]
        positives += np.bincount(bucket.event_title[events[offered]], minlength=num_titles)
        not_offered += int((~offered).sum())
    return np.unique(cell, return_counts=True), positives, not_offered


def score_shard(
    shard: tuple[int, ...],
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    entries: list[Entry],
    cohorts: list[str],
    settings: EvaluationSettings,
    num_negatives: int | None,
) -> dict[tuple[str, int, str], EvaluationState]:
    states = {(e.name, e.day, c): EvaluationState(settings) for e in entries for c in cohorts}
    title_ids = lake.titles["title_id"].combine_chunks()
    days = sorted({entry.day for entry in entries})
    catalogues = {day: Catalogue.of(lake, *calendar.day_bounds(day)) for day in days}
    for index in shard:
        bucket = Bucket.read(lake, index, title_ids, ("embedding",))
        fixed = FixedCandidates.of(lake, index)
        members = _cohort_members(bucket, sample, entries, cohorts)
        for day in days:
            chunks = scoring_chunks(bucket, _anyone(members), catalogues[day], fixed)
            if num_negatives is not None:
                chunks = (chunk.with_sampled_negatives(num_negatives, settings.seed) for chunk in chunks)
            for entry, cohort, chunk in _parts(chunks, day, entries, members):
                states[entry.name, day, cohort].add(
                    chunk.territory,
                    chunk.keys,
                    entry.scorer.score(chunk),
                    chunk.labels,
                    chunk.candidates,
                    chunk.title_index,
                )
    return states


def _anyone(members: dict[tuple[str, str], np.ndarray]) -> np.ndarray:
    """Rows of the users in any cohort."""
    return np.flatnonzero(np.any(list(members.values()), axis=0))


def _parts(
    chunks: Iterable[ScoringChunk], day: int, entries: list[Entry], members: dict[tuple[str, str], np.ndarray]
) -> Iterator[tuple[Entry, str, ScoringChunk]]:
    """(entry, cohort, its users) of everything to be scored on a day in a bucket."""
    for chunk in chunks:
        for (name, cohort), mask in members.items():
            if mask[chunk.rows].any():
                part = chunk.only(mask[chunk.rows])
                yield from ((entry, cohort, part) for entry in entries if (entry.name, entry.day) == (name, day))


def _cohort_members(
    bucket: Bucket, sample: SampleConfig, entries: list[Entry], cohorts: list[str]
) -> dict[tuple[str, str], np.ndarray]:
    """(scorer name, cohort) -> (N,) bool users of the bucket.

    `trained` are the users of the run's random sample, which all variants of one seed have in common; the added users,
    who differ from variant to variant, are in no cohort.
    """
    split = split_of(bucket.keys, sample)
    members = {}
    for name, plan in {entry.name: entry.plan for entry in entries}.items():
        for cohort in cohorts:
            if cohort == TRAINED:
                mask = in_random_sample(bucket.keys, plan.sample)
            else:
                mask = split == (TEST if cohort == HELD_OUT else VALIDATION)
            members[name, cohort] = mask
    return members

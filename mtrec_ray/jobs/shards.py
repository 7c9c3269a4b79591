"""Tasks of `jobs.evaluate`, which return counts and histograms only."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import NamedTuple

import numpy as np

from mtrec_ray.evaluation.popularity_bias import DayTitles
from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState
from mtrec_ray.hashing import mix
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.interactions import history_matrix
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TEST, TRAIN, VALIDATION, in_random_sample, split_of
from mtrec_ray.streams.scored_users import ScoringChunk, read_candidates, scoring_chunks

# Cohorts: test users, users of the random training sample, validation users.
HELD_OUT, TRAINED, VALIDATED = "held_out", "trained", "validation"
SPLITS = {HELD_OUT: TEST, TRAINED: TRAIN, VALIDATED: VALIDATION}
NEGATIVES_SEED = 0
Scorer = Callable[[ScoringChunk], np.ndarray]  # scores a chunk's users against its titles: (U, T) float32; picklable


@dataclass(frozen=True)
class RunScorer:
    """A run or reference, with its scorer on each day."""

    name: str
    on_day: dict[int, Scorer]
    sample: SampleConfig  # of the run, or the runs that a reference is compared with: decides the `trained` cohort


Cells = tuple[np.ndarray, np.ndarray]  # territory * num_titles + title, ascending, and the number of each


class BucketCounts(NamedTuple):
    """Discoveries in one bucket."""

    window: Cells  # of training users in the training window
    of_cohort: Cells  # of the cohort on the evaluation days
    of_own_users: Cells  # of each day's own users of the cohort, see `own_day`
    own_users_by_day: np.ndarray  # (days,) how many of those have any
    not_offered: int  # of the cohort on the evaluation days, of titles that are not offered in the territory


def own_day(keys: np.ndarray, sample: SampleConfig, num_days: int) -> np.ndarray:
    """The evaluation day, from 1, that each user belongs to: (N,) uint64 -> (N,) int64."""
    return 1 + (mix(keys, "evaluation day", sample.split_seed) % np.uint64(max(1, num_days))).astype(np.int64)


def count_bucket_discoveries(
    index: int, lake: Lake, sample: SampleConfig, catalogues: dict[int, Catalogue], cohort: str = HELD_OUT
) -> BucketCounts:
    """Count the discoveries of one bucket; `catalogues` by day, 0 = the training window."""
    training, num_titles = catalogues[0], len(catalogues[0].title_ids)
    bucket = Bucket.read(lake, index)
    split, today = split_of(bucket.keys, sample), own_day(bucket.keys, sample, len(catalogues) - 1)

    def cells(events: np.ndarray) -> Cells:
        cell = bucket.territory[bucket.event_user[events]].astype(np.int64) * num_titles + bucket.event_title[events]
        return np.unique(cell, return_counts=True)

    found = bucket.discoveries(*training.bounds, training.offer_mask)
    found = found[split[bucket.event_user[found]] == TRAIN]
    none = np.zeros(0, dtype=np.int64)
    of_cohort, of_own_users, own_users_by_day, not_offered = [none], [none], list[int](), 0
    for day, catalogue in ((day, catalogue) for day, catalogue in catalogues.items() if day):
        events = bucket.discoveries(*catalogue.bounds)
        events = events[split[bucket.event_user[events]] == SPLITS[cohort]]
        offered = catalogue.offer_mask[bucket.territory[bucket.event_user[events]], bucket.event_title[events]]
        not_offered += int((~offered).sum())
        of_cohort.append(events[offered])
        of_own_users.append(events[offered & (today[bucket.event_user[events]] == day)])
        own_users_by_day.append(len(np.unique(bucket.event_user[of_own_users[-1]])))
    return BucketCounts(
        window=cells(found),
        of_cohort=cells(np.concatenate(of_cohort)),
        of_own_users=cells(np.concatenate(of_own_users)),
        own_users_by_day=np.array(own_users_by_day, dtype=np.int64),
        not_offered=not_offered,
    )


def score_shard(
    shard: tuple[int, ...],
    lake: Lake,
    sample: SampleConfig,
    catalogues: dict[int, Catalogue],
    day_titles: dict[int, DayTitles],
    scorers: list[RunScorer],
    cohorts: list[str],
    own_users: bool,
    settings: EvaluationSettings,
    num_negatives: int | None,
    known_until: dict[int, datetime],
) -> dict[tuple[str, int, str], EvaluationState]:
    """Score the users of some buckets: (scorer, day, cohort) -> counts.

    `own_users`: each day scores its own test users; else, and of other cohorts, every day scores all.
    `known_until`: day -> end of the histories that some scorers need; empty if none does.
    """
    days = list(scorers[0].on_day)
    states = {
        (s.name, day, c): EvaluationState(settings, day_titles[day]) for s in scorers for day in days for c in cohorts
    }
    for index in shard:
        bucket = Bucket.read(lake, index, ("embedding",))
        fixed = read_candidates(lake, index)
        split = split_of(bucket.keys, sample)
        of_cohorts = {(s.name, c): _members(bucket.keys, split, s.sample, c) for s in scorers for c in cohorts}
        today = own_day(bucket.keys, sample, len(days))
        for day in days:
            members = {
                key: of_cohort & (today == day) if own_users and key[1] == HELD_OUT else of_cohort
                for key, of_cohort in of_cohorts.items()
            }
            users = np.flatnonzero(np.any(list(members.values()), axis=0))
            history = None
            if day in known_until:
                known = bucket.discoveries(catalogues[0].bounds[0], known_until[day])
                history = history_matrix(bucket, known, settings.num_titles)
            for chunk in scoring_chunks(lake, bucket, users, catalogues[day], fixed, history):
                if num_negatives is not None:
                    chunk = chunk.with_sampled_negatives(num_negatives, NEGATIVES_SEED)
                for scorer, cohort in product(scorers, cohorts):
                    mask = members[scorer.name, cohort][chunk.rows]
                    if mask.any():
                        own = chunk.only(mask)
                        state, scores = states[scorer.name, day, cohort], scorer.on_day[day](own)
                        state.add(own.territory, own.keys, scores, own.labels, own.candidates, own.title_index)
    return states


def _members(keys: np.ndarray, split: np.ndarray, sample: SampleConfig, cohort: str) -> np.ndarray:
    """(N,) bool users of a bucket in a cohort; users added by upsampling are in none."""
    return in_random_sample(keys, sample) if cohort == TRAINED else split == SPLITS[cohort]

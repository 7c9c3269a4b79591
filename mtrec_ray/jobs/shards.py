"""Tasks of `jobs.evaluate`, which return counts and histograms only."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState
from mtrec_ray.lake.bucket import Bucket, Catalogue
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


def count_bucket_discoveries(
    index: int, lake: Lake, sample: SampleConfig, catalogues: dict[int, Catalogue], cohort: str = HELD_OUT
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, int]:
    """Count the discoveries of one bucket; `catalogues` by day, 0 = the training window.

    Returns (cells, counts) of territory * num_titles + title of training users in the training window; (num_titles,)
    discoveries of the cohort on the evaluation days; the number of those that are not offered.
    """
    training, num_titles = catalogues[0], len(catalogues[0].title_ids)
    bucket = Bucket.read(lake, index)
    split = split_of(bucket.keys, sample)
    found = bucket.discoveries(*training.bounds, training.offer_mask)
    found = found[split[bucket.event_user[found]] == TRAIN]
    cell = bucket.territory[bucket.event_user[found]].astype(np.int64) * num_titles + bucket.event_title[found]
    positives, not_offered = np.zeros(num_titles, dtype=np.int64), 0
    for catalogue in (catalogue for day, catalogue in catalogues.items() if day):
        mask = catalogue.offer_mask
        events = bucket.discoveries(*catalogue.bounds)
        events = events[split[bucket.event_user[events]] == SPLITS[cohort]]
        offered = mask[bucket.territory[bucket.event_user[events]], bucket.event_title[events]]
        positives += np.bincount(bucket.event_title[events[offered]], minlength=num_titles)
        not_offered += int((~offered).sum())
    return np.unique(cell, return_counts=True), positives, not_offered


def score_shard(
    shard: tuple[int, ...],
    lake: Lake,
    sample: SampleConfig,
    catalogues: dict[int, Catalogue],
    scorers: list[RunScorer],
    cohorts: list[str],
    settings: EvaluationSettings,
    num_negatives: int | None,
) -> dict[tuple[str, int, str], EvaluationState]:
    """Score the users of some buckets: (scorer, day, cohort) -> counts."""
    days = list(scorers[0].on_day)
    states = {(s.name, day, c): EvaluationState(settings) for s in scorers for day in days for c in cohorts}
    for index in shard:
        bucket = Bucket.read(lake, index, ("embedding",))
        fixed = read_candidates(lake, index)
        split = split_of(bucket.keys, sample)
        members = {(s.name, c): _members(bucket.keys, split, s.sample, c) for s in scorers for c in cohorts}
        users = np.flatnonzero(np.any(list(members.values()), axis=0))
        for day in days:
            for chunk in scoring_chunks(bucket, users, catalogues[day], fixed):
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

"""`mtrec evaluate propensity`: score test users of every evaluation day with one or more runs, bucket by bucket.

1. `_open_runs`:    the runs, which must share lake, window and user split
2. `_count_bucket`: what the window held of each title (popularity, local titles), positives of the test days
3. `_score_shard`:  every test user against every title it could discover, counted into `EvaluationState`s
4. merge and summarise; `mtrec_ray.evaluation.report` makes the tables

No score leaves the task that computed it: what travels are histograms, whose size does not grow with the users.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtrec_ray.console import ProgressCallback, stage_progress
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.popularity_bias import TitleHistory
from mtrec_ray.evaluation.state import EvaluationResult, EvaluationSettings, EvaluationState
from mtrec_ray.files import absolute, join
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.scorers import InteractionScorer, PopularityScorer, PropensityScorer, Scorer
from mtrec_ray.lake.bucket import Bucket
from mtrec_ray.lake.cluster import available_cpus, map_buckets
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.sampling import TEST, TRAIN, VALIDATION, in_random_sample, split_of
from mtrec_ray.streams.test_users import FixedCandidates, ScoringChunk, scoring_chunks
from mtrec_ray.training.run import RunRecord, load_plan, load_snapshot

HELD_OUT, TRAINED, VALIDATED = "held_out", "trained", "validation"


@dataclass(frozen=True)
class Evaluation:
    """Results of all scorers; keys are (scorer, day, cohort)."""

    lake: Lake
    records: list[RunRecord]
    references: list[str]
    """Scorers that are no runs."""
    cohorts: list[str]
    """The first is the primary one."""
    results: dict[tuple[str, int, str], EvaluationResult]
    titles: tuple[int, ...]
    """Titles with figures of their own."""

    def results_of(self, scorer: str) -> dict[tuple[int, str], EvaluationResult]:
        """(day, cohort) -> result."""
        return {(day, cohort): result for (name, day, cohort), result in self.results.items() if name == scorer}


@dataclass(frozen=True)
class _Entry:
    """One scorer on one day; `plan` tells whom it was trained on (a reference: whom the first run was)."""

    name: str
    day: int
    scorer: Scorer
    plan: PairPlan


def evaluate_propensity(config: EvaluateConfig, progress: ProgressCallback | None = None) -> Evaluation:
    """Evaluate runs on the same users, days and titles.

    Raises:
        UserError: an unfinished run, runs that cannot be compared, a lake changed since, or nothing to evaluate on.
    """
    records, plans = _open_runs(config.runs)
    lake, calendar, sample = Lake.open(records[0].config.lake), plans[0].calendar, plans[0].sample
    if lake.manifest.lake_hash != records[0].lake_hash:
        raise UserError(f"lake {lake.uri!r} was changed since run {records[0].config.name!r} was trained: train again")
    days = list(range(1, calendar.num_evaluation_days + 1))
    if not days:
        raise UserError("there is no evaluation day: set window.num_evaluation_days in the training config")
    cohorts = _cohorts(config, lake, sample)
    history, day_positives = _count(lake, calendar, sample, days, cohorts, progress)
    if day_positives.sum() == 0:
        raise UserError(f"no {cohorts[0]} user discovers anything on the evaluation days: nothing can be measured")
    settings = EvaluationSettings(
        num_territories=len(lake.manifest.territories),
        num_titles=lake.titles.num_rows,
        num_bootstrap=config.num_bootstrap,
        seed=config.seed,
        list_length=config.list_length,
        titles=_reported_titles(day_positives, history.is_local, config.num_titles),
    )
    entries = _entries(config, lake, records, plans, days, history)
    states = _score(lake, calendar, sample, entries, cohorts, settings, progress)
    return Evaluation(
        lake=lake,
        records=records,
        references=list(dict.fromkeys(e.name for e in entries if e.name not in {r.config.name for r in records})),
        cohorts=cohorts,
        results={key: state.summarise(history) for key, state in states.items()},
        titles=settings.titles,
    )


def _reported_titles(day_positives: np.ndarray, is_local: np.ndarray, count: int) -> tuple[int, ...]:
    """The titles with the most positives, half of them local as far as there are such."""
    ranked = np.argsort(-day_positives, kind="stable")
    ranked = ranked[day_positives[ranked] > 0]
    chosen = ranked[is_local[ranked]][: count // 2]
    others = ranked[~np.isin(ranked, chosen)][: count - len(chosen)]
    return tuple(sorted([*chosen.tolist(), *others.tolist()]))


def _open_runs(uris: list[str]) -> tuple[list[RunRecord], list[PairPlan]]:
    if not uris:
        raise UserError("name at least one run: mtrec evaluate propensity RUN [RUN...]")
    records = [_open_run(uri) for uri in uris]
    for uri, record in zip(uris, records, strict=True):
        if record.status != "done":
            raise UserError(f"run {uri!r} is not finished: start `mtrec train propensity` with the same name again")
    plans = [load_plan(record.uri) for record in records]
    names = [record.config.name for record in records]
    if len(set(names)) < len(names):
        raise UserError(f"runs must have different names, got {', '.join(names)}")
    first = (records[0].lake_hash, plans[0].calendar, _split(plans[0].sample))
    for record, plan in zip(records, plans, strict=True):
        if (record.lake_hash, plan.calendar, _split(plan.sample)) != first:
            raise UserError(
                f"run {record.config.name!r} and run {names[0]!r} differ in lake, window or user split "
                "(sample.split_seed, test_fraction, validation_fraction): they cannot be compared"
            )
    return records, plans


def _open_run(uri: str) -> RunRecord:
    """The run's record, with the place and name that its folder has now."""
    runs, _, name = absolute(uri).rstrip("/").rpartition("/")
    record = RunRecord.load(join(runs, name))
    return record.model_copy(update={"config": record.config.model_copy(update={"runs": runs, "name": name})})


def _split(sample: SampleConfig) -> tuple[int, float, float]:
    return sample.split_seed, sample.test_fraction, sample.validation_fraction


def _cohorts(config: EvaluateConfig, lake: Lake, sample: SampleConfig) -> list[str]:
    if config.validation:
        if sample.validation_fraction == 0:
            raise UserError(
                "validation has no effect: the runs put no validation users aside (sample.validation_fraction)"
            )
        return [VALIDATED]
    cohorts = [HELD_OUT] if sample.test_fraction > 0 else []
    if lake.manifest.trained_users_are_tested or not cohorts:
        cohorts.append(TRAINED)
    return cohorts


def _count(
    lake: Lake, calendar: Calendar, sample: SampleConfig, days: list[int], cohorts: list[str], progress
) -> tuple[TitleHistory, np.ndarray]:
    """History of the window by territory and title, and positives of the evaluation days by title."""
    catalogue = Catalogue.of(lake, *calendar.day_bounds(0))
    num_buckets = lake.manifest.num_buckets
    shape = (len(lake.manifest.territories), len(catalogue.title_ids))
    popularity, day_positives = np.zeros(shape, dtype=np.int64), np.zeros(shape[1], dtype=np.int64)
    show = stage_progress(progress, "counting titles", num_buckets)
    arguments = (lake, calendar, sample, days, cohorts[0], catalogue)
    for _, (window_cells, positives) in map_buckets(_count_bucket, range(num_buckets), *arguments, progress=show):
        cells, counts = window_cells
        popularity.ravel()[cells] += counts
        day_positives += positives
    is_local = np.minimum((popularity > 0).sum(axis=0), catalogue.offer_mask.sum(axis=0)) <= 1
    return TitleHistory(popularity=popularity, is_local=is_local), day_positives


def _count_bucket(
    index: int, lake: Lake, calendar: Calendar, sample: SampleConfig, days: list[int], cohort: str, catalogue: Catalogue
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    bucket = Bucket.read(lake, index, catalogue.title_ids)
    split = split_of(bucket.keys, sample)
    num_titles = len(catalogue.title_ids)
    window = bucket.discoveries(*calendar.day_bounds(0), catalogue.offer_mask)
    window = window[split[bucket.event_user[window]] == TRAIN]
    cell = bucket.territory[bucket.event_user[window]].astype(np.int64) * num_titles + bucket.event_title[window]
    positives = np.zeros(num_titles, dtype=np.int64)
    wanted = {HELD_OUT: TEST, TRAINED: TRAIN, VALIDATED: VALIDATION}[cohort]
    for day in days:
        events = bucket.discoveries(*calendar.day_bounds(day), np.ones_like(catalogue.offer_mask))
        events = events[split[bucket.event_user[events]] == wanted]
        positives += np.bincount(bucket.event_title[events], minlength=num_titles)
    return np.unique(cell, return_counts=True), positives


def _entries(
    config: EvaluateConfig,
    lake: Lake,
    records: list[RunRecord],
    plans: list[PairPlan],
    days: list[int],
    history: TitleHistory,
) -> list[_Entry]:
    embeddings = lake.title_embeddings()
    entries = []
    for record, plan in zip(records, plans, strict=True):
        for day in days:
            model = load_snapshot(record, plan.phases[min(day, len(plan.phases)) - 1].day)
            scorer = PropensityScorer(model, embeddings, record.groups.of_territory)
            entries.append(_Entry(record.config.name, day, scorer, plan))
    if config.references:
        references: dict[str, Scorer] = {"popularity": PopularityScorer(history.popularity)}
        if width := lake.manifest.embeddings.interaction_width:
            references["interactions"] = InteractionScorer(embeddings[:, -width:])
        for name in references.keys() & {record.config.name for record in records}:
            raise UserError(f"run {name!r} has the name of a reference: rename its folder, or set references=false")
        entries += [_Entry(name, day, scorer, plans[0]) for name, scorer in references.items() for day in days]
    return entries


def _score(
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    entries: list[_Entry],
    cohorts: list[str],
    settings: EvaluationSettings,
    progress: ProgressCallback | None,
) -> dict[tuple[str, int, str], EvaluationState]:
    num_buckets = lake.manifest.num_buckets
    shards = np.array_split(np.arange(num_buckets), min(num_buckets, max(4, 4 * int(available_cpus()))))
    names = [",".join(map(str, shard)) for shard in shards]
    show = stage_progress(progress, "scoring users", len(names))
    fixed = FixedCandidates.of(lake)
    total = {(e.name, e.day, c): EvaluationState(settings) for e in entries for c in cohorts}
    for _, states in map_buckets(
        _score_shard, names, lake, calendar, sample, entries, cohorts, settings, fixed, progress=show
    ):
        for key, state in states.items():
            total[key].merge(state)
    return total


def _score_shard(
    shard: str,
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    entries: list[_Entry],
    cohorts: list[str],
    settings: EvaluationSettings,
    fixed: FixedCandidates | None,
) -> dict[tuple[str, int, str], EvaluationState]:
    states = {(e.name, e.day, c): EvaluationState(settings) for e in entries for c in cohorts}
    title_ids = lake.titles["title_id"].combine_chunks()
    days = sorted({entry.day for entry in entries})
    catalogues = {day: Catalogue.of(lake, *calendar.day_bounds(day)) for day in days}
    for index in map(int, shard.split(",")):
        bucket = Bucket.read(lake, index, title_ids, ("embedding",))
        members = _cohort_members(bucket, sample, entries, cohorts)
        for day in days:
            for entry, cohort, chunk in _chunks(bucket, day, calendar, catalogues[day], fixed, entries, members):
                states[entry.name, day, cohort].add(
                    chunk.territory,
                    chunk.keys,
                    entry.scorer.score(chunk),
                    chunk.labels,
                    chunk.candidates,
                    chunk.title_index,
                )
    return states


def _chunks(
    bucket: Bucket,
    day: int,
    calendar: Calendar,
    catalogue: Catalogue,
    fixed: FixedCandidates | None,
    entries: list[_Entry],
    members: dict[tuple[str, str], np.ndarray],
) -> Iterator[tuple[_Entry, str, ScoringChunk]]:
    """(entry, cohort, its users) of everything to be scored on a day in a bucket."""
    anyone = np.flatnonzero(np.any(list(members.values()), axis=0))
    for chunk in scoring_chunks(bucket, anyone, catalogue, fixed, calendar.day_bounds(day)):
        for (name, cohort), mask in members.items():
            if mask[chunk.rows].any():
                part = chunk.only(mask[chunk.rows])
                yield from ((entry, cohort, part) for entry in entries if (entry.name, entry.day) == (name, day))


def _cohort_members(
    bucket: Bucket, sample: SampleConfig, entries: list[_Entry], cohorts: list[str]
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

"""`mtrec evaluate propensity`: score test users of every evaluation day with one or more runs, bucket by bucket.

1. `_open_runs`:    the runs, which must share lake, window and user split
2. `count_bucket`: what the window held of each title (popularity, local titles), positives of the test days
3. `score_shard`:  every test user against every title it could discover, counted into `EvaluationState`s
4. merge and summarise; `mtrec_ray.evaluation.report` makes the tables

No score leaves the task that computed it: what travels are histograms, whose size does not grow with the users.
"""

import logging
from dataclasses import dataclass

import numpy as np

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.popularity_bias import TitleHistory
from mtrec_ray.evaluation.report import MACRO, POOLED
from mtrec_ray.evaluation.state import EvaluationResult, EvaluationSettings, EvaluationState
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.scorers import InteractionScorer, PopularityScorer, Scorer
from mtrec_ray.jobs.shards import HELD_OUT, TRAINED, VALIDATED, Entry, count_bucket, score_shard
from mtrec_ray.lake.cluster import map_tasks, total_cpus
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.trainers.propensity_validation import PropensityScorer
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot, snapshots_hash
from mtrec_ray.training.record import load_plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """Results of all scorers; keys are (scorer, day, cohort)."""

    lake: Lake
    records: list[PropensityRecord]
    references: dict[str, dict[int, str]]
    """What is compared beside the runs -> seed of the runs that it is paired with -> scorer."""
    cohorts: list[str]
    """The first is the primary one."""
    results: dict[tuple[str, int, str], EvaluationResult]
    titles: tuple[int, ...]
    """Titles with figures of their own."""
    weights: dict[str, str]
    """Run -> hash of the weights that were scored."""
    num_negatives: int | None
    """Titles that each user's were scored against; None: all that it could discover."""

    def results_of(self, scorer: str) -> dict[tuple[int, str], EvaluationResult]:
        """(day, cohort) -> result."""
        return {(day, cohort): result for (name, day, cohort), result in self.results.items() if name == scorer}


def evaluate_propensity(config: EvaluateConfig, progress: ProgressCallback | None = None) -> Evaluation:
    """Evaluate runs on the same users, days and titles.

    Raises:
        UserError: an unfinished run, runs that cannot be compared, a lake changed since, or nothing to evaluate on.
    """
    records, plans = _open_runs(config.runs)
    lake, calendar, sample = records[0].open_lake(), plans[0].calendar, plans[0].sample
    days, cohorts = days_and_cohorts(config, lake, calendar, sample)
    plan_of_seed = _plan_of_each_seed(records, plans, cohorts)
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
    weights = {record.config.name: snapshots_hash(record) for record in records}
    entries = _run_entries(lake, records, plans, days)
    scorers = _references(lake, records, history) if config.references else {}
    for name, scorer in scorers.items():
        chosen = {_scorer_name(name, plan): plan for plan in plan_of_seed.values()}
        entries += [Entry(key, day, scorer, plan) for key, plan in chosen.items() for day in days]
    states = _score(lake, calendar, sample, entries, cohorts, settings, config.num_negatives, progress)
    return Evaluation(
        lake=lake,
        records=records,
        references={n: {seed: _scorer_name(n, plan) for seed, plan in plan_of_seed.items()} for n in scorers},
        cohorts=cohorts,
        results={key: state.summarise(history) for key, state in states.items()},
        titles=settings.titles,
        weights=weights,
        num_negatives=config.num_negatives,
    )


def _reported_titles(day_positives: np.ndarray, is_local: np.ndarray, count: int) -> tuple[int, ...]:
    """The titles with the most positives, half of them local as far as there are such."""
    ranked = np.argsort(-day_positives, kind="stable")
    ranked = ranked[day_positives[ranked] > 0]
    chosen = ranked[is_local[ranked]][: count // 2]
    others = ranked[~np.isin(ranked, chosen)][: count - len(chosen)]
    return tuple(sorted([*chosen.tolist(), *others.tolist()]))


def _open_runs(uris: list[str]) -> tuple[list[PropensityRecord], list[PairPlan]]:
    if not uris:
        raise UserError("name at least one run: mtrec evaluate propensity RUN [RUN...]")
    records = [PropensityRecord.load_done(uri) for uri in uris]
    plans = [load_plan(record.uri, PairPlan) for record in records]
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


def _split(sample: SampleConfig) -> tuple[int, float, float]:
    return sample.split_seed, sample.test_fraction, sample.validation_fraction


def days_and_cohorts(
    config: EvaluateConfig, lake: Lake, calendar: Calendar, sample: SampleConfig
) -> tuple[list[int], list[str]]:
    """Who is scored on which days; UserError where that is nobody, or could not be reported."""
    if not calendar.num_evaluation_days:
        raise UserError("there is no evaluation day: set window.num_evaluation_days in the training config")
    for name in {POOLED, MACRO} & set(lake.territory_names()):
        raise UserError(f"territory {name!r} has the name of a row of the report: rename it and build the lake again")
    return list(range(1, calendar.num_evaluation_days + 1)), _cohorts(config, lake, sample)


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
    catalogues = {day: Catalogue.of(lake, *calendar.day_bounds(day)) for day in (0, *days)}
    catalogue, num_buckets, not_offered = catalogues[0], lake.manifest.num_buckets, 0
    shape = (len(lake.manifest.territories), len(catalogue.title_ids))
    popularity, day_positives = np.zeros(shape, dtype=np.int64), np.zeros(shape[1], dtype=np.int64)
    arguments = (lake, calendar, sample, days, cohorts[0], catalogues)
    tasks = map_tasks(count_bucket, range(num_buckets), *arguments, stage="counting titles", progress=progress)
    for _, (window_cells, positives, outside) in tasks:
        cells, counts = window_cells
        popularity.ravel()[cells] += counts
        day_positives += positives
        not_offered += outside
    if not_offered:
        logger.warning(
            "%d discoveries of the evaluation days are in no figure: not offered in the user's territory",
            not_offered,
        )
    is_local = np.minimum((popularity > 0).sum(axis=0), catalogue.offer_mask.sum(axis=0)) <= 1
    return TitleHistory(popularity=popularity, is_local=is_local), day_positives


def _plan_of_each_seed(
    records: list[PropensityRecord], plans: list[PairPlan], cohorts: list[str]
) -> dict[int, PairPlan]:
    """Seed -> the plan whose users references are scored on beside the runs of that seed.

    Users trained on are scored where they are a cohort: then runs of one seed must have drawn the same random sample,
    or their gains would compare different people. Else all are scored on the same users, and one plan stands for all.
    """
    if TRAINED not in cohorts:
        return {record.config.seed: plans[0] for record in records}
    first: dict[int, tuple[str, PairPlan]] = {}
    for record, plan in zip(records, plans, strict=True):
        name, other = first.setdefault(record.config.seed, (record.config.name, plan))
        if (plan.sample.seed, plan.sample.random_fraction) != (other.sample.seed, other.sample.random_fraction):
            raise UserError(
                f"runs {name!r} and {record.config.name!r} of seed {record.config.seed} differ in sample.seed or "
                "sample.random_fraction: their figures for users trained on cannot be compared"
            )
    return {seed: plan for seed, (_, plan) in first.items()}


def _run_entries(lake: Lake, records: list[PropensityRecord], plans: list[PairPlan], days: list[int]) -> list[Entry]:
    """One scorer for each snapshot, whatever the number of days that it is scored on."""
    embeddings, entries = lake.title_embeddings(), []
    for record, plan in zip(records, plans, strict=True):
        trained = {day: plan.periods[min(day, len(plan.periods)) - 1].day for day in days}
        scorers = {
            period: PropensityScorer(load_snapshot(record, period), embeddings, record.groups.of_territory)
            for period in sorted(set(trained.values()))
        }
        entries += [Entry(record.config.name, day, scorers[trained[day]], plan) for day in days]
    return entries


def _references(lake: Lake, records: list[PropensityRecord], history: TitleHistory) -> dict[str, Scorer]:
    references: dict[str, Scorer] = {"popularity": PopularityScorer(history.popularity)}
    if width := lake.manifest.embeddings.interaction_width:
        references["interactions"] = InteractionScorer(lake.title_embeddings()[:, -width:])
    for name in references.keys() & {record.config.name for record in records}:
        raise UserError(f"run {name!r} has the name of a reference: rename its folder, or set references=false")
    return references


def _scorer_name(reference: str, plan: PairPlan) -> str:
    """A run's name has no slash."""
    return f"{reference}/{plan.sample.seed}"


def _score(
    lake: Lake,
    calendar: Calendar,
    sample: SampleConfig,
    entries: list[Entry],
    cohorts: list[str],
    settings: EvaluationSettings,
    num_negatives: int | None,
    progress: ProgressCallback | None,
) -> dict[tuple[str, int, str], EvaluationState]:
    num_buckets = lake.manifest.num_buckets
    parts = np.array_split(np.arange(num_buckets), min(num_buckets, max(4, 4 * int(total_cpus()))))
    shards = [tuple(part.tolist()) for part in parts]
    total = {(e.name, e.day, c): EvaluationState(settings) for e in entries for c in cohorts}
    arguments = (lake, calendar, sample, entries, cohorts, settings, num_negatives)
    for _, states in map_tasks(score_shard, shards, *arguments, stage="scoring users", progress=progress):
        for key, state in states.items():
            total[key].merge(state)
    return total

"""`mtrec evaluate propensity`: score the test users of every day with one or more runs.

1. `_open_runs`:   the runs, which must have lake, training window and user split in common
2. `_count`:       titles' popularity in the window, positives of the evaluation days
3. `score_shard`:  every test user against every title it could discover, then merge, summarise and report

Each evaluation day has test users of its own (paper A, 4.1), a part of the test users drawn by hash; where that would
leave a day fewer than `day_positives.MIN_DAY_USERS` with a positive, all test users are scored on all days.

No score leaves the task that computed it: tasks return histograms, whose size does not grow with the users.
"""

import logging

import numpy as np
import pyarrow as pa

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.popularity_bias import DayTitles, TitleHistory
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState
from mtrec_ray.files import check_writable
from mtrec_ray.jobs.config import EvaluateConfig
from mtrec_ray.jobs.day_positives import DayPositives, comparable_titles
from mtrec_ray.jobs.references import INTERACTIONS, PRIOR, REFERENCES, Reference, fit_references, known_until
from mtrec_ray.jobs.report import PropensityEvaluation, title_labels, variant_names
from mtrec_ray.jobs.same_users import notes_on_samples
from mtrec_ray.jobs.shards import (
    HELD_OUT,
    TRAINED,
    VALIDATED,
    RunScorer,
    count_bucket_discoveries,
    score_shard,
)
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.cluster import cluster_resources, map_tasks
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.trainers.propensity import PropensityScorer
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot
from mtrec_ray.training.record import load_plan

logger = logging.getLogger(__name__)

Runs = list[tuple[PropensityRecord, PairPlan]]
COHORT_USERS = {  # cohort -> kind of user in messages, and the setting that gives more of them
    HELD_OUT: ("test", "test_fraction"),
    TRAINED: ("training", "random_fraction"),
    VALIDATED: ("validation", "validation_fraction"),
}


def evaluate_propensity(config: EvaluateConfig, progress: ProgressCallback | None = None) -> PropensityEvaluation:
    """Evaluate runs on the same users, days and titles; write to `config.out` if given.

    UserError for an unfinished run, runs that cannot be compared, a changed lake, or nothing to evaluate on.
    """
    runs = _open_runs(config.runs)
    records = [record for record, _ in runs]
    variants, lake, plan = variant_names(records), records[0].open_lake(), runs[0][1]
    calendar, sample = plan.calendar, plan.sample
    days, cohorts = days_and_cohorts(config, lake, calendar, sample)
    sample_of_seed = _sample_of_each_seed(runs, cohorts)
    _check_seeds(variants, [record.config.seed for record in records])
    if config.references:
        _check_reference_names([*variants, *(record.config.name for record in records)])
    _baselines(config, [*variants, *(REFERENCES if config.references else ())], runs)  # unknown ones, before the work
    if config.out:
        check_writable(config.out)
    catalogues = {day: Catalogue.of(lake, *calendar.day_bounds(day)) for day in (0, *days)}
    notes = _few_negatives(config.num_negatives, lake, catalogues)
    history, counted = _count(lake, sample, catalogues, cohorts[0], progress)
    own_users = cohorts[0] == HELD_OUT and counted.own_users_suffice
    positives = counted.of_own_users if own_users else counted.of_cohort
    if positives.sum() == 0:
        kind, setting = COHORT_USERS[cohorts[0]]
        fix = f"move window.end back or raise sample.{setting}"
        raise UserError(f"no {kind} user discovers anything on the evaluation days: {fix}")
    territory, titles = comparable_titles(positives, history.is_local, config.num_titles)
    settings = EvaluationSettings(
        num_territories=len(lake.manifest.territories),
        num_titles=lake.titles.num_rows,
        num_bootstrap=config.num_bootstrap,
        titles=titles,
        title_territory=territory,
    )
    hashes = {r.config.name: r.weights_hash() for r in records}  # before scoring, which a training might overtake
    models = [_snapshots(lake, record, plan, days) for record, plan in runs]
    scorers = {
        record.config.name: RunScorer(record.config.name, {day: one.score for day, one in of_day.items()}, plan.sample)
        for (record, plan), of_day in zip(runs, models, strict=True)
    }
    compared = [(variant, r.config.seed, r.config.name) for variant, r in zip(variants, records, strict=True)]
    plans = [plan for _, plan in runs]
    references: dict[str, Reference] = {}
    if config.references:
        references = fit_references(lake, plans, history.popularity, catalogues, config.num_negatives, progress)
        references |= _prior_alone(models) | _interaction_vectors(lake, days)
    for reference, scored in references.items():
        for seed, own in sample_of_seed.items():
            name = f"{reference}/{own.seed}"  # a run's name has no slash
            scorers.setdefault(name, RunScorer(name, dict(scored.on_day), own))
            compared.append((reference, seed, name))
    baselines = _baselines(config, [variant for variant, _, _ in compared], runs)
    day_titles = {day: DayTitles.of(history, catalogues[day].offer_mask) for day in days}
    arguments = (sample, catalogues, day_titles, list(scorers.values()), cohorts, own_users, settings)
    arguments += (config.num_negatives, known_until(plans, days) if references else {})
    states = dict[tuple[str, int, str], EvaluationState]()
    for _, found in map_tasks(score_shard, _shards(lake), lake, *arguments, stage="scoring users", progress=progress):
        for key, state in found.items():
            states.setdefault(key, EvaluationState(settings, day_titles[key[1]])).merge(state)
    results = {key: state.summarise() for key, state in states.items()}
    evaluated = []
    for variant, seed, name in compared:
        own = {(day, cohort): result for (run, day, cohort), result in results.items() if run == name}
        evaluated.append(EvaluatedRun(variant, own, seed, name, hashes.get(name)))
    of_variant = {v: [plan for w, plan in zip(variants, plans, strict=True) if w == v] for v in variants}
    notes += [*(counted.notes() if cohorts[0] == HELD_OUT else []), *notes_on_samples(of_variant)]
    if config.num_titles and not titles:
        notes.append("no case study: no territory has a local and a global title with positives")
    labels = title_labels(lake.titles.take(pa.array(titles, pa.int64())))
    report = EvaluationReport(evaluated, lake.territory_names(), labels, baselines, territory, notes, list(references))
    fixed, settings_of = "candidates" in lake.manifest.files, {name: one.settings for name, one in references.items()}
    evaluation = PropensityEvaluation(report, config.num_negatives, fixed, own_users, settings_of)
    if config.out:
        evaluation.write(config.out)
    return evaluation


def _few_negatives(num_negatives: int | None, lake: Lake, catalogues: dict[int, Catalogue]) -> list[str]:
    """A note on territories that offer too few titles; UserError where all do."""
    if num_negatives is None or "candidates" in lake.manifest.files:
        return []
    offered = np.max([[len(offer) for offer in one.offers] for one in catalogues.values()], axis=0)  # (G,)
    names, few = lake.territory_names(), np.flatnonzero(offered <= num_negatives)
    if len(few) == len(names):
        found = f"num_negatives = {num_negatives}: no territory offers more than {offered.max()} titles"
        raise UserError(f"{found}: lower it, or leave it out to rank all titles")
    if not len(few):
        return []
    listed = ", ".join(f"{names[t]} ({offered[t]})" for t in few[:5]) + (f" and {len(few) - 5} more" * (len(few) > 5))
    return [f"all titles are ranked where fewer than {num_negatives} negatives are offered: {listed}"]


def _shards(lake: Lake) -> list[tuple[int, ...]]:
    """Buckets of each task, about four tasks per CPU."""
    num_buckets = lake.manifest.num_buckets
    num_shards = min(num_buckets, max(4, 4 * int(cluster_resources().get("CPU", 0))))
    return [tuple(part.tolist()) for part in np.array_split(np.arange(num_buckets), num_shards)]


def _baselines(config: EvaluateConfig, variants: list[str], runs: Runs) -> list[str]:
    """Variants that gains are over: as set, or the first and all of kind `baseline`."""
    for name in config.baselines:
        if name not in variants:
            found = ", ".join(dict.fromkeys(variants))
            raise UserError(f"baselines: {name!r} is not evaluated: name some of {found}")
    of_kind = [v for v, (record, _) in zip(variants, runs, strict=False) if record.config.kind == "baseline"]
    return list(dict.fromkeys(config.baselines or [variants[0], *of_kind]))


def _open_runs(uris: list[str]) -> Runs:
    if not uris:
        raise UserError("name at least one run: mtrec evaluate propensity RUN [RUN...]")
    records = [PropensityRecord.load_done(uri) for uri in uris]
    runs = [(record, load_plan(record.uri, PairPlan)) for record in records]
    names = [record.config.name for record in records]
    if len(set(names)) < len(names):
        raise UserError(f"runs must have different names, got {', '.join(names)}")
    split = {"split_seed", "test_fraction", "validation_fraction"}
    common = [(record.lake_hash, plan.calendar, plan.sample.model_dump(include=split)) for record, plan in runs]
    for name, own in zip(names, common, strict=True):
        if own != common[0]:
            raise UserError(
                f"run {name!r} and run {names[0]!r} differ in lake, window or user split "
                "(sample.split_seed, test_fraction, validation_fraction): they cannot be compared"
            )
    return runs


def _check_seeds(variants: list[str], seeds: list[int]) -> None:
    """UserError unless all variants have the same distinct seeds, as gains are paired by seed."""
    of_variant = {v: sorted(s for w, s in zip(variants, seeds, strict=True) if v == w) for v in variants}
    expected = of_variant[variants[0]]
    for variant, own in of_variant.items():
        if len(set(own)) != len(own) or own != expected:
            raise UserError(
                f"variant {variant!r} has seeds {own}, {variants[0]!r} has {expected}: gains are paired by seed, give "
                "each variant the same distinct seeds"
            )


def days_and_cohorts(
    config: EvaluateConfig, lake: Lake, calendar: Calendar, sample: SampleConfig
) -> tuple[list[int], list[str]]:
    """Evaluation days and cohorts; UserError if there are none, or they could not be reported."""
    if not calendar.num_evaluation_days:
        raise UserError("there is no evaluation day: set window.num_evaluation_days in the training config")
    if config.validation and sample.validation_fraction == 0:
        raise UserError("validation has no effect: the runs have no validation users (sample.validation_fraction)")
    cohorts = [VALIDATED] if config.validation else [HELD_OUT] if sample.test_fraction > 0 else []
    if not cohorts or (lake.manifest.trained_users_are_tested and not config.validation):
        cohorts.append(TRAINED)
    return list(range(1, calendar.num_evaluation_days + 1)), cohorts


def _count(
    lake: Lake, sample: SampleConfig, catalogues: dict[int, Catalogue], cohort: str, progress: ProgressCallback | None
) -> tuple[TitleHistory, DayPositives]:
    """Discoveries in the training window, and the positives of the evaluation days."""
    shape, num_days = (len(lake.manifest.territories), len(catalogues[0].title_ids)), len(catalogues) - 1
    popularity, not_offered = np.zeros(shape, np.int64), 0
    positives = DayPositives(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(num_days, np.int64))
    buckets, arguments = range(lake.manifest.num_buckets), (lake, sample, catalogues, cohort)
    tasks = map_tasks(count_bucket_discoveries, buckets, *arguments, stage="counting titles", progress=progress)
    for _, found in tasks:
        counted = (found.window, found.of_cohort, found.of_own_users)
        for total, (cells, numbers) in zip((popularity, *positives[:2]), counted, strict=True):
            total.ravel()[cells] += numbers
        positives.own_users_by_day[:] += found.own_users_by_day
        not_offered += found.not_offered
    if not_offered:
        logger.warning("%d discoveries on evaluation days are not offered in the territory: left out", not_offered)
    is_local = np.minimum((popularity > 0).sum(axis=0), catalogues[0].offer_mask.sum(axis=0)) <= 1
    return TitleHistory(popularity=popularity, is_local=is_local), positives


def _sample_of_each_seed(runs: Runs, cohorts: list[str]) -> dict[int, SampleConfig]:
    """Seed -> the sample whose users references are scored on.

    Runs of one seed must have the same random sample if it is scored, or gains would compare different people.
    """
    if TRAINED not in cohorts:
        return {record.config.seed: runs[0][1].sample for record, _ in runs}
    first: dict[int, tuple[str, SampleConfig]] = {}
    for record, plan in runs:
        name, other = first.setdefault(record.config.seed, (record.config.name, plan.sample))
        if (plan.sample.seed, plan.sample.random_fraction) != (other.seed, other.random_fraction):
            raise UserError(
                f"runs {name!r} and {record.config.name!r} of seed {record.config.seed} differ in sample.seed or "
                "sample.random_fraction: their metrics for users trained on cannot be compared"
            )
    return {seed: sample for seed, (_, sample) in first.items()}


def _snapshots(lake: Lake, record: PropensityRecord, plan: PairPlan, days: list[int]) -> dict[int, PropensityScorer]:
    """A run's model on each day; a snapshot is loaded once for all its days."""
    trained = {day: plan.periods[min(day, len(plan.periods)) - 1].day for day in days}
    embeddings, groups = lake.title_embeddings(), record.groups.of_territory
    loaded = {
        period: PropensityScorer(load_snapshot(record, period), embeddings, groups) for period in {*trained.values()}
    }
    return {day: loaded[period] for day, period in trained.items()}


def _prior_alone(models: list[dict[int, PropensityScorer]]) -> dict[str, Reference]:
    """The prior of the first run that has one, without its towers."""
    for of_day in models:
        if all(one.model.title_prior is not None for one in of_day.values()):
            return {PRIOR: Reference({day: one.score_prior for day, one in of_day.items()})}
    return {}


def _check_reference_names(names: list[str]) -> None:
    for name in names:
        if name in REFERENCES:
            raise UserError(f"run {name!r} has the name of a reference: rename its folder, or set references=false")


def _interaction_vectors(lake: Lake, days: list[int]) -> dict[str, Reference]:
    """The dot product of users' and titles' interaction vectors, where the lake has them."""
    width = lake.manifest.embeddings.interaction_width
    if not width:
        return {}
    titles = lake.title_embeddings()[:, -width:].astype(np.float32)  # (N, width), without a model

    def score(chunk: ScoringChunk) -> np.ndarray:
        return chunk.embedding.astype(np.float32) @ titles[chunk.title_index].T

    return {INTERACTIONS: Reference(dict.fromkeys(days, score))}

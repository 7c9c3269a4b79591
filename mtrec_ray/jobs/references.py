"""References of `jobs.evaluate`: popularity by recency, item-kNN, EASE and iALS.

What is known of a scored user is the same as of the runs: its discoveries in the window and, if runs are incremental,
on the days before the evaluated one. Popularity of the last days is counted up to there too; `popularity` is that of
the window, and the models are fitted on the window alone.

1. `count_references`:  sums over a bucket: titles x titles, recent discoveries, users to choose on     (a task each)
2. `fit_reference`:     choose the settings of one reference, and fit it                                (a task each)
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from importlib.util import find_spec

import numpy as np

from mtrec_ray.console import ProgressCallback
from mtrec_ray.evaluation.references import Blend, RawModel, Settings
from mtrec_ray.jobs.reference_choice import EASE, IALS, KNN, MAX_TITLES, OWN_KNN, fit_reference
from mtrec_ray.jobs.reference_counts import POPULARITY, ReferenceCounts, ReferenceTask, count_references
from mtrec_ray.jobs.shards import Scorer
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.scored_users import ScoringChunk

logger = logging.getLogger(__name__)

RECENT = {f"{POPULARITY}-{days}d": days for days in (365, 90, 30, 7)}
INTERACTIONS, PRIOR = "interactions", "prior"
REFERENCES = (POPULARITY, *RECENT, PRIOR, INTERACTIONS, KNN, OWN_KNN, EASE, IALS)
MAX_OWN_CELLS = 2**28  # of all territories' titles x titles
MAX_IALS_USERS = 1_000_000
MAX_CHOICE_CELLS = 10_000_000  # users x titles that settings are chosen on
CHOICE_FRACTION = 0.1  # of the training users, where there are no validation users


@dataclass(frozen=True)
class Reference:
    """One row of an evaluation without a run."""

    on_day: Mapping[int, Scorer]
    settings: Settings = field(default_factory=dict)  # chosen ones; none if there was no choice


@dataclass(frozen=True)
class PopularityScorer:
    """Scores all users of a territory alike."""

    log_popularity: np.ndarray  # (territories, titles) float32

    def __call__(self, chunk: ScoringChunk) -> np.ndarray:
        return np.broadcast_to(self.log_popularity[chunk.territory, chunk.title_index], chunk.labels.shape)


@dataclass(frozen=True)
class HistoryScorer:
    """Scores a user by its history and the popularity of titles in its territory."""

    model: RawModel
    blend: Blend
    log_popularity: np.ndarray  # (territories, titles) float32

    def __call__(self, chunk: ScoringChunk) -> np.ndarray:
        assert chunk.history is not None, "scored users come with their histories"
        raw = self.model.raw(chunk.territory, chunk.history, chunk.title_index)
        popularity = self.log_popularity[chunk.territory, chunk.title_index]
        return self.blend.scores(raw, chunk.history, chunk.title_index, popularity)


def fit_references(
    lake: Lake,
    plans: Sequence[PairPlan],
    popularity: np.ndarray,
    catalogues: Mapping[int, Catalogue],
    num_negatives: int | None,
    progress: ProgressCallback | None,
) -> dict[str, Reference]:
    """Popularity by recency, item-kNN, EASE and iALS, those that the lake's size allows.

    `popularity` (territories, titles) discoveries of training users in the window; `catalogues` by day, 0 the window.
    """
    days = [day for day in catalogues if day]
    task = _make_task(lake, plans, popularity, catalogues, num_negatives)
    counts: ReferenceCounts | None = None
    num_merged = 0
    tasks = map_tasks(count_references, range(lake.manifest.num_buckets), task, stage="references", progress=progress)
    waiting: dict[int, ReferenceCounts] = {}
    for bucket, found in tasks:  # merged in order, so that sums and choices are the same every time
        waiting[bucket] = found
        while (following := waiting.pop(num_merged, None)) is not None:
            counts, num_merged = counts.merge(following) if counts else following, num_merged + 1
    assert counts is not None, "a lake has a bucket"
    log_popularity = {POPULARITY: dict.fromkeys(days, _log1p(popularity))}
    for name in task.recent:
        logs = {until: _log1p(counts.recent[name, until]) for until in set(task.known_until.values())}
        log_popularity[name] = {day: logs[task.known_until[day]] for day in days}
    references = {
        name: Reference({day: PopularityScorer(of_day[day]) for day in days}) for name, of_day in log_popularity.items()
    }
    for name, cells in counts.choice_popularity.items():
        log_popularity[name][0] = _log1p(cells)
    names = _fitted_names(task)
    if not any(chunk.users.labels.any() for chunk in counts.chunks):
        logger.warning("references have their default settings: no user to choose them on discovers anything")
    fitted = dict(
        map_tasks(fit_reference, names, counts, log_popularity, stage="fitting references", progress=progress)
    )
    for name in names:
        model, blend, settings = fitted[name]
        logs = log_popularity[settings["popularity"]]
        references[name] = Reference({day: HistoryScorer(model, blend, logs[day]) for day in days}, settings)
    return references


def known_until(plans: Sequence[PairPlan], days: Sequence[int]) -> dict[int, datetime]:
    """Until when the runs know users on each evaluation day: incremental ones up to the day."""
    num_periods = max(len(plan.periods) for plan in plans)
    return {day: plans[0].calendar.day_bounds(min(day, num_periods) - 1)[1] for day in days}


def _make_task(
    lake: Lake,
    plans: Sequence[PairPlan],
    popularity: np.ndarray,
    catalogues: Mapping[int, Catalogue],
    num_negatives: int | None,
) -> ReferenceTask:
    plan, days = plans[0], [day for day in catalogues if day]
    sample, (start, end) = plan.sample, plan.calendar.day_bounds(0)
    of_titles = popularity.sum(axis=0)
    kept = np.zeros(len(of_titles), dtype=bool)
    kept[np.argsort(-of_titles, kind="stable")[:MAX_TITLES]] = True
    own_cells = ((popularity[:, kept] > 0).sum(axis=1) ** 2).sum()
    num_training = sum(plan.training_users)
    num_users = sample.validation_fraction * sum(plan.users) * len(days) or num_training
    cells = float(num_users * catalogues[days[0]].offer_mask.sum(axis=1).mean())
    ials_rate = min(1.0, MAX_IALS_USERS / max(1, num_training)) if find_spec("implicit") else 0.0
    if own_cells > MAX_OWN_CELLS:
        logger.warning(
            "no %s: %d cells of titles x titles in the territories, at most %d", OWN_KNN, own_cells, MAX_OWN_CELLS
        )
    if len(kept) > MAX_TITLES:
        logger.warning("no %s: %d titles, at most %d; %s knows the most popular", EASE, len(kept), MAX_TITLES, KNN)
    if not ials_rate:
        logger.warning("no %s: pip install 'mtrec_ray[references]'", IALS)
    elif ials_rate < 1:
        logger.warning("%s is fitted on %d of %d training users", IALS, MAX_IALS_USERS, num_training)
    return ReferenceTask(
        lake=lake,
        plan=plan,
        catalogues=catalogues,
        known_until=known_until(plans, days),
        recent={name: count for name, count in RECENT.items() if timedelta(days=count) < end - start},
        kept=kept,
        by_territory=len(popularity) > 1 and own_cells <= MAX_OWN_CELLS,
        tuning_rate=min(1.0 if sample.validation_fraction else CHOICE_FRACTION, MAX_CHOICE_CELLS / max(1.0, cells)),
        ials_rate=ials_rate,
        num_negatives=num_negatives,
    )


def _log1p(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts).astype(np.float32)


def _fitted_names(task: ReferenceTask) -> list[str]:
    names = {KNN: True, OWN_KNN: task.by_territory, EASE: len(task.kept) <= MAX_TITLES, IALS: task.ials_rate > 0}
    return [name for name, is_fitted in names.items() if is_fitted]

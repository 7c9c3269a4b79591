"""`mtrec search eliminators`: leakage against accuracy, and a rule that chooses."""

from functools import partial
from typing import Any

import ray

from mtrec_ray.config import Config, validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig, parse_combinations
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.tuning.collect import run_search
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.data import Figures, TrialCache, first_buckets
from mtrec_ray.tuning.eliminators_trial import EliminatorsTrial
from mtrec_ray.tuning.results import SearchResult, TrialRow
from mtrec_ray.tuning.search import PreparedSearch, record_search, stored_search, trials_at_once
from mtrec_ray.tuning.space import TrialSpecs, check_values, lay_over, parse_space, usual_settings
from mtrec_ray.workers import Workers

FIXED = (
    "runs", "method", "pack_size", "jobs_at_once", "runner.", "optim.evaluate_every", "optim.validation_users",
)  # fmt: skip
DECIDED = {
    "backbone": "backbone",
    "name": "the search's name",
    "seed": "seed",
    "combinations": "combinations",
    "optim.min_ndcg_ratio": "min_ndcg_ratio of the search",
    "optim.leakage_budget": "min_ndcg_ratio of the search",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
}
LEAKAGE, ACCURACY, RATIO = "leakage/mean", "ndcg@10/mean", "ndcg_ratio/mean"
GOALS = {LEAKAGE: "min", ACCURACY: "max"}
NO_FLOOR = 1e-6  # `optim.min_ndcg_ratio` of every trial: the search decides what accuracy is worth
NUM_PERMUTATIONS = 5  # trainings on permuted labels behind each trial's chance level, which no choice depends on
UNSEARCHED = {
    "pfrec": "ends by a probe of its own and has no floor to search under",
    "closed_form": "has no settings to search over",
}
"""Methods that are not searched, and why."""


def search_eliminators(
    config: EliminatorsSearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> SearchResult:
    """Search, or continue a stopped search; UserError for what does not fit, before any trial."""
    source, specs = check_eliminators_search(config)
    trials_at_once(config)
    inputs = {"lake": source.lake_hash, "backbone": source.weights_hash()}
    stored_search(config, inputs, resume)
    usual = usual_settings(specs.space, EliminatorsConfig, specs.base)
    task = ray.remote(num_cpus=config.cpus_per_worker)(_backbone_figures)
    of_backbone = ray.get(task.remote(specs, specs.config(usual)))  # too few users raise before the name is taken
    record_search(config, inputs)
    in_words = ", ".join(f"{metric} {of_backbone[metric]['value']:.4f}" for metric in GOALS)
    notes = (
        f"the backbone itself: {in_words}",
        f"chosen: least leakage with at least {config.min_ndcg_ratio:g} of the backbone's NDCG@10",
        "cross-fitted on the train split; no user of the audit split was read",
    )
    choose = partial(choose_least_leakage, min_ndcg_ratio=config.min_ndcg_ratio)
    return run_search(PreparedSearch(config, specs, GOALS, [usual], notes), resume, progress, choose)


def check_eliminators_search(config: EliminatorsSearchConfig) -> tuple[BackboneRecord, TrialSpecs]:
    """Check all that can be checked before any work; returns the backbone and the specs."""
    source = BackboneRecord.load_done(config.backbone)
    first_buckets(source.open_lake(), config.buckets)
    parse_combinations(config.combinations, source.attributes)
    if (method := config.base.get("method")) in UNSEARCHED:
        raise UserError(f"base.method = {method} {UNSEARCHED[method]}: drop it")
    space, _ = parse_space(config.space, config.base, EliminatorsConfig, FIXED, DECIDED)
    named = {"backbone": config.backbone, "name": f"{config.name}-best", "combinations": config.combinations}
    base = lay_over(config.base | named | {"seed": config.seed}, {"optim.min_ndcg_ratio": NO_FLOOR})
    if not (validate_config(EliminatorsConfig, base).shape.transport_units or "shape.transport_units" in config.space):
        for key in config.space:
            if key.startswith("transport."):
                raise UserError(f"space: {key} has no effect with shape.transport_units = 0: drop one of them")
    check_values(space, EliminatorsConfig, base)
    data: dict[str, Any] = {"buckets": config.buckets, "num_permutations": NUM_PERMUTATIONS}
    overrides = {"runner.cpus_per_worker": config.cpus_per_worker}
    return source, TrialSpecs(EliminatorsTrial, EliminatorsConfig, space, base, overrides, data)


def choose_least_leakage(rows: list[TrialRow], min_ndcg_ratio: float) -> tuple[TrialRow, list[str]]:
    """The least leakage at this ratio or more, else the most accurate, with a note."""
    enough = [row for row in rows if row.value(RATIO) >= min_ndcg_ratio]
    if not enough:
        best = max(rows, key=lambda row: (row.value(ACCURACY), -row.value(LEAKAGE)))
        return best, [f"NO trial reached {min_ndcg_ratio:g} of the backbone's NDCG@10: chosen is the most accurate one"]
    return min(enough, key=lambda row: (row.value(LEAKAGE), -row.value(ACCURACY))), []


def _backbone_figures(specs: TrialSpecs, config: Config) -> Figures:
    return specs.make(config, TrialCache(), Workers()).backbone_figures()

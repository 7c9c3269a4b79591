"""`mtrec search eliminators`: lambda, prompts, adapters and discriminators, leakage against accuracy.

The two goals give a front; one point of it is chosen by a stated rule: of all trials that keep `min_ndcg_ratio` of the
backbone's NDCG@10, the one that leaks least, and of those that leak nothing the most accurate (where none keeps it, the
most accurate of all, and a note says so).
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from mtrec_ray.combinations import combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig, parse_combinations
from mtrec_ray.training.backbone_run import BackboneRecord, backbone_hash
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.data import TrialCache, first_buckets
from mtrec_ray.tuning.eliminators_trial import EliminatorsTrial
from mtrec_ray.tuning.results import SearchResult, TrialRow, collect
from mtrec_ray.tuning.search import Goal, Prepared, check_name, confirm, record_search, run, search_uri, trials_at_once
from mtrec_ray.tuning.space import (
    Space,
    check_base,
    check_values,
    checked_starts,
    parse_space,
    usual_settings,
    with_settings,
)
from mtrec_ray.tuning.trial import TrialSpec

FIXED = (
    "backbone",
    "name",
    "runs",
    "seed",
    "combinations",
    "method",
    "pack_size",
    "jobs_at_once",
    "retries",
    "runner.",
    "optim.evaluate_every",
    "optim.validation_users",
)
"""Keys that all trials share."""
TAKEN = {
    "backbone": "backbone",
    "name": "the search's name",
    "seed": "seed",
    "combinations": "combinations",
    "optim.min_ndcg_ratio": "min_ndcg_ratio of the search",
    "optim.leakage_budget": "min_ndcg_ratio of the search",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
}
"""Keys that the search sets, and by what."""
LEAKAGE, ACCURACY = "leakage/mean", "ndcg@10/mean"
SHARE = "ndcg_share/mean"
KEEP_ALL = 1e-6
"""`optim.min_ndcg_ratio` of every trial and of its result: the search decides what accuracy is worth."""


@dataclass(frozen=True)
class EliminatorsPlans:
    """A trial's drawn parameters -> its plan. Plain data: it travels to every trial."""

    base: dict[str, Any]
    space: Space
    data: dict[str, Any]
    """What else a trial's plan holds."""
    trial_overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted settings of trials alone."""

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The document that `mtrec train eliminators --config` reads."""
        return with_settings(self.base, self.space.settings(params))

    def __call__(self, params: dict[str, Any]) -> TrialSpec:
        config = validate_config(EliminatorsConfig, with_settings(self.settings(params), self.trial_overrides))
        return {"kind": "eliminators", "config": config.model_dump(mode="json"), **self.data}


def search_eliminators(
    config: EliminatorsSearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> list[SearchResult]:
    """Search, or go on with a stopped search; one result, or one for each combination where they are not shared.

    Raises:
        UserError: a space, backbone, combination or cluster that does not fit, before the first trial.
    """
    config = config.model_copy(update={"backbone": absolute(config.backbone)})
    source, space = check(config)
    trials_at_once(config)
    inputs = {
        f"lake {source.config.lake!r}": source.lake_hash,
        f"backbone {source.uri!r}": backbone_hash(source),
    }
    check_name(config, inputs, resume)
    each = [_Search.prepare(one, space) for one in _apart(config, source)]
    task = ray.remote(num_cpus=config.cpus_per_worker)(_backbone_figures)
    untouched = ray.get([task.remote(one.plans(one.prepared.first[0])) for one in each])  # too few users are told here
    record_search(config, inputs)
    return [one.to_end(figures, resume, progress) for one, figures in zip(each, untouched, strict=True)]


def check(config: EliminatorsSearchConfig) -> tuple[BackboneRecord, Space]:
    """All that can be said before any work: the backbone and the space."""
    if config.workers > 1:
        raise UserError(
            f"workers = {config.workers}: a trial of eliminators trains in one process, which these small models fill; "
            "raise trials_at_once instead"
        )
    source = BackboneRecord.load_done(config.backbone)
    lake = source.open_lake()
    first_buckets(lake, config.buckets)
    parse_combinations(config.combinations, source.attributes)
    space, groups = parse_space(config.space, EliminatorsConfig, FIXED)
    assert not groups, "model.groups is no key of eliminators"
    for key in ("optim.min_ndcg_ratio", "optim.leakage_budget"):
        if key in config.space:
            raise UserError(f"space: {key} has no say in a search; the rule of its choice is min_ndcg_ratio")
    check_base(config.base, TAKEN)
    base = _base(config)
    _check_read(config, validate_config(EliminatorsConfig, base))
    check_values(space, EliminatorsConfig, base)
    checked_starts(space, config.warm_start)
    if len(config.warm_start) >= config.trials:
        raise UserError(f"trials = {config.trials}: {len(config.warm_start)} warm starts and the base need more")
    return source, space


def _check_read(config: EliminatorsSearchConfig, base: EliminatorsConfig) -> None:
    """UserError for a space over the map of trials that have none."""
    if base.shape.transport_units or "shape.transport_units" in config.space:
        return
    for key in config.space:
        if key.startswith("transport."):
            raise UserError(f"space: {key} has no effect with shape.transport_units = 0: drop one of them")


def _apart(config: EliminatorsSearchConfig, source: BackboneRecord) -> list[EliminatorsSearchConfig]:
    """The search, or one in its folder for each combination where they are not shared."""
    if config.shared:
        return [config]
    names = [combination_name(one) for one in parse_combinations(config.combinations, source.attributes)]
    folder = search_uri(config)
    return [config.model_copy(update={"searches": folder, "name": name, "combinations": name}) for name in names]


@dataclass(frozen=True)
class _Search:
    """Trials that share one choice."""

    config: EliminatorsSearchConfig
    plans: EliminatorsPlans
    prepared: Prepared

    @staticmethod
    def prepare(config: EliminatorsSearchConfig, space: Space) -> "_Search":
        base, data = _base(config), {"buckets": config.buckets, "num_permutations": config.num_permutations}
        plans = EliminatorsPlans(base, space, data, {"runner.cpus_per_worker": config.cpus_per_worker})
        prepared = Prepared(
            space=space,
            goals=(Goal(LEAKAGE, "min"), Goal(ACCURACY, "max")),
            make_trial_spec=plans,
            first=[usual_settings(space, EliminatorsConfig, base)],
            starts=checked_starts(space, config.warm_start),
        )
        return _Search(config, plans, prepared)

    def to_end(self, untouched: dict[str, float], resume: bool, progress: ProgressCallback | None) -> SearchResult:
        """All trials, the choice, and its fresh seeds; `untouched`: the backbone's own figures."""
        config, prepared = self.config, self.prepared
        grid = run(config, prepared, resume, progress)
        says = ", ".join(f"{goal.metric} {untouched[goal.metric]:.4f}" for goal in prepared.goals)
        notes = [
            f"the backbone itself: {says}",
            f"chosen: least leakage of those that keep {config.min_ndcg_ratio:g} of the backbone's NDCG@10",
            "cross-fitted on the users open to training; no user of an audit was seen",
        ]

        def choose_and_say(rows: list[TrialRow]) -> TrialRow:
            chosen = choose(rows, config.min_ndcg_ratio)
            if chosen.metrics[SHARE] < config.min_ndcg_ratio:
                notes.append(f"NO trial kept {config.min_ndcg_ratio:g}: the most accurate one is taken")
            return chosen

        again = partial(confirm, config, prepared, progress)
        return collect(search_uri(config), grid, prepared, self.plans.settings, notes, again, choose_and_say)


def choose(rows: list[TrialRow], min_ndcg_ratio: float) -> TrialRow:
    """Of those that keep `min_ndcg_ratio` the one that leaks least; where none keeps it, the most accurate."""
    kept = [row for row in rows if row.metrics[SHARE] >= min_ndcg_ratio]
    if not kept:
        return max(rows, key=lambda row: (row.metrics[ACCURACY], -row.metrics[LEAKAGE]))
    return min(kept, key=lambda row: (row.metrics[LEAKAGE], -row.metrics[ACCURACY]))


def _backbone_figures(plan: TrialSpec) -> dict[str, float]:
    return EliminatorsTrial(plan, TrialCache()).backbone_figures()


def _base(config: EliminatorsSearchConfig) -> dict[str, Any]:
    named = {"backbone": config.backbone, "name": f"{config.name}-best", "combinations": config.combinations}
    return with_settings(config.base | named | {"seed": config.seed}, {"optim.min_ndcg_ratio": KEEP_ALL})

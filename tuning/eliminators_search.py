"""`mtrec search eliminators`: leakage against accuracy.

The two goals give a Pareto front, from which a stated rule chooses: of all trials with at least `min_ndcg_ratio` of the
backbone's NDCG@10, the one with the least leakage, and of equal ones the most accurate. Where no trial reaches the
ratio, the most accurate of all, and a note reports it.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from rich.console import RenderableType

from mtrec_ray.combinations import combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig, parse_combinations
from mtrec_ray.training.backbone_run import BackboneRecord, backbone_hash
from mtrec_ray.tuning.collect import run_search
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.data import TrialCache, first_buckets
from mtrec_ray.tuning.eliminators_trial import EliminatorsTrial
from mtrec_ray.tuning.results import SearchResult, TrialRow
from mtrec_ray.tuning.search import PreparedSearch, check_name, record_search, search_uri, trials_at_once
from mtrec_ray.tuning.space import (
    Space,
    check_base,
    check_values,
    checked_starts,
    lay_over,
    parse_space,
    usual_settings,
)
from mtrec_ray.tuning.specs import TrialSpecs
from mtrec_ray.tuning.trial import TrialSpec

if TYPE_CHECKING:
    import pandas as pd

FIXED = (
    "runs", "method", "pack_size", "jobs_at_once", "runner.", "optim.evaluate_every", "optim.validation_users",
)  # fmt: skip
"""Keys, and sections ending in a dot, that all trials share."""
DECIDED = {
    "backbone": "backbone",
    "name": "the search's name",
    "seed": "seed",
    "combinations": "combinations",
    "optim.min_ndcg_ratio": "min_ndcg_ratio of the search",
    "optim.leakage_budget": "min_ndcg_ratio of the search",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
}
"""Keys that the search decides -> what decides them."""
LEAKAGE, ACCURACY, RATIO = "leakage/mean", "ndcg@10/mean", "ndcg_ratio/mean"
NO_FLOOR = 1e-6
"""`optim.min_ndcg_ratio` of every trial: the search decides what accuracy is worth."""


@dataclass(frozen=True)
class EliminatorsSearchResult:
    """One search for all combinations, or one for each."""

    searches: dict[str, SearchResult]
    """By the name of the search or the combination."""

    @property
    def metrics(self) -> "pd.DataFrame":
        """One row a trial and metric: search, trial, metric, value, low, high."""
        import pandas as pd

        frames = {name: result.metrics for name, result in self.searches.items()}
        return pd.concat(frames, names=["search"]).reset_index("search").reset_index(drop=True)

    def document(self) -> dict[str, Any]:
        return {"version": 1, "searches": {name: result.document() for name, result in self.searches.items()}}

    def tables(self) -> list[RenderableType]:
        return [table for result in self.searches.values() for table in result.tables()]


def search_eliminators(
    config: EliminatorsSearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> EliminatorsSearchResult:
    """Search, or continue a stopped search.

    Raises:
        UserError: a space, backbone, combination or cluster that does not fit, before the first trial.
    """
    config = config.model_copy(update={"backbone": absolute(config.backbone)})
    source, space = check_eliminators_search(config)
    trials_at_once(config)
    inputs = {f"lake {source.config.lake!r}": source.lake_hash, f"backbone {source.uri!r}": backbone_hash(source)}
    check_name(config, inputs, resume)
    parts = [(part, _prepare(part, space)) for part in _parts(config, source)]
    task = ray.remote(num_cpus=config.cpus_per_worker)(_backbone_figures)
    specs = [prepared.specs.spec(prepared.first[0]) for _, prepared in parts]
    figures = ray.get([task.remote(spec) for spec in specs])  # too few users raise before the name is taken
    record_search(config, inputs)
    searches = {}
    for (part, prepared), of_backbone in zip(parts, figures, strict=True):
        in_words = ", ".join(f"{metric} {of_backbone[metric]:.4f}" for metric in prepared.goals)
        notes = [
            f"the backbone itself: {in_words}",
            f"chosen: least leakage with at least {config.min_ndcg_ratio:g} of the backbone's NDCG@10",
            "cross-fitted on the train split; no user of the audit split was read",
        ]
        choose = partial(choose_least_leakage, min_ndcg_ratio=config.min_ndcg_ratio)
        searches[part.name] = run_search(part, prepared, notes, resume, progress, choose)
    return EliminatorsSearchResult(searches)


def check_eliminators_search(config: EliminatorsSearchConfig) -> tuple[BackboneRecord, Space]:
    """Check all that can be checked before any work; returns the backbone and the space."""
    source = BackboneRecord.load_done(config.backbone)
    lake = source.open_lake()
    first_buckets(lake, config.buckets)
    parse_combinations(config.combinations, source.attributes)
    space, _ = parse_space(config.space, EliminatorsConfig, FIXED, DECIDED)
    check_base(config.base, DECIDED)
    base = _base(config)
    if not (validate_config(EliminatorsConfig, base).shape.transport_units or "shape.transport_units" in config.space):
        for key in config.space:
            if key.startswith("transport."):
                raise UserError(f"space: {key} has no effect with shape.transport_units = 0: drop one of them")
    check_values(space, EliminatorsConfig, base)
    checked_starts(space, config.warm_start)
    if len(config.warm_start) >= config.trials:
        raise UserError(f"trials = {config.trials}: {len(config.warm_start)} warm starts and the base need more")
    return source, space


def _parts(config: EliminatorsSearchConfig, source: BackboneRecord) -> list[EliminatorsSearchConfig]:
    """The search itself, or one in its folder for each combination."""
    if config.shared:
        return [config]
    names = [combination_name(one) for one in parse_combinations(config.combinations, source.attributes)]
    folder = search_uri(config)
    return [config.model_copy(update={"searches": folder, "name": name, "combinations": name}) for name in names]


def _prepare(config: EliminatorsSearchConfig, space: Space) -> PreparedSearch:
    base = _base(config)
    specs = TrialSpecs(
        kind="eliminators",
        model=EliminatorsConfig,
        space=space,
        base=base,
        trial_overrides={"runner.cpus_per_worker": config.cpus_per_worker},
        data={"buckets": config.buckets, "num_permutations": config.num_permutations},
    )
    return PreparedSearch(
        specs=specs,
        goals={LEAKAGE: "min", ACCURACY: "max"},
        first=[usual_settings(space, EliminatorsConfig, base)],
        starts=checked_starts(space, config.warm_start),
    )


def choose_least_leakage(rows: list[TrialRow], min_ndcg_ratio: float) -> tuple[TrialRow, list[str]]:
    """The least leakage at `min_ndcg_ratio` or more, else the most accurate, with a note."""
    enough = [row for row in rows if row.metrics[RATIO] >= min_ndcg_ratio]
    if not enough:
        best = max(rows, key=lambda row: (row.metrics[ACCURACY], -row.metrics[LEAKAGE]))
        return best, [f"NO trial reached {min_ndcg_ratio:g} of the backbone's NDCG@10: chosen is the most accurate one"]
    return min(enough, key=lambda row: (row.metrics[LEAKAGE], -row.metrics[ACCURACY])), []


def _backbone_figures(spec: TrialSpec) -> dict[str, float]:
    return EliminatorsTrial(spec, TrialCache()).backbone_figures()


def _base(config: EliminatorsSearchConfig) -> dict[str, Any]:
    named = {"backbone": config.backbone, "name": f"{config.name}-best", "combinations": config.combinations}
    return lay_over(config.base | named | {"seed": config.seed}, {"optim.min_ndcg_ratio": NO_FLOOR})

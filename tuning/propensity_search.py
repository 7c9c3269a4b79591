"""`mtrec search propensity`: a propensity model's settings and territory groups.

1. `check_propensity_search`: settings against the lake, space, metric
2. `_starting_points`:        partitions to start from, random ones beside them
3. `run_search`:              trials, the choice, fresh seeds and result files
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import join
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import BY_NAME, Groups, make_groups
from mtrec_ray.trainers.propensity import METRICS
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import new_propensity_run
from mtrec_ray.tuning.collect import run_search
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialData, trial_data
from mtrec_ray.tuning.partitions import partition_maker
from mtrec_ray.tuning.propensity_trial import PropensityTrial
from mtrec_ray.tuning.results import SearchResult
from mtrec_ray.tuning.search import PreparedSearch, record_search, stored_search, trials_at_once
from mtrec_ray.tuning.space import GROUPS, GroupsFiles, TrialSpecs, check_values, lay_over, parse_space, usual_settings

FIXED = ("runs", "runner.", "window.", "sample.split_seed", "sample.test_fraction")  # see `parse_space`, as the next
DECIDED = {
    "lake": "lake",
    "name": "the search's name",
    "seed": "seed",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
    "sample.validation_fraction": "validation_fraction of the search",
    "incremental": "the training window, all that trials see",
    "optim.snapshot": "the last weights, which trials report",
}
MOVABLE = 8  # number of territories that may change groups: those with the most discoveries
MIN_USERS = 10  # minimum number of users to train and to validate on, as expected from the fractions


def search_propensity(
    config: PropensitySearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> SearchResult:
    """Search, or continue a stopped search; UserError for what does not fit, before any trial."""
    data, specs = check_propensity_search(config)
    trials_at_once(config, config.workers)
    given_files = _groups_files(config, data.lake)
    inputs = {"lake": data.lake.manifest.lake_hash} | given_files
    stored = stored_search(config, inputs, resume)
    starting = stored["starting_points"] if stored else _starting_points(data, specs, progress)
    if starting:
        partitions = {name: Groups(**groups) for name, groups in starting["partitions"].items()}
        groups_files = GroupsFiles(join(config.uri, "partitions"), data.lake.territory_names(), partitions)
        space = replace(specs.space, movable=tuple(starting["movable"]))
        specs = replace(specs, space=space, groups_files=groups_files)
    # Each partition once, every other setting as in base or in the middle of its range: so they are comparable.
    space, usual = specs.space, usual_settings(specs.space, PropensityConfig, specs.base)
    unmoved = {"moves": 0} if space.moves else {}
    first = [usual | {GROUPS: name} | unmoved for name in space.partitions] or [usual]
    goals, notes = {config.metric: "max"}, _notes(data, given_files)
    prepared = PreparedSearch(config, specs, goals, first, notes, config.validations, config.workers)
    record_search(config, inputs, starting_points=starting)
    return run_search(prepared, resume, progress)


def check_propensity_search(config: PropensitySearchConfig) -> tuple[TrialData, TrialSpecs]:
    """Check settings before any work."""
    if config.metric not in METRICS:
        raise UserError(f"metric = {config.metric!r} is not reported by these trials: choose {', '.join(METRICS)}")
    lake = Lake.open(config.lake)
    space, groups = parse_space(config.space, config.base, PropensityConfig, FIXED, DECIDED)
    base = config.base | {"lake": config.lake, "name": f"{config.name}-best", "seed": config.seed}
    resolved = validate_config(PropensityConfig, base)
    if groups and resolved.kind != "mtl":
        raise UserError(f"space: {GROUPS} has no effect on a baseline: drop it, or drop base.kind")
    data = trial_data(lake, resolved.window.resolve(lake.manifest.calendar), config.buckets, config.validation_days)
    overrides = {
        "sample.validation_fraction": config.validation_fraction,
        "runner.cpus_per_worker": config.cpus_per_worker,
        "runner.workers": config.workers,
    }
    of_trials = lay_over(base, overrides | ({GROUPS: "one"} if groups else {}))
    check_values(space, PropensityConfig, of_trials, partial(_check_trial, data=data))
    if groups:
        territories = lake.manifest.territories
        names = groups.names(len(territories), len({t.region for t in territories}), len(data.buckets))
        if len(names) > config.trials:
            raise UserError(f"trials = {config.trials}: {len(names)} are needed to try every partition once")
        space = replace(space, partitions=names, moves=groups.moves)
    arguments = {"search": config, "lake_hash": lake.manifest.lake_hash}
    return data, TrialSpecs(PropensityTrial, PropensityConfig, space, base, overrides, arguments)


def _check_trial(config: PropensityConfig, data: TrialData) -> None:
    """UserError where a trial of these settings could not start, or would have too few users."""
    no_count = np.ones(len(data.lake.manifest.territories))  # for a check, any volume will do
    new_propensity_run(config, data.lake, data.calendar, lambda: no_count)
    sample, manifest = config.sample, data.lake.manifest
    users = manifest.counts["users"] * len(data.buckets) / manifest.num_buckets
    validated = sample.validation_fraction
    trained = (1 - sample.test_fraction - validated) * sample.random_fraction
    if min(validated, trained) * users < MIN_USERS:
        found = f"trials would train on {trained * users:.2g} and be validated on {validated * users:.2g}"
        fix = "raise validation_fraction, sample.random_fraction or buckets"
        raise UserError(f"{found} of the {users:.0f} users they read: {fix}")


def _groups_files(config: PropensitySearchConfig, lake: Lake) -> dict[str, str]:
    """Groups files that trials or the best configuration are made with -> content hash."""
    choices = config.space.get(GROUPS)
    named = [*(choices if isinstance(choices, list) else []), (config.base.get("model") or {}).get("groups")]
    files = sorted({str(name) for name in named if name and not BY_NAME.fullmatch(str(name))})
    texts = {f"groups file {name!r}": make_groups(name, lake.manifest).model_dump_json() for name in files}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _starting_points(data: TrialData, specs: TrialSpecs, progress: ProgressCallback | None) -> dict[str, Any]:
    """Partitions to start from, and the largest territories, which may move."""
    if not specs.space.partitions:
        return {}
    maker = partition_maker(cast(PropensityConfig, specs.config({})), data, progress)
    names = data.lake.territory_names()
    return {
        "movable": [names[t] for t in np.argsort(-maker.volume, kind="stable")[:MOVABLE]],
        "partitions": {name: maker.make(name).model_dump() for name in specs.space.partitions},
    }


def _notes(data: TrialData, groups_files: Iterable[str]) -> tuple[str, ...]:
    days = " to ".join(f"{end:%Y-%m-%d}" for end in data.validation)
    validated = f"held-back days ({days})" if data.held_back else f"users of the days after the window ({days})"
    buckets = f"trials read {len(data.buckets)} of {data.lake.manifest.num_buckets} buckets"
    unfair = (f"{name} has an unfair advantage if these validation users' discoveries made it" for name in groups_files)
    return f"{buckets} and were validated on {validated}; no test user was read", *unfair

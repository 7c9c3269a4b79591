"""`mtrec search propensity`: a propensity model's settings and territory groups.

1. `check_propensity_search`: settings against the lake, space, metric        (errors before any work)
2. `_with_partitions`:        partitions to start from, random ones beside them
3. `run_search`:              trials, the choice, fresh seeds and result files
"""

import hashlib
from dataclasses import replace
from functools import cache, partial

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, join, read_json, write_json
from mtrec_ray.lake.cluster import joins_cluster, map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.groups import Groups, make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.propensity_validation import METRICS
from mtrec_ray.training.propensity import new_propensity_run
from mtrec_ray.tuning.affinity import gradient_evidence
from mtrec_ray.tuning.collect import run_search
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialData, map_here, trial_data
from mtrec_ray.tuning.partitions import PLAIN, PartitionMaker, PartitionSpec
from mtrec_ray.tuning.profiles import count_discoveries, taste_evidence
from mtrec_ray.tuning.results import SearchResult
from mtrec_ray.tuning.search import PreparedSearch, check_name, is_recorded, record_search, search_uri, trials_at_once
from mtrec_ray.tuning.space import (
    GROUPS,
    PartitionSpace,
    check_base,
    check_values,
    checked_starts,
    lay_over,
    parse_space,
    usual_settings,
)
from mtrec_ray.tuning.specs import GroupsFiles, TrialSpecs

FIXED = ("runs", "incremental", "runner.", "window.", "sample.split_seed", "sample.test_fraction")
"""Keys, and sections ending in a dot, that all trials share."""
DECIDED = {
    "lake": "lake",
    "name": "the search's name",
    "seed": "seed",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
    "sample.validation_fraction": "validation_fraction of the search",
}
"""Keys that the search decides -> what decides them."""
MIN_USERS = 10
"""Minimum number of users to train and to validate on, as expected from the fractions."""


def search_propensity(
    config: PropensitySearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> SearchResult:
    """Search, or continue a stopped search.

    Raises:
        UserError: a space, metric, sample or cluster that does not fit, before the first trial.
    """
    config = config.model_copy(update={"lake": absolute(config.lake)})
    data, specs, partition_space = check_propensity_search(config)
    trials_at_once(config)
    inputs = {f"lake {config.lake!r}": data.lake.manifest.lake_hash} | _groups_file_hashes(config, data.lake)
    check_name(config, inputs, resume)
    if partition_space:
        specs = _with_partitions(config, data, specs, partition_space.movable, progress)
    # Each partition once, every other setting as in base or in the middle of its range: so they are comparable.
    space, usual = specs.space, usual_settings(specs.space, PropensityConfig, specs.base)
    unmoved = {"moves": 0} if space.moves else {}
    prepared = PreparedSearch(
        specs=specs,
        goals={config.metric: "max"},
        first=[usual | {GROUPS: name} | unmoved for name in space.partitions] or [usual],
        starts=checked_starts(space, config.warm_start),
        num_validations=config.validations,
        early_stop=config.early_stop,
    )
    record_search(config, inputs)
    return run_search(config, prepared, _notes(config, data), resume, progress)


def check_propensity_search(config: PropensitySearchConfig) -> tuple[TrialData, TrialSpecs, PartitionSpace | None]:
    """Check settings before any work; returns data, specs and the space of partitions."""
    if config.metric not in METRICS:
        raise UserError(f"metric = {config.metric!r} is not reported by these trials: choose {', '.join(METRICS)}")
    lake = Lake.open(config.lake)
    space, groups = parse_space(config.space, PropensityConfig, FIXED, DECIDED)
    check_base(config.base, DECIDED | ({GROUPS: f"space: {GROUPS}"} if groups else {}))
    base = config.base | {"lake": config.lake, "name": f"{config.name}-best", "seed": config.seed}
    resolved = validate_config(PropensityConfig, base)
    if groups and resolved.kind != "mtl":
        raise UserError(f"space: {GROUPS} has no effect on a baseline: drop it, or drop base.kind")
    if resolved.incremental:
        raise UserError("base.incremental has no effect on trials, which train on the window: train the best with it")
    data = trial_data(lake, resolve_calendar(lake, resolved.window), config.buckets, config.validation_days)
    overrides = {
        "sample.validation_fraction": config.validation_fraction,
        "runner.cpus_per_worker": config.cpus_per_worker,
        "runner.workers": config.workers,
    }
    of_trials = lay_over(base, overrides | ({GROUPS: "one"} if groups else {}))
    check_values(space, PropensityConfig, of_trials, partial(_check_trial, data=data))
    if groups:
        territories = lake.manifest.territories
        names = groups.names(len(territories), len({t.region for t in territories}))
        for name in names:
            PartitionSpec.parse(name, len(territories), len(data.buckets))
        movable = tuple(lake.territory_names()) if groups.movable else ()  # which ones is not known yet
        space = replace(space, partitions=names, movable=movable, moves=groups.moves if movable else 0)
    needed = len(space.partitions) + len(config.warm_start)
    if needed > config.trials:
        raise UserError(f"trials = {config.trials}: {needed} are needed to try every partition and warm start once")
    checked_starts(space, config.warm_start)
    shared = ("buckets", "validation_days", "validation_users", "validations", "num_bootstrap")
    of_search = {"lake_hash": lake.manifest.lake_hash} | {key: getattr(config, key) for key in shared}
    return data, TrialSpecs("propensity", PropensityConfig, space, base, overrides, of_search), groups


def _check_trial(config: PropensityConfig, data: TrialData) -> None:
    """UserError where a trial of these settings could not start, or would have too few users."""
    new_propensity_run(config, data.lake, data.calendar)
    sample, manifest = config.sample, data.lake.manifest
    users = manifest.counts["users"] * len(data.buckets) / manifest.num_buckets
    trained = (1 - sample.test_fraction - sample.validation_fraction) * sample.random_fraction
    for what, fraction, setting in (
        ("validated", sample.validation_fraction, "validation_fraction"),
        ("trained", trained, "sample.random_fraction"),
    ):
        if fraction * users < MIN_USERS:
            raise UserError(
                f"trials would be {what} on {fraction * users:.2g} of the {users:.0f} users they read: raise "
                f"{setting}, or read more buckets"
            )


def _groups_file_hashes(config: PropensitySearchConfig, lake: Lake) -> dict[str, str]:
    """Content hash of each groups file that trials or the best configuration are made with."""
    files = _files_searched(config)
    in_base = (config.base.get("model") or {}).get("groups")
    if in_base and in_base not in PLAIN:
        files.append(str(in_base))
    texts = {name: make_groups(name, lake.manifest).model_dump_json() for name in sorted(set(files))}
    return {f"groups file {name!r}": hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def _files_searched(config: PropensitySearchConfig) -> list[str]:
    choices = config.space.get(GROUPS)
    return [str(name) for name in choices if name and name not in PLAIN] if isinstance(choices, list) else []


def partition_maker(config: PropensityConfig, data: TrialData, progress: ProgressCallback | None) -> PartitionMaker:
    """Makes partitions of a lake from what its training users discover in the training window.

    Without a cluster it works in this process, which takes no longer than starting others would.
    """
    map_over = partial(map_tasks if joins_cluster() else map_here, stage="counting discoveries", progress=progress)
    counts = count_discoveries(data.lake, data.calendar, config.sample, data.buckets, map_over)
    mask = Catalogue.of(data.lake, *data.calendar.day_bounds(0)).offer_mask
    model = config.model.model_copy(update={"groups": None, "group_block": None})
    baseline = config.model_copy(update={"kind": "baseline", "model": model})
    evidence = {"taste": partial(taste_evidence, counts, mask), "affinity": partial(gradient_evidence, baseline, data)}
    gathered_once = {kind: cache(gather) for kind, gather in evidence.items()}
    return PartitionMaker(data.lake.manifest, counts.sum(axis=0), gathered_once, config.seed)


def _with_partitions(
    config: PropensitySearchConfig,
    data: TrialData,
    specs: TrialSpecs,
    num_movable: int,
    progress: ProgressCallback | None,
) -> TrialSpecs:
    """Add the partitions to start from, stored for a resumed search, and who may move."""
    folder, names = join(search_uri(config), "partitions"), data.lake.territory_names()
    uri = join(folder, "starting-points.json")
    if not is_recorded(config):
        maker = partition_maker(validate_config(PropensityConfig, specs.settings_of_trials({})), data, progress)
        made = {name: maker.make(name).model_dump() for name in specs.space.partitions}
        write_json(uri, {"version": 1, "discoveries": maker.volume.tolist(), "partitions": made})
    document = read_json(uri)
    partitions = {name: Groups(**groups) for name, groups in document["partitions"].items()}
    largest_first = sorted(zip(names, document["discoveries"], strict=True), key=lambda pair: -pair[1])
    space = replace(specs.space, movable=tuple(name for name, _ in largest_first[:num_movable]))
    return replace(specs, space=space, groups_files=GroupsFiles(folder, names, partitions))


def _notes(config: PropensitySearchConfig, data: TrialData) -> list[str]:
    days = " to ".join(f"{end:%Y-%m-%d}" for end in data.validation)
    validated = f"held-back days ({days})" if data.held_back else f"users of the days after the window ({days})"
    notes = [
        f"trials read {len(data.buckets)} of {data.lake.manifest.num_buckets} buckets and were validated on "
        f"{validated}; no test user was read"
    ]
    if _files_searched(config):
        notes.append("a groups file made from discoveries of these validation users has an unfair advantage")
    return notes

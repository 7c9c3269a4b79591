"""`mtrec search propensity`: a propensity model's settings, and which territories share a group block.

1. `prepare`:      settings against the lake, space, metric        (errors before the first trial)
2. partitions:     candidates to start from, random ones beside them
3. `search.run`:   trials
4. `search_report`: what was found, compared with the random partitions
"""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml

from mtrec_ray.config import validate_config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, join, read_json, write_file, write_json
from mtrec_ray.lake.cluster import joins_cluster, map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.trainers.propensity_validation import METRICS
from mtrec_ray.training.propensity import new_propensity_run
from mtrec_ray.tuning.affinity import gradient_evidence
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialData, map_here, trial_data
from mtrec_ray.tuning.partitions import PLAIN, Partition, PartitionMaker, PartitionSpec, with_moves
from mtrec_ray.tuning.profiles import count_discoveries, taste_evidence
from mtrec_ray.tuning.results import SearchResult, collect
from mtrec_ray.tuning.search import (
    Goal,
    Prepared,
    check_name,
    confirm,
    is_started,
    record_search,
    run,
    search_uri,
    trials_at_once,
)
from mtrec_ray.tuning.space import (
    GROUPS,
    PartitionSpace,
    Space,
    check_base,
    check_values,
    checked_starts,
    moves_of,
    parse_partitions,
    parse_space,
    usual_settings,
    with_settings,
)
from mtrec_ray.tuning.trial import TrialSpec

FIXED = (
    "lake", "name", "runs", "seed", "incremental", "runner.", "window.",
    "sample.split_seed", "sample.test_fraction", "sample.validation_fraction",
)  # fmt: skip
"""Keys that all trials share: they decide who is tested and when, or only where a run lives."""
TAKEN = {
    "lake": "lake",
    "name": "the search's name",
    "seed": "seed",
    "runner.cpus_per_worker": "cpus_per_worker of the search",
    "sample.validation_fraction": "validation_fraction of the search",
}
"""Keys that the search sets, and by what."""
LEAST_USERS = 10
"""With fewer to expect, a trial is not begun."""


@dataclass(frozen=True)
class PropensityPlans:
    """A trial's drawn parameters -> its plan. Plain data: it travels to every trial."""

    base: dict[str, Any]
    """Settings that all trials share, lake and name included."""
    space: Space
    partitions: dict[str, Partition]
    territories: list[str]
    folder: str
    """Where groups files are written, named by what they hold."""
    data: dict[str, Any]
    """What else a trial's plan holds."""
    trial_overrides: dict[str, Any]
    """Dotted settings of trials alone, which `mtrec train` must not have."""

    def partition(self, params: dict[str, Any]) -> Partition | None:
        """The partition of a trial, its moves made; None where partitions are not searched, or plain choices."""
        if GROUPS not in params or GROUPS in self.space.choices:
            return None
        index = {name: number for number, name in enumerate(self.territories)}
        moves = [(index[territory], index[host]) for territory, host in moves_of(params)]
        return with_moves(self.partitions[params[GROUPS]], moves)

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The document that `mtrec train propensity --config` reads."""
        settings = self.space.settings(params)
        partition = self.partition(params)
        if partition is not None:
            settings[GROUPS] = self._groups_file(partition)
        return with_settings(self.base, settings)

    def __call__(self, params: dict[str, Any]) -> TrialSpec:
        config = validate_config(PropensityConfig, with_settings(self.settings(params), self.trial_overrides))
        return {"kind": "propensity", "config": config.model_dump(mode="json"), **self.data}

    def _groups_file(self, partition: Partition) -> str:
        text = yaml.safe_dump(partition.document(self.territories), sort_keys=False).encode()
        uri = join(self.folder, f"{hashlib.sha256(text).hexdigest()[:12]}.yaml")
        if not exists(uri):
            write_file(uri, text)
        return uri


def search_propensity(
    config: PropensitySearchConfig, resume: bool = False, progress: ProgressCallback | None = None
) -> SearchResult:
    """Search, or go on with a stopped search.

    Raises:
        UserError: a space, metric, sample or cluster that does not fit, before the first trial.
    """
    config = config.model_copy(update={"lake": absolute(config.lake)})
    data, base, space, seeds = check(config)
    trials_at_once(config)
    inputs = {f"lake {config.lake!r}": data.lake.manifest.lake_hash} | _groups_files(base, space, data.lake)
    check_name(config, inputs, resume)
    discoveries, partitions = _partitions(config, data, base, seeds, progress)
    movable = _largest(data.lake, discoveries, config)
    space = replace(space, movable=movable, moves=space.moves if len(movable) > 1 else 0)
    starts = checked_starts(space, config.warm_start)
    record_search(config, inputs)
    plans = PropensityPlans(
        base=base,
        space=space,
        partitions=partitions,
        territories=data.lake.territory_names(),
        folder=join(search_uri(config), "partitions"),
        data={
            "lake_hash": data.lake.manifest.lake_hash,
            "buckets": config.buckets,
            "validation_days": config.validation_days,
            "looks": config.looks,
            "num_bootstrap": config.num_bootstrap,
            "validation_users": config.validation_users,
        },
        trial_overrides=_trial_overrides(config),
    )
    prepared = Prepared(
        space=space,
        goals=(Goal(config.metric, "max"),),
        make_trial_spec=plans,
        first=_first(space, base),
        starts=starts,
        num_groups={name: len(partition.group_names) for name, partition in partitions.items()},
        num_validations=config.looks,
        reduction_factor=config.reduction_factor if config.early_stop else None,
    )
    grid = run(config, prepared, resume, progress)
    notes = [_says(data)]
    if any(choice not in PLAIN for choice in space.choices.get(GROUPS, [])):
        notes.append("a groups file made of what these validation users discovered has an unfair start")
    again = partial(confirm, config, prepared, progress)
    return collect(search_uri(config), grid, prepared, plans.settings, notes, again)


def check(config: PropensitySearchConfig) -> tuple[TrialData, dict[str, Any], Space, tuple[str, ...]]:
    """All that can be said before any work: data, the trials' common settings, space, names of the partitions."""
    if config.metric not in METRICS:
        raise UserError(f"metric = {config.metric!r} is not reported by these trials: choose {', '.join(METRICS)}")
    lake = Lake.open(config.lake)
    space, groups = parse_space(config.space, PropensityConfig, FIXED)
    check_base(config.base, TAKEN | ({GROUPS: f"space: {GROUPS}"} if groups else {}))
    base = config.base | {"lake": config.lake, "name": f"{config.name}-best", "seed": config.seed}
    resolved = validate_config(PropensityConfig, base)
    trained = with_settings(base, _trial_overrides(config))  # what trials are made of
    if groups and resolved.kind != "mtl":
        raise UserError(f"space: {GROUPS} has no effect on a baseline: drop it, or drop base.kind")
    if resolved.incremental:
        raise UserError("base.incremental has no effect on trials, which train on the window: train the best with it")
    if "optim.day_epochs" in config.space:
        raise UserError("space: optim.day_epochs has no effect on trials, which train on the window: drop it")
    data = trial_data(lake, resolve_calendar(lake, resolved.window), config.buckets, config.validation_days)
    base_or_one = with_settings(trained, {GROUPS: "one"}) if groups else trained
    check_values(space, PropensityConfig, base_or_one, lambda one: _check_fits(one, data))
    seeds: tuple[str, ...] = ()
    if groups:
        territories = lake.manifest.territories
        partitions, seeds = parse_partitions(groups, len(territories), len({t.region for t in territories}))
        for name in seeds:
            PartitionSpec.parse(name, len(territories)).check_halves(len(data.buckets))
        movable = lake.territory_names() if partitions.movable else []  # which ones is not known yet
        moves = partitions.moves if len(movable) > 1 else 0
        space = replace(space, partitions=seeds, movable=tuple(movable), moves=moves)
    needed = len(seeds) + len(config.warm_start)
    if needed > config.trials:
        raise UserError(f"trials = {config.trials}: {needed} are needed to try every partition and warm start once")
    checked_starts(space, config.warm_start)
    return data, base, space, seeds


def _check_fits(config: PropensityConfig, data: TrialData) -> None:
    """UserError where a trial of these settings could not begin, or would have next to nobody to learn from."""
    new_propensity_run(config, data.lake, data.calendar)
    sample, manifest = config.sample, data.lake.manifest
    users = manifest.counts["users"] * len(data.buckets) / manifest.num_buckets
    trained = (1 - sample.test_fraction - sample.validation_fraction) * sample.random_fraction
    for what, share in (("validated", sample.validation_fraction), ("trained", trained)):
        if share * users < LEAST_USERS:
            raise UserError(
                f"trials would be {what} on {share * users:.2g} of the {users:.0f} users they read: raise "
                f"{'validation_fraction' if what == 'validated' else 'sample.random_fraction'}, or read more buckets"
            )


def _groups_files(base: dict[str, Any], space: Space, lake: Lake) -> dict[str, str]:
    """Content hash of each groups file that trials or the best configuration are made with."""
    named = [*space.choices.get(GROUPS, []), (base.get("model") or {}).get("groups")]
    files = {str(name) for name in named if name and name not in PLAIN}
    made = {f"groups file {name!r}": make_groups(name, lake.manifest).model_dump_json() for name in sorted(files)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in made.items()}


def partition_maker(config: PropensityConfig, data: TrialData, progress: ProgressCallback | None) -> PartitionMaker:
    """Partitions of a lake from what its training users discover in the window.

    Without a cluster all is worked out in this process: it takes no longer than starting others for it would.
    """
    map_over = partial(map_tasks if joins_cluster() else map_here, stage="counting discoveries", progress=progress)
    counts = count_discoveries(data.lake, data.calendar, config.sample, data.buckets, map_over)
    mask = Catalogue.of(data.lake, *data.calendar.day_bounds(0)).offer_mask
    baseline = config.model_copy(
        update={"kind": "baseline", "model": config.model.model_copy(update={"groups": None, "group_block": None})}
    )
    taste, affinity = partial(taste_evidence, counts, mask), partial(gradient_evidence, baseline, data)
    return PartitionMaker(data.lake.manifest, counts.sum(axis=0), taste, affinity, config.seed)


def _partitions(
    config: PropensitySearchConfig,
    data: TrialData,
    base: dict[str, Any],
    seeds: tuple[str, ...],
    progress: ProgressCallback | None,
) -> tuple[list[int], dict[str, Partition]]:
    """Discoveries of each territory and the seeds' partitions, kept for a resumed search."""
    if not seeds:
        return [], {}
    uri = join(search_uri(config), "partitions", "seeds.json")
    if not is_started(config):
        maker = partition_maker(
            validate_config(PropensityConfig, with_settings(base, _trial_overrides(config))), data, progress
        )
        made = [maker.make(name) for name in seeds]
        partitions = {p.name: {"names": p.group_names, "group": p.group} for p in made}
        write_json(uri, {"discoveries": maker.volume.tolist(), "partitions": partitions})
    document = read_json(uri)
    partitions = {
        name: Partition(name, tuple(one["names"]), tuple(one["group"])) for name, one in document["partitions"].items()
    }
    return document["discoveries"], partitions


def _trial_overrides(config: PropensitySearchConfig) -> dict[str, Any]:
    return {
        "sample.validation_fraction": config.validation_fraction,
        "runner.cpus_per_worker": config.cpus_per_worker,
        "runner.workers": config.workers,
    }


def _largest(lake: Lake, discoveries: list[int], config: PropensitySearchConfig) -> tuple[str, ...]:
    """Names of the territories that may move, those with the most discoveries."""
    if not discoveries:
        return ()
    movable = PartitionSpace.model_validate(config.space[GROUPS]).movable
    ranked = sorted(range(len(discoveries)), key=lambda territory: -discoveries[territory])
    names = lake.territory_names()
    return tuple(names[territory] for territory in ranked[:movable])


def _first(space: Space, base: dict[str, Any]) -> list[dict[str, Any]]:
    """Each partition once, everything else as in base (or in the middle of its range): they are compared alike."""
    usual = usual_settings(space, PropensityConfig, base)
    if not space.partitions:
        return [usual]
    return [usual | {GROUPS: name} | ({"moves": 0} if space.moves else {}) for name in space.partitions]


def _says(data: TrialData) -> str:
    start, end = data.validation
    days = f"{start:%Y-%m-%d} to {end:%Y-%m-%d}"
    where = f"held-back days ({days})" if data.held_back else f"validation users of the days after the window ({days})"
    return (
        f"trials read {len(data.buckets)} of {data.lake.manifest.num_buckets} buckets and were validated on {where}; "
        "no test user was seen"
    )

"""What a search may vary, and the settings of what a trial draws.

    space:
      optim.lr: {low: 1e-5, high: 1e-3, log: true}
      model.group_block: [dense, hierarchical]
      model.groups: {partitions: [one, regions, taste:4, affinity:4], random: 3, moves: 3}

Of `model.groups` a trial draws a partition, the number of `moves`, and for each move a territory (`move.1`) and the one
whose group it joins (`move.1.joins`), so a move means the same whatever the groups are called.
"""

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field

from mtrec_ray.config import Config, ConfigT, assign, settings_of, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, join, write_file
from mtrec_ray.identity import flatten
from mtrec_ray.streams.groups import Groups
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.partitions import PartitionSpec, groups_document, with_moves
from mtrec_ray.workers import Workers
from mtrec_ray.yaml12 import format_yaml

Distribution = FloatDistribution | IntDistribution | CategoricalDistribution
GROUPS = "model.groups"
MAX_CHECKED = 4096  # combinations of choices that are checked before the first trial


class PartitionSpace(Config):
    """Partitions to start from, and the moves that trials may make in them."""

    partitions: list[str] = Field(min_length=1)
    """Names as in `mtrec partition show`."""
    random: int = Field(default=3, ge=0)
    """Random balanced partitions with as many groups, which a useful partition must beat."""
    moves: int = Field(default=3, ge=0)
    """Maximum number of moves in a trial, of the `MOVABLE` territories with the most discoveries."""

    def names(self, num_territories: int, num_regions: int, num_buckets: int) -> tuple[str, ...]:
        """All partitions, random ones included; UserError for those that do not fit the lake.

        Where only `taste` and `affinity` could give a number, it is not known yet: random ones have 4 groups, or fewer.
        """
        if num_territories == 1:
            raise UserError(f"space: {GROUPS} has no effect on the only territory of the lake; drop it")
        specs = [PartitionSpec.parse(name, num_territories, num_buckets) for name in self.partitions]
        numbers = [spec.num_groups or (num_regions if spec.kind == "regions" else None) for spec in specs]
        counts = {n for n in numbers if n and 1 < n < num_territories} or {max(2, min(4, num_territories - 1))}
        random = [f"random:{count}:{draw}" for count in sorted(counts) for draw in range(self.random)]
        return tuple(dict.fromkeys([*self.partitions, *random]))


@dataclass(frozen=True)
class Space:
    """A checked space; `suggest` is what Optuna calls."""

    distributions: dict[str, Distribution] = field(default_factory=dict)  # of the settings, ranges before choices
    partitions: tuple[str, ...] = ()  # starting points, random ones included; empty where partitions are not searched
    movable: tuple[str, ...] = ()  # names of the territories that may move
    moves: int = 0

    def parameters(self) -> dict[str, Distribution]:
        """Everything that a trial may draw, in the order it is drawn."""
        found = dict(self.distributions)
        if self.partitions:
            found[GROUPS] = CategoricalDistribution(self.partitions)
        if self.moves:
            found["moves"] = IntDistribution(0, self.moves)
        for number in range(1, 1 + self.moves):
            found[f"move.{number}"] = found[f"move.{number}.joins"] = CategoricalDistribution(self.movable)
        return found

    def suggest(self, trial: optuna.Trial) -> None:
        """Draw one value for every parameter (Optuna's define-by-run)."""
        for key, one in self.parameters().items():
            if key.startswith("move.") and int(key.split(".")[1]) > trial.params["moves"]:
                continue
            if isinstance(one, CategoricalDistribution):
                trial.suggest_categorical(key, one.choices)
            elif isinstance(one, IntDistribution):
                trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
            else:
                trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)


def moves_of(params: dict[str, Any]) -> list[tuple[str, str]]:
    """A trial's moves in turn: (territory, the territory whose group it joins)."""
    numbers = range(1, 1 + int(params.get("moves", 0)))
    return [(params[f"move.{n}"], params[f"move.{n}.joins"]) for n in numbers]


def parse_space(
    document: dict[str, Any], base: dict[str, Any], model: type[Config], fixed: tuple[str, ...], decided: dict[str, str]
) -> tuple[Space, PartitionSpace | None]:
    """The space of `model`'s settings, and of partitions if `model.groups` has them.

    `fixed`: keys, and sections ending in a dot, that all trials share; `decided`: keys that the search decides -> what
    decides them. UserError for a key that is unknown or one of these, an empty range, or no choices.
    """
    if not document:
        raise UserError("space is empty: name at least one key to search over, see the README for an example")
    types, found, groups = {setting.key: setting.type_name for setting in settings_of(model)}, {}, None
    for key, values in document.items():
        if key not in types:
            raise UserError(f"space: {model.__name__} has no setting {key!r}; `mtrec train ... --help` lists them")
        if key in decided:
            raise UserError(f"space: {key} has no effect: it is decided by {decided[key]}; drop it")
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in fixed):
            raise UserError(f"space: {key} must be one for all trials: set it in base")
        if key == GROUPS and isinstance(values, dict) and "partitions" in values:
            try:
                groups = validate_config(PartitionSpace, values)
            except UserError as error:
                raise UserError(f"space: {key}: {error}") from error
        else:
            found[key] = _distribution(key, types[key], values)
    given = flatten(base)
    for key, by in (decided | ({GROUPS: f"space: {GROUPS}"} if groups else {})).items():
        if given.get(key) is not None:
            raise UserError(f"base: {key} = {given[key]!r} has no effect: it is decided by {by}; drop it")
    ranges_first = sorted(found, key=lambda key: isinstance(found[key], CategoricalDistribution))
    return Space({key: found[key] for key in ranges_first}), groups


def _distribution(key: str, kind: str, values: Any) -> Distribution:
    is_number, whole = "int" in kind or "float" in kind, "float" not in kind
    if isinstance(values, list) and values:
        return CategoricalDistribution([_as_number(value) for value in values] if is_number else values)
    if not isinstance(values, dict) or not is_number:
        form = "a list of choices" if isinstance(values, dict) else "{low: ..., high: ...} or a list of choices"
        raise UserError(f"space: {key} = {values!r} ({kind}): give {form}")
    ends = {name: _as_number(value) for name, value in values.items()}
    if whole and any(isinstance(value, float) and value % 1 for value in ends.values()):
        raise UserError(f"space: {key} = {values!r}: this setting takes whole numbers")
    try:
        one = (IntDistribution if whole else FloatDistribution)(**ends)
    except (TypeError, ValueError) as error:
        raise UserError(f"space: {key} = {values!r}: {error}") from error
    if not 0 < ends["high"] - ends["low"] < math.inf:
        raise UserError(f"space: {key} = {values!r}: low must be below high, both finite")
    return one


def _as_number(value: Any) -> Any:
    """The number of a text like 1e-3, which YAML 1.1 does not read as a number."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(value, str) and number.is_integer() else number


def check_values(
    space: Space, model: type[ConfigT], base: dict[str, Any], fits: Callable[[ConfigT], object] | None = None
) -> None:
    """UserError where ends of ranges or choices make no valid config, or `fits` refuses it."""
    choices = {key: one.choices for key, one in space.distributions.items() if isinstance(one, CategoricalDistribution)}
    ranges = {key: one for key, one in space.distributions.items() if not isinstance(one, CategoricalDistribution)}
    ends = [{key: getattr(one, side) for key, one in ranges.items()} for side in ("low", "high")]
    checked: list[dict[str, Any]] = [{key: side[key]} for key in ranges for side in ends]
    for values in islice(product(*choices.values()), MAX_CHECKED):
        checked += [dict(zip(choices, values, strict=True)) | side for side in ends]
    for settings in checked:
        config = validate_config(model, lay_over(base, settings))
        if fits:
            fits(config)


def usual_settings(space: Space, model: type[Config], base: dict[str, Any]) -> dict[str, Any]:
    """Every setting of the space as in `base`, or else in the middle of its range."""
    resolved = flatten(validate_config(model, base).model_dump())
    return {key: _nearest(one, resolved.get(key)) for key, one in space.distributions.items()}


def _nearest(one: Distribution, value: Any) -> Any:
    """`value` itself, its grid point, the middle of the range, or the first choice."""
    if isinstance(one, CategoricalDistribution):
        return value if value in one.choices else one.choices[0]
    if not isinstance(value, int | float) or not one.low <= value <= one.high:
        value = (one.low * one.high) ** 0.5 if one.log else (one.low + one.high) / 2
    if isinstance(one, IntDistribution) and one.step == 1:
        return round(value)
    if one.step:
        value = min(one.low + round((value - one.low) / one.step) * one.step, one.high)
    return value if isinstance(one, IntDistribution) else float(value)


def lay_over(document: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A nested document with dotted keys set; the given one does not change."""
    result = copy.deepcopy(document)
    for key, value in settings.items():
        assign(result, key, value)
    return result


@dataclass(frozen=True)
class GroupsFiles:
    """Groups files of the partitions that trials use, named by the hash of their content."""

    folder: str
    territories: list[str]
    partitions: dict[str, Groups]  # by the name that a trial draws

    def write(self, params: dict[str, Any]) -> str:
        """URI of the file with the drawn partition after the drawn moves."""
        index = self.territories.index
        moves = [(index(territory), index(host)) for territory, host in moves_of(params)]
        groups = with_moves(self.partitions[params[GROUPS]], moves)
        text = format_yaml(groups_document(groups, self.territories)).encode()
        uri = join(self.folder, f"{hashlib.sha256(text).hexdigest()[:12]}.yaml")
        if not exists(uri):
            write_file(uri, text)
        return uri


@dataclass(frozen=True)
class TrialSpecs:
    """Makes the trial of drawn parameters. Plain data: it travels to every trial."""

    trial: Callable[..., Any]  # the trial's class
    model: type[Config]
    space: Space
    base: dict[str, Any]  # settings that all trials and the final training share
    trial_overrides: dict[str, Any]  # dotted settings of trials alone: the final training must not have them
    arguments: dict[str, Any]  # further ones of the trial's class
    groups_files: GroupsFiles | None = None

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """The document that `mtrec train ... --config` reads."""
        settings = {key: value for key, value in params.items() if key in self.space.distributions}
        if self.groups_files:
            settings[GROUPS] = self.groups_files.write(params)
        return lay_over(self.base, settings)

    def config(self, params: dict[str, Any]) -> Config:
        return validate_config(self.model, lay_over(self.settings(params), self.trial_overrides))

    def make(self, config: Config, cache: TrialCache, workers: Workers) -> Any:
        """The trial of some settings; `cache` keeps what it reads for the next one of its process."""
        return self.trial(config, cache, workers, **self.arguments)

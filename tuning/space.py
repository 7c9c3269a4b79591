"""What a search may vary: dotted keys of a job's config with ranges or choices, and partitions of the territories.

    space:
      optim.lr: {low: 1e-5, high: 1e-3, log: true}
      sample.tau: {low: 0, high: 1}
      model.group_block: [dense, shift]
      model.groups: {partitions: [one, regions, taste:4, affinity:4], random: 3, movable: 8, moves: 3}

An Optuna trial draws one value for each. `model.groups` draws a partition to start from, then how many of the largest
territories move (`moves`), and for each which one (`move.1`) and whose group it joins (`move.1.joins`): so the search
goes on from every candidate, and a move means the same whatever the groups are called.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice, product
from typing import Any

import optuna
from pydantic import Field, ValidationError, model_validator

from mtrec_ray.config import Config, ConfigT, assign, settings_of, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.tuning.partitions import PartitionSpec

GROUPS = "model.groups"
MAX_CHECKED = 4096
"""Choices together that are checked before the first trial."""


class Range(Config):
    """Numbers from `low` to `high`, both included."""

    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    """Drawn evenly on a logarithmic scale."""
    step: float | None = Field(default=None, gt=0)
    """Distance of neighbouring values; null: any."""

    @model_validator(mode="after")
    def _not_empty(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs low above 0, not {self.low:g}")
        if self.log and self.step:
            raise ValueError("log and step exclude each other")
        return self


class PartitionSpace(Config):
    """Partitions to start from, and how far the search goes on from them."""

    partitions: list[str] = Field(min_length=1)
    """Names as in `mtrec partition show`."""
    random: int = Field(default=3, ge=0)
    """Random balanced partitions with as many groups, always in the table: who does not beat them found nothing."""
    movable: int = Field(default=8, ge=0)
    """The largest so many territories may move."""
    moves: int = Field(default=3, ge=0)
    """Moves of a trial at most."""

    @model_validator(mode="after")
    def _has_where_to_move(self) -> "PartitionSpace":
        if self.movable == 1:
            raise ValueError("movable = 1: a territory joins another movable one; take 2 or more, or 0 for no moves")
        return self


@dataclass(frozen=True)
class Space:
    """A checked space; `suggest` is what Optuna calls."""

    ranges: dict[str, Range] = field(default_factory=dict)
    whole: frozenset[str] = frozenset()
    """Ranges of whole numbers."""
    choices: dict[str, list[Any]] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    """Seeds, random ones included."""
    movable: tuple[str, ...] = ()
    """The largest territories."""
    moves: int = 0

    def suggest(self, trial: optuna.Trial) -> None:
        """Draw one value for every key (Optuna's define-by-run)."""
        for key, span in self.ranges.items():
            if key in self.whole:
                trial.suggest_int(key, int(span.low), int(span.high), step=int(span.step or 1), log=span.log)
            else:
                trial.suggest_float(key, span.low, span.high, step=span.step, log=span.log)
        for key, choices in self.choices.items():
            trial.suggest_categorical(key, choices)
        if self.partitions:
            trial.suggest_categorical(GROUPS, self.partitions)
            for number in range(1, 1 + (trial.suggest_int("moves", 0, self.moves) if self.moves else 0)):
                trial.suggest_categorical(f"move.{number}", self.movable)
                trial.suggest_categorical(f"move.{number}.joins", self.movable)

    def end(self, key: str, side: str) -> float:
        """`low` or `high` of a range."""
        value = getattr(self.ranges[key], side)
        return int(value) if key in self.whole else value

    def held(self, key: str) -> Sequence[Any] | None:
        """What a key chooses from, nothing where that is not known yet; None for a key that chooses from nothing."""
        if key == GROUPS and self.partitions:
            return self.partitions
        moves = (f"move.{number}{end}" for number in range(1, 1 + self.moves) for end in ("", ".joins"))
        return self.movable if key in moves else self.choices.get(key)

    def settings(self, params: dict[str, Any]) -> dict[str, Any]:
        """Dotted keys and values of a trial, without the partition."""
        return {key: value for key, value in params.items() if key in self.ranges or key in self.choices}


def moves_of(params: dict[str, Any]) -> list[tuple[str, str]]:
    """(territory, whose group it joins) of a trial, in turn."""
    numbers = range(1, 1 + int(params.get("moves", 0)))
    return [(params[f"move.{n}"], params[f"move.{n}.joins"]) for n in numbers]


def parse_space(document: dict[str, Any], model: type[Config], fixed: Iterable[str]) -> tuple[Space, dict[str, Any]]:
    """Check the keys and ranges of a space.

    Args:
        document: key -> {low, high, ...}, list of choices, or partitions.
        model: the config that the keys belong to.
        fixed: keys, or sections ending in a dot, that trials must share.

    Returns:
        the space without its partitions, and what `model.groups` says.

    Raises:
        UserError: an unknown key, an empty range, no choices, or a key that decides what trials are measured on.
    """
    if not document:
        raise UserError("space is empty: name at least one key to search over, see the README for an example")
    types = {setting.key: setting.type_name for setting in settings_of(model)}
    ranges, choices, groups, whole = {}, {}, {}, set()
    for key, values in document.items():
        if key not in types:
            raise UserError(f"space: {model.__name__} has no setting {key!r}; `mtrec train ... --help` lists them")
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in fixed):
            raise UserError(
                f"space: {key} decides what trials are measured on and must be one for all: set it in base, or for the "
                "search"
            )
        if isinstance(values, dict) and "partitions" in values and key == GROUPS:
            groups = values
        elif isinstance(values, dict) and ("int" in types[key] or "float" in types[key]):
            ranges[key] = _checked(Range, f"space: {key}", values)
            if "int" in types[key] and "float" not in types[key]:
                whole.add(key)
                if ranges[key].low % 1 or ranges[key].high % 1 or (ranges[key].step or 1) % 1:
                    raise UserError(f"space: {key} takes whole numbers, not {values}")
        elif isinstance(values, list) and values:
            is_number = "int" in types[key] or "float" in types[key]
            choices[key] = [_meant(value) for value in values] if is_number else values
        else:
            form = "a list of choices" if isinstance(values, dict) else "{low: ..., high: ...} or a list of choices"
            raise UserError(f"space: {key} = {values!r} ({types[key]}): give {form}")
    return Space(ranges=ranges, whole=frozenset(whole), choices=choices), groups


def parse_partitions(
    groups: dict[str, Any], num_territories: int, num_regions: int
) -> tuple[PartitionSpace, tuple[str, ...]]:
    """A partition space and the names of all seeds, with the random ones that belong to each number of groups.

    How many groups `taste` and `affinity` will find is not known yet: where no other number is, they get random ones of
    4, or of one less than there are territories. UserError for a single territory.
    """
    space = _checked(PartitionSpace, f"space: {GROUPS}", groups)
    if num_territories == 1:
        raise UserError(f"space: {GROUPS} has nothing to part: the lake has one territory alone; drop it")
    specs = [PartitionSpec.parse(name, num_territories) for name in space.partitions]
    numbers = [num_regions if spec.kind == "regions" else spec.num_groups for spec in specs]
    counts = {n for n in numbers if n and 1 < n < num_territories} or {max(2, min(4, num_territories - 1))}
    random = [f"random:{count}:{draw}" for count in sorted(counts) for draw in range(space.random)]
    return space, tuple(dict.fromkeys([*space.partitions, *random]))


def checked_starts(space: Space, starts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Warm starts, their numbers as the space has them; UserError for a key or a value that it does not hold."""
    return [{key: _start(space, key, value) for key, value in start.items()} for start in starts]


def _start(space: Space, key: str, value: Any) -> Any:
    where = f"warm_start: {key} = {value!r}"
    if key in space.ranges:
        return _number(where, value, space.ranges[key], key in space.whole)
    if key == "moves" and space.moves:
        return _number(where, value, Range(low=0, high=space.moves), whole=True)
    held = space.held(key)
    if held is None:
        names = [*space.ranges, *space.choices, *([GROUPS] if space.partitions else [])]
        raise UserError(f"warm_start: {key!r} is not in space; it has {', '.join(names)}")
    if held and value not in held:
        if (number := _meant(value)) in held:
            return number
        raise UserError(f"{where} is none of {', '.join(map(str, held))}")
    return value


def _meant(value: Any) -> Any:
    """The number of a text like 1e-3, which YAML 1.1 reads as a text where it has no point; else the value."""
    try:
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        return value
    return int(number) if isinstance(value, str) and number.is_integer() else number


def _number(where: str, value: Any, span: Range, whole: bool) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is no number") from error
    step = span.step or (1.0 if whole else None)
    beside = 0.0 if step is None else (number - span.low) / step % 1
    if not span.low <= number <= span.high or 1e-8 < beside < 1 - 1e-8:
        by = f" in steps of {step:g}" if step else ""
        raise UserError(f"{where} is not in the space's {span.low:g} to {span.high:g}{by}")
    return int(number) if whole else number


def check_base(base: dict[str, Any], taken: dict[str, str]) -> None:
    """UserError where a search's base sets what the search itself decides; `taken`: dotted key -> what decides it."""
    for key, by in taken.items():
        section: Any = base
        for part in key.split("."):
            section = section.get(part) if isinstance(section, dict) else None
        if section is not None:
            raise UserError(f"base: {key} = {section!r} has no effect: it is decided by {by}; drop it")


def check_values(
    space: Space, model: type[ConfigT], base: dict[str, Any], fits: Callable[[ConfigT], object] | None = None
) -> None:
    """UserError where an end of a range, a choice, or choices together do not fit the config, or `fits` refuses it."""

    def check(settings: dict[str, Any]) -> None:
        config = validate_config(model, with_settings(base, settings))
        if fits:
            fits(config)

    ends = [{key: space.end(key, side) for key in space.ranges} for side in ("low", "high")]
    for key in space.ranges:
        for side in ends:
            check({key: side[key]})
    for values in islice(product(*space.choices.values()), MAX_CHECKED):
        for side in ends:
            check(dict(zip(space.choices, values, strict=True)) | side)


def usual_settings(space: Space, model: type[Config], base: dict[str, Any]) -> dict[str, Any]:
    """Every key of the space as in `base`, or else in the middle of its range: what is tried first."""
    resolved = validate_config(model, base).model_dump()
    return {key: _usual(space, key, resolved) for key in [*space.ranges, *space.choices]}


def _usual(space: Space, key: str, resolved: dict[str, Any]) -> Any:
    value: Any = resolved
    for part in key.split("."):
        value = value[part]
    if key in space.choices:
        return value if value in space.choices[key] else space.choices[key][0]
    span = space.ranges[key]
    if not isinstance(value, int | float) or not span.low <= value <= span.high:
        value = (span.low * span.high) ** 0.5 if span.log else (span.low + span.high) / 2
    if span.step:
        steps = min(round((value - span.low) / span.step), int((span.high - span.low) / span.step + 1e-9))
        value = min(span.low + steps * span.step, span.high)
    return round(value) if key in space.whole else float(value)


def with_settings(document: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A nested document with dotted keys set; the given one stays as it is."""
    result = copy.deepcopy(document)
    for key, value in settings.items():
        assign(result, key, value)
    return result


def _checked(model: type[Any], where: str, values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{where}: {key + ': ' if key else ''}{problem['msg'].removeprefix('Value error, ')}"
        ) from error

"""`mtrec lake init`: look at a folder of tables and write the settings that read them.

The file is for `mtrec lake build parquet` and `mtrec quickstart parquet` alike. What was guessed and may be wrong is
said on the terminal and as a comment beside the setting.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pandas as pd
from rich.console import RenderableType

from mtrec_ray.config import Config, validate_config
from mtrec_ray.console import ProgressCallback, facts_table
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, exists, write_file
from mtrec_ray.sources.calendar import DayCounts
from mtrec_ray.sources.guess import Guess, find_tables, guess_attributes, guess_columns, guess_roles, guess_unit
from mtrec_ray.sources.parquet import AMBIGUOUS, ParquetConfig, ParquetSource
from mtrec_ray.sources.source import SourceFacts
from mtrec_ray.sources.values import MISSING
from mtrec_ray.yaml12 import format_yaml

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WITHOUT_ATTRIBUTES = "without sensitive attributes there is no audit and no bundle to serve"
LENGTHS = (1, 7, 28, 84, 168)  # days of an evaluation day that are tried
MIN_FRACTION, MIN_EVENTS = 0.02, 1_000  # of events on the evaluation days, and their number, for figures to mean much
HEAD = """# Made by `mtrec lake init`. Read the comments, correct what is wrong, then:
#   mtrec lake build parquet --config {out} --out LAKE      the lake alone
#   mtrec quickstart parquet --config {out}                 the whole way: models, audit, bundle, report
"""


class InitConfig(Config):
    """What to look at, and where to write the settings."""

    raw: str
    """Folder or URI of Parquet and CSV files."""
    out: str = "lake.yaml"
    """File or URI to write."""
    overwrite: bool = False
    """Replace an existing file."""


@dataclass(frozen=True)
class Settings:
    """The settings to write; `doubts` by key, all of them told."""

    source: dict[str, Any] = field(default_factory=dict)
    doubts: dict[str, list[str]] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)  # what was found, for the terminal

    def doubt(self, key: str, *lines: str) -> None:
        """Add what is unsure of a setting; nothing without lines."""
        if lines:
            self.doubts.setdefault(key, []).extend(lines)


@dataclass(frozen=True)
class InitResult:
    """A `JobResult`: the file and what is unsure."""

    out: str
    settings: Settings

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a doubt: setting, doubt."""
        rows = [(key, line) for key, lines in self.settings.doubts.items() for line in lines]
        return pd.DataFrame(rows, columns=["setting", "doubt"])

    def document(self) -> dict[str, Any]:
        return {"version": 1, "file": self.out, "source": self.settings.source, "doubts": self.settings.doubts}

    def tables(self) -> list[RenderableType]:
        doubts = [f"  {key}: {line}" for key, lines in self.settings.doubts.items() for line in lines]
        told = ["Please check:", *doubts] if doubts else ["Nothing is in doubt."]
        following = f"Next: mtrec quickstart parquet --config {self.out}"
        return [facts_table(f"Written: {self.out}", self.settings.facts), "\n".join([*told, following])]


def init_lake(config: InitConfig, progress: ProgressCallback | None = None) -> InitResult:
    """Write the settings of a folder's tables.

    UserError where there is no table of events, or a guess that does not read the files.
    """
    settings = guess_settings(config.raw)
    if exists(config.out) and not config.overwrite:
        raise UserError(f"{config.out!r} exists: choose another --out, or add --overwrite to replace it")
    source = ParquetSource(validate_config(ParquetConfig, settings.source), config.raw)
    choose_evaluation_days(settings, source.day_counts)
    facts = ParquetSource(validate_config(ParquetConfig, settings.source), config.raw).facts  # reads all times
    describe(settings, facts)
    write_file(absolute(config.out), file_text(config, settings).encode())
    return InitResult(config.out, settings)


def guess_settings(raw: str) -> Settings:
    """Tables, columns, units and attributes."""
    guesses, settings = guess_roles(find_tables(raw)), Settings()
    for role, guess in guesses.items():
        settings.source[role] = guess.table.location
        settings.doubt(role, *guess.doubts)
        settings.facts[role] = f"{guess.table.location}: {', '.join(guess.table.columns)}"
    events = guesses["events"]
    guess_territory(settings, guesses)
    for role, guess in guesses.items():
        renamed = {name: own for name, own in guess.columns.items() if name != own}
        if renamed:
            key = f"{role[:-1]}_columns"
            settings.source[key] = renamed | settings.source.get(key, {})
    unit, seen = guess_unit(events.table.sample[events.columns["timestamp"]])
    if unit:
        settings.source["timestamp_unit"] = unit
        settings.doubt("timestamp_unit", f"from {seen}")
    add_attributes(settings, guesses.get("users"))
    for role in ("users", "titles"):
        if role not in guesses:
            settings.doubt(role, f"no table of {role} was found: they are read from the events")
    if rated := [name for name in events.table.columns if re.search("rating|score|stars", name.lower())]:
        settings.doubt("events", f"column {rated[0]!r} is not read: every row counts as watched; filter rows before")
    return settings


def guess_territory(settings: Settings, guesses: dict[str, Guess]) -> None:
    """Where users' territories stand: in their own table, else in the events, else nowhere."""
    if "users" in guesses:
        if "territory" not in guesses["users"].columns:
            settings.source["one_territory"] = "all"
            settings.doubt("one_territory", "no column of the users says a territory: all are in one")
        return
    from_events = {name: own for name, own in guess_columns(guesses["events"].table).items() if name == "territory"}
    if from_events:
        settings.source["user_columns"] = from_events
        settings.doubt("user_columns", "the first event of a user says its territory")
    else:
        settings.source["one_territory"] = "all"
        settings.doubt("one_territory", "no column says a territory: all users are in one")


def add_attributes(settings: Settings, users: Guess | None) -> None:
    """Sensitive attributes of the users' table, with the values seen as a comment."""
    if users is None:
        settings.doubt("attributes", f"there is no table of users to look for them in: {WITHOUT_ATTRIBUTES}")
        return
    before = len(users.doubts)
    found = guess_attributes(users)
    if not found:
        settings.doubt("attributes", f"no column of the users looks like one: {WITHOUT_ATTRIBUTES}")
    settings.source["attributes"] = dict.fromkeys(found)
    for name, values in found.items():
        settings.facts[f"attribute {name}"] = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
    settings.doubt("attributes", *users.doubts[before:])
    missing = sorted({value for values in found.values() for value in values} & AMBIGUOUS)
    if missing:
        settings.source["missing"] = [*MISSING, *missing]
        settings.doubt("missing", f"{', '.join(missing)} is taken for a missing value")


def choose_evaluation_days(settings: Settings, days: DayCounts) -> None:
    """Evaluation days long enough to hold events; none without an order of time."""
    found = days.believable()
    if not found or not days.ordered():
        settings.source["num_evaluation_days"] = 0
        settings.doubt("num_evaluation_days", "all events carry one time: nothing can be held back by time")
        return
    counts = days.counts[(found[0] - EPOCH).days : (found[1] - EPOCH).days]
    wanted = min(counts.sum() / 3, max(MIN_EVENTS, MIN_FRACTION * counts.sum()))
    fitting = [length for length in LENGTHS if 6 * length < len(counts)]
    if not fitting:
        settings.source["num_evaluation_days"] = max(0, min(3, len(counts) - 1))
        settings.doubt("num_evaluation_days", f"the events span {len(counts)} days only")
        return
    length = next((one for one in fitting if counts[-3 * one :].sum() >= wanted), fitting[-1])
    settings.source["evaluation_day_length"] = length
    held = int(counts[-3 * length :].sum())
    if length > 1:
        settings.doubt("evaluation_day_length", f"single days have few events; three of {length} days have {held:,}")
    if held < MIN_EVENTS:
        settings.doubt("evaluation_day_length", f"{held:,} events are few to evaluate on: intervals will be wide")


def describe(settings: Settings, facts: SourceFacts) -> None:
    """What the whole data says, beyond the first rows."""
    calendar = facts.calendar
    settings.facts["territories"] = _some([territory.name for territory in facts.territories])
    settings.facts["training window"] = f"{calendar.window_start:%Y-%m-%d} to {calendar.window_end:%Y-%m-%d}"
    settings.facts["evaluation"] = f"{calendar.num_evaluation_days} x {calendar.day_s // 86_400} days"


def file_text(config: InitConfig, settings: Settings) -> str:
    """The YAML file, each doubt as a comment above its setting."""
    lines = [HEAD.format(out=config.out) + format_yaml({"dataset": "parquet", "raw": absolute(config.raw)}) + "source:"]
    for key in [*settings.source, *(key for key in settings.doubts if key not in settings.source)]:
        lines += [f"  # {line}" for line in settings.doubts.get(key, [])]
        if key in settings.source:
            lines += [f"  {line}" for line in format_yaml({key: settings.source[key]}).splitlines()]
    return "\n".join(lines) + "\n"


def _some(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")

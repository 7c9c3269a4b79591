"""Paper B's data, CIKM Cup 2019 and AliEC, as its authors' ReChorus files: one tab-separated line an event.

    user_id item_id behavior time gender old power [neg_items]

* Attributes: `gender`, `age` (from `old`) and `power`, those of all of a user's rows together. 0 and empty = unknown.
* There is no territory: all users are in one, `all`.
* A row that repeats one of an earlier file is no further event: train.csv may hold dev and test rows too. Events of one
  moment keep the order of train, dev, test and of their lines, so leave-one-out by time finds the authors' test rows
  last.
* The window is all the data: leave-one-out takes each user's last two events, and no date splits them from the rest.
* `neg_items`, 99 fixed negatives of a dev or test row, are not read. The lake's `candidates` hold one list a user, the
  positives in it, that a propensity model ranks on evaluation days; these are two lists a user (dev and test), without
  positives, for a protocol that draws its own negatives and ranks the whole catalogue too.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions at run time

from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import Calendar, Territory, proposed_calendar
from mtrec_ray.sources.epochs import timestamps_from_epoch
from mtrec_ray.sources.rechorus_attributes import Attribute, age, gender, power
from mtrec_ray.sources.rechorus_files import Piece, cut, find_files
from mtrec_ray.sources.rechorus_scan import Scan, scan_files, to_seconds, unpacked
from mtrec_ray.sources.source import Part, Source, SourceFacts, map_columns, raw_folder

TERRITORY = "all"
DAY_S = 86_400
USERS_PER_PART = 65_536


class ReChorusConfig(Config):
    """How ReChorus files become a lake."""

    files: list[str] | None = Field(default=None, min_length=1)
    """Files to read, in the order of time; null = train.csv, dev.csv (val.csv, valid.csv) and test.csv, or without a
    train.csv every *.csv that has the columns."""
    columns: dict[str, str] = {}
    """Name -> yours, for user_id, item_id, time, behavior, gender, old, power; others keep theirs."""
    attributes: list[Literal["gender", "age", "power"]] = ["gender", "age", "power"]
    """Sensitive attributes that are read, in order; by default gender, age and power."""
    gender_values: list[str] = Field(default=["male", "female"], min_length=2, max_length=2)
    """Names of gender 1 and 2; by default male and female, as Alibaba numbers them in AliEC."""
    age_bands: Literal["movielens", "decades", "levels"] = "movielens"
    """movielens: years in the seven bands of MovieLens 1M. decades: in the five of paper B's code, under 10 and over 59
    unknown. levels: no years, but levels 1 to 9."""
    behaviors: list[str] | None = Field(default=None, min_length=1)
    """Behaviours whose rows are events; null = every row is one."""
    day_length_days: int = Field(default=1, ge=1)
    """Length of one evaluation day in days."""
    num_evaluation_days: int = Field(default=0, ge=0)
    """Evaluation days at the end of the data, for propensity models; 0 = the window is all the data, as leave-one-out
    needs none."""
    bytes_per_part: int = Field(default=33_554_432, ge=1)
    """Bytes of a file that a worker reads at a time."""

    @model_validator(mode="after")
    def _check(self) -> "ReChorusConfig":
        for name in ("attributes", "gender_values", "behaviors", "files"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values} names a value twice")
        for name, attribute in (("gender_values", "gender"), ("age_bands", "age")):
            if attribute not in self.attributes and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect: {attribute!r} is not among the attributes")
        return self


class ReChorusSource(Source):
    """Reads ReChorus files from `raw`."""

    def __init__(self, config: ReChorusConfig, raw: str | None):
        self.config = config
        folder = raw_folder("rechorus", raw)
        self.attributes = [self._attribute(name) for name in config.attributes]
        needed, optional = self._columns()
        self.paths, self.left_out = find_files(folder, config.files, list(needed.values()))
        self.files = [cut(path, needed, optional, config.bytes_per_part) for path in self.paths]

    def __getstate__(self) -> dict:
        """Workers get the paths and facts; what they need of the scan travels with each part."""
        return {name: value for name, value in self.__dict__.items() if name != "scan"}

    @cached_property
    def scan(self) -> Scan:
        return scan_files(self.files, self.attributes, self.config.behaviors)

    @cached_property
    def facts(self) -> SourceFacts:
        calendar = self._calendar()
        self._refuse_levels_as_years()
        return SourceFacts(
            name="rechorus",
            territories=(Territory(name=TERRITORY, region=TERRITORY),),
            attributes={attribute.name: attribute.values for attribute in self.attributes},
            calendar=calendar,
            num_users=self.scan.users.num_rows,
            notes=self._notes(),
        )

    def titles(self) -> pa.Table:
        """ReChorus says nothing about titles but their ids."""
        ids = sorted(self.scan.title_ids)
        unknown = pa.nulls(len(ids), pa.string())
        return pa.table(
            {
                "title_id": pa.array(ids, pa.string()),
                "name": unknown,
                "genres": unknown,
                "synopsis": unknown,
                "territories": pa.array([[]] * len(ids), pa.list_(pa.string())),
            }
        )

    def user_parts(self) -> list[Part]:
        users = self.scan.users
        parts = np.split(np.arange(users.num_rows), range(USERS_PER_PART, users.num_rows, USERS_PER_PART))
        return [partial(_name_users, users.take(pa.array(rows)), tuple(self.attributes)) for rows in parts]

    def event_parts(self) -> list[Part]:
        pieces = [piece for pieces in self.files for piece in pieces]
        return [partial(_read_events, piece, kept) for piece, kept in zip(pieces, self.scan.kept_rows, strict=True)]

    def _attribute(self, name: str) -> Attribute:
        if name == "age":
            return age(self.config.age_bands)
        return gender(self.config.gender_values) if name == "gender" else power()

    def _columns(self) -> tuple[dict[str, str], dict[str, str]]:
        """(needed, optional) names -> the files'."""
        needed = ["user_id", "item_id", "time", *(attribute.column for attribute in self.attributes)]
        optional = ["behavior"]
        if self.config.behaviors:
            needed, optional = needed + optional, []
        return map_columns("columns", self.config.columns, needed, optional)

    def _calendar(self) -> Calendar:
        found, config = self.scan, self.config
        if found.first_s > found.last_s:
            raise UserError(f"{self.paths[0]}: no event has a believable time: `time` should be in seconds since 1970")
        first, last = (datetime.fromtimestamp(seconds, UTC) for seconds in (found.first_s, found.last_s))
        day_s, num_days = config.day_length_days * DAY_S, config.num_evaluation_days
        return proposed_calendar(first, last, day_s, num_days, fix="choose fewer num_evaluation_days")

    def _refuse_levels_as_years(self) -> None:
        if "age" not in self.config.attributes or self.config.age_bands == "levels":
            return
        highest = pc.max(self.scan.users["age_high"]).as_py()
        if highest is None or (highest == 0 and self.config.age_bands == "movielens"):
            raise UserError(
                f"no user of {self.paths[0].parent} is known to be {'10' if highest is None else '18'} or older: if "
                "`old` holds levels, set age_bands=levels; if it is unknown, leave age out of attributes"
            )

    def _notes(self) -> tuple[str, ...]:
        found, names = self.scan, {a.name: a for a in self.attributes}
        notes = [
            f"files read: {', '.join(path.name for path in self.paths)}; CSV files left out: "
            f"{', '.join(path.name for path in self.left_out) or 'none'}",
            f"no territory exists: all users are in one, {TERRITORY!r}",
            f"{found.num_repeated:,} rows that repeat one of an earlier file were left out",
        ]
        if any("neg_items" in pieces[0].header for pieces in self.files):
            notes.append("the fixed negatives (neg_items) are not read: evaluation draws its own")
        if not self.config.num_evaluation_days:
            notes.append("the window is all the data: leave-one-out takes each user's last two events")
        if "gender" in names:
            notes.append("gender: {} = 1, {} = 2".format(*self.config.gender_values))
        if found.behaviors:
            kept = self.config.behaviors or found.behaviors
            counts = [f"{n} {c:,}{'' if n in kept else ' (left out)'}" for n, c in found.behaviors.most_common(12)]
            notes.append(f"rows by behaviour: {', '.join(counts)}")
        return tuple(notes)


def _name_users(users: pa.Table, attributes: tuple[Attribute, ...]) -> pa.Table:
    columns = {"user_id": users["user_id"], "territory": pa.array([TERRITORY] * users.num_rows, pa.string())}
    for attribute in attributes:
        columns[attribute.name] = pa.array(attribute.values, pa.string()).take(users[f"{attribute.name}_low"])
    return pa.table(columns)


def _read_events(piece: Piece, kept_rows: np.ndarray | None) -> pa.Table:
    rows = piece.read(["user_id", "item_id", "time"])
    seconds = to_seconds(rows["time"], piece)
    events = pa.table(
        {
            "user_id": rows["user_id"],
            "title_id": rows["item_id"],
            "timestamp": timestamps_from_epoch(seconds, "s"),
        }
    )
    return events.filter(pa.array(unpacked(kept_rows, rows.num_rows)))

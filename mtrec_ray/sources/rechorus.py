"""Paper B's data, CIKM Cup 2019 and AliEC, as its authors' ReChorus files.

    user_id item_id behavior time gender old power [neg_items]

One tab-separated CSV per split, beside others (`item_meta.csv`, `trainc.csv`: Wang et al., THUwangcy/ReChorus).

* Attributes: `gender` (1 male, 2 female: Alibaba's numbering in AliEC), `age` (from `old`) and `power`, taken from all
  rows of a user. There is no territory: all users are in one, `all`.
* A row that repeats one of an earlier file is no further event: train.csv may hold dev and test rows too. Events with
  one timestamp keep the order of train, dev, test and of their lines, so that the authors' test rows come last.
* `neg_items`, 99 fixed negatives of a dev or test row, are not read: evaluation draws its own.
"""

# pyright: reportAttributeAccessIssue=false

from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S, UNORDERED, Calendar, Territory, propose_calendar, timestamps_from_epoch
from mtrec_ray.sources.rechorus_scan import IDS, AttributeColumn, attribute_column, scan_files
from mtrec_ray.sources.source import Part, RawFile, Source, SourceFacts, pick_columns, raw_folder
from mtrec_ray.sources.text import BYTES_PER_PIECE, UTF8, AsciiEncoding, TextFile, find_file, read_header

USUAL_NAMES = ("train.csv", "dev.csv", "val.csv", "valid.csv", "test.csv")
"""Splits in the order of time: of rows with one timestamp, those of the later file come later."""
TERRITORY = "all"
NUM_BEHAVIORS_SHOWN = 12


class ReChorusConfig(Config):
    """How ReChorus files become a lake: plain or gzip; 7, 7.0 and "7" are one id."""

    files: list[str] | None = Field(default=None, min_length=1)
    """Files to read, in the order of time; null = train.csv, dev.csv (val.csv, valid.csv) and test.csv, or without a
    train.csv every *.csv that has the columns."""
    columns: dict[str, str] = {}
    """Canonical -> your name of user_id, item_id, time, behavior, gender, old, power."""
    attributes: list[Literal["gender", "age", "power"]] = ["gender", "age", "power"]
    """Sensitive attributes to read, in order."""
    age_bands: Literal["movielens", "decades", "levels"] = "movielens"
    """movielens: years in the seven bands of MovieLens 1M. decades: in the five of Wu et al. 2022, under 10 and over 59
    unknown. levels: `old` holds levels 1 to 9."""
    behaviors: list[str] | None = Field(default=None, min_length=1)
    """Behaviours whose rows are events; null = all."""
    encoding: AsciiEncoding = advanced(None)
    """Encoding of the files; null = UTF-8, and a file that is none is refused."""
    num_evaluation_days: int = Field(default=0, ge=0)
    """Evaluation days at the end of the data, for propensity models; 0 = the window is all the data, for
    leave-one-out."""

    @model_validator(mode="after")
    def _consistent(self) -> "ReChorusConfig":
        for name in ("attributes", "behaviors", "files"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values} names a value twice")
        if "age" not in self.attributes and self.age_bands != "movielens":
            raise ValueError("age_bands has no effect: 'age' is not among the attributes")
        return self


class ReChorusSource(Source):
    """Reads ReChorus files from `raw`."""

    def __init__(self, config: ReChorusConfig, raw: str | None):
        self.config = config
        folder = raw_folder("rechorus", raw)
        self.attributes = [attribute_column(name, config.age_bands) for name in config.attributes]
        required = ["user_id", "item_id", "time", *(attribute.column for attribute in self.attributes)]
        required += ["behavior"] * bool(config.behaviors)
        raw_names = {config.columns.get(name, name) for name in required}
        self.paths, self.left_out = find_files(folder, config.files, raw_names)
        self.files = [cut_pieces(path, config.columns, required, config.encoding or UTF8) for path in self.paths]
        self.scan = scan_files(self.files, self.attributes, config.behaviors)

    def __getstate__(self) -> dict:
        """Workers get the paths and facts; what they need of the scan is in each part."""
        return {name: value for name, value in self.__dict__.items() if name != "scan"}

    @cached_property
    def facts(self) -> SourceFacts:
        calendar, scan = self._calendar(), self.scan
        if not scan.users.num_rows:
            raise UserError(f"{self.paths[0]}: user_id is missing in every row: name its column with `columns`")
        self._check_ages()
        left_out = {"rows that repeat one of an earlier file": scan.num_repeated, "other behaviours": scan.num_others}
        return SourceFacts(
            source="rechorus",
            territories=[Territory(name=TERRITORY, region=TERRITORY)],
            attributes={attribute.name: attribute.values for attribute in self.attributes},
            calendar=calendar,
            event_days=scan.event_days,
            num_users=scan.users.num_rows,
            raw_files=[
                RawFile(table="events", path=path.name, rows=count)
                for path, count in zip(self.paths, scan.num_rows, strict=True)
            ],
            left_out={reason: count for reason, count in left_out.items() if count},
            notes=self._notes(),
        )

    def titles(self) -> pa.Table:
        """Only the ids of titles are known."""
        return pa.table({"title_id": sorted(self.scan.title_ids)})

    def parts(self, table: str) -> list[Part]:
        if table == "events":
            masks = zip(chain(*self.files), self.scan.event_masks, strict=True)
            return [partial(_read_events, piece, mask) for piece, mask in masks]
        return [partial(_name_users, self.scan.users, self.attributes)] * (table == "users")

    def _calendar(self) -> Calendar:
        if not self.scan.event_days:
            raise UserError(f"{self.paths[0]}: no event has a valid time: `time` should be in seconds since 1970")
        num_days, fix = self.config.num_evaluation_days, "choose fewer num_evaluation_days"
        return propose_calendar(self.scan.event_days, DAY_S, num_days, fix, ordered=self.scan.ordered)

    def _check_ages(self) -> None:
        """UserError where `old` seems to hold levels but is read as years."""
        if "age" not in self.config.attributes or self.config.age_bands == "levels":
            return
        highest = pc.max(self.scan.users["age"]).as_py()
        if highest is None or (highest == 0 and self.config.age_bands == "movielens"):
            raise UserError(
                f"no user of {self.paths[0].parent} is known to be {'10' if highest is None else '18'} or older: if "
                "`old` holds levels, set age_bands=levels; if it is unknown, leave age out of attributes"
            )

    def _notes(self) -> list[str]:
        scan, config = self.scan, self.config
        left_out = ", ".join(path.name for path in self.left_out) or "none"
        notes = [
            f"files read: {', '.join(path.name for path in self.paths)}; CSV files left out: {left_out}",
            f"no territory exists: all users are in one, {TERRITORY!r}",
            f"{scan.num_repeated:,} rows that repeat one of an earlier file were left out",
        ]
        if any("neg_items" in pieces[0].header for pieces in self.files):
            notes.append("the fixed negatives (neg_items) are not read: evaluation draws its own")
        if not config.num_evaluation_days:
            notes.append("the window is all the data: leave-one-out takes each user's last two events")
        notes += [UNORDERED] * (not scan.ordered)
        if scan.behaviors:
            read = config.behaviors or scan.behaviors
            counts = [
                f"{name} {count:,}{'' if name in read else ' (left out)'}"
                for name, count in scan.behaviors.most_common(NUM_BEHAVIORS_SHOWN)
            ]
            notes.append(f"rows by behaviour: {', '.join(counts)}")
        return notes


def find_files(folder: Path, names: list[str] | None, required: set[str]) -> tuple[list[Path], list[Path]]:
    """(files to read in the order of time, CSV files left out), by `ReChorusConfig.files`."""
    found = [path for path in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")]) if path.is_file()]
    if names is not None:
        chosen = [find_file(folder, name) or folder / name for name in names]
        missing = [path for path in chosen if not path.is_file()]
        if missing:
            listed = ", ".join(path.name for path in found) or "no CSV files"
            raise UserError(f"{missing[0]} is missing: `files` names it; there are {listed}")
    elif not found:
        raise UserError(f"no *.csv in {str(folder)!r}: it should hold train.csv, dev.csv and test.csv, unpacked")
    elif find_file(folder, "train.csv"):
        chosen = [path for name in USUAL_NAMES if (path := find_file(folder, name))]
    else:
        fitting = [path for path in found if required <= set(read_header(path)[0])]
        chosen = sorted(fitting or found, key=_split_order)
    return chosen, [path for path in found if path not in chosen]


def cut_pieces(path: Path, mapping: dict[str, str], required: list[str], encoding: str = UTF8) -> list[TextFile]:
    """Pieces of about `BYTES_PER_PIECE`; `mapping` is canonical -> raw names of columns."""
    header, start = read_header(path, encoding=encoding)
    if len(header) == 1:
        raise UserError(f"{path}, line 1: the only column is {header[0]!r}: the file should be tab separated")
    columns = pick_columns(f"{path}, line 1", header, "columns", mapping, required, ["behavior"])
    return TextFile(path, header, columns, encoding=encoding, quoted=True, start=start).pieces(BYTES_PER_PIECE)


def _split_order(path: Path) -> tuple[int, str]:
    """Training rows, then validation, then test, by the names of the files."""
    is_test, is_validation = "test" in path.stem, any(word in path.stem for word in ("dev", "val"))
    return (2 if is_test else 1 if is_validation else 0), path.name


def _name_users(users: pa.Table, attributes: list[AttributeColumn]) -> pa.Table:
    columns = {"user_id": users["user_id"], "territory": pa.array([TERRITORY] * users.num_rows, pa.string())}
    for attribute in attributes:
        columns[attribute.name] = pa.array(attribute.values, pa.string()).take(users[attribute.name])
    return pa.table(columns)


def _read_events(piece: TextFile, mask: np.ndarray) -> pa.Table:
    rows = piece.read(["user_id", "item_id", "time"], ids=IDS)
    times = timestamps_from_epoch(piece.numbers(rows, "time", whole=False), "s")
    events = pa.table({"user_id": rows["user_id"], "title_id": rows["item_id"], "timestamp": times})
    return events.filter(pa.array(mask))

"""Guesses what a folder of Parquet and CSV files holds, for `mtrec lake init`.

1. `find_tables`: files with the same columns are one table
2. `guess_roles`: which table has events, users, titles, by the columns it has
3. `guess_columns`: which column is what, by its name and values
"""

# pyright: reportAttributeAccessIssue=false

import posixpath
import re
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from mtrec_ray.errors import UserError
from mtrec_ray.files import resolve
from mtrec_ray.sources.chunks import list_chunks
from mtrec_ray.sources.tables import HIDDEN, TableFiles, delimiter_of, has_known_ending

SAMPLE_ROWS = 20_000
MAX_VALUES = 30  # of a column that may be an attribute
NAMES = {  # canonical name -> names that people give the column, as patterns; the first match of a table counts
    "user_id": r"(user|customer|member|profile|account|viewer|visitor|client|subscriber)[_ ]?(id|key|no)?|uid|userid",
    "title_id": r"(title|item|movie|film|video|show|product|content|asset|track|song|programme?|article)[_ ]?(id|key)"
    r"|asin|tconst|itemid|movieid|item|sku",
    "timestamp": r"timestamp|time|ts|date|datetime|day|(event|watch|view|play|start|review)[_ ]?(time|date|ts)|.*_at"
    r"|unix.*time|.*time(stamp)?",
    "territory": r"territory|country([_ ]?code)?|market|locale|region|state|geo|nation",
    "name": r"name|title|title[_ ]?name|(movie|item|product)[_ ]?(title|name)",
    "genres": r"genres?|categor(y|ies)|tags?",
    "synopsis": r"synopsis|description|overview|plot|summary",
    "territories": r"territories|countries|markets|available[_ ]?in",
}
OF_TABLE = {
    "events": ("user_id", "title_id", "timestamp"),
    "users": ("user_id", "territory"),
    "titles": ("title_id", "name", "genres", "synopsis", "territories"),
}
ATTRIBUTE = (
    r"gender|sex|age([_ ]?(band|group|range|bracket))?|occupation|job|profession|education|income|ethnicity|race"
    r"|religion|marital.*|language|birth.*"
)
UNITS = (("s", 1e8, 1e11), ("ms", 1e11, 1e14), ("us", 1e14, 1e17), ("ns", 1e17, 1e20))


@dataclass(frozen=True)
class FoundTable:
    """Files with the same columns, and their first rows."""

    location: str  # as `source.events` names it, relative to the raw folder
    paths: list[str]
    sample: pa.Table

    @property
    def columns(self) -> list[str]:
        return self.sample.column_names


@dataclass
class Guess:
    """What a table is taken for, and what is in doubt."""

    table: FoundTable
    columns: dict[str, str] = field(default_factory=dict)  # canonical -> your name
    doubts: list[str] = field(default_factory=list)


def find_tables(raw: str) -> list[FoundTable]:
    """All tables below a folder or URI; UserError where there is no readable file."""
    fs, root = resolve(raw)
    try:
        found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise UserError(f"{raw!r} cannot be listed ({' '.join(str(error).split())[:200]}): check the path") from error
    files = sorted(
        one.path
        for one in found
        if one.is_file
        and has_known_ending(one.path)
        and not any(part.startswith(HIDDEN) for part in one.path[len(root) + 1 :].split("/"))
    )
    if not files:
        raise UserError(f"{raw!r} holds no Parquet or CSV file (.parquet, .csv, .tsv, also .gz): name their folder")
    groups: dict[tuple[tuple[str, ...], str | None], list[str]] = defaultdict(list)
    for path in files:
        columns = tuple(list_chunks(TableFiles(raw, root), path, SAMPLE_ROWS)[0].names)
        groups[columns, delimiter_of(path)].append(path)
    return [FoundTable(_location(root, paths, files), paths, _sample(raw, root, paths)) for paths in groups.values()]


def _sample(raw: str, root: str, paths: list[str]) -> pa.Table:
    """The first rows of the first and the last file."""
    parts = []
    for path in dict.fromkeys((paths[0], paths[-1])):
        chunk, rows = list_chunks(TableFiles(raw, root), path, SAMPLE_ROWS)[0], 0
        for piece in chunk.read(chunk.names):
            parts.append(piece.select(chunk.names).slice(0, SAMPLE_ROWS - rows))
            rows += len(parts[-1])
            if rows >= SAMPLE_ROWS:
                break
    return pa.concat_tables(parts, promote_options="permissive")


def _location(root: str, paths: list[str], files: list[str]) -> str:
    """A file, folder or glob below `root` that names these files alone."""
    inside = [path[len(root) + 1 :] for path in paths]
    if len(inside) == 1:
        return inside[0]
    folder = posixpath.commonpath(inside)
    below = [path for path in files if path[len(root) + 1 :].startswith(f"{folder}/")] if folder else files
    if folder and below == paths:
        return folder
    names = [posixpath.basename(path) for path in inside]
    start = posixpath.commonprefix(names)
    end = posixpath.commonprefix([name[::-1] for name in names])[::-1]
    same_folder = len({posixpath.dirname(path) for path in inside}) == 1
    glob = posixpath.join(folder, *([] if same_folder else ["**"]), f"{start}*{end[-min(len(end), 20) :]}")
    others = [path for path in files if path not in paths and fnmatchcase(path[len(root) + 1 :], glob)]
    if others:
        raise UserError(
            f"{inside[0]} and {len(inside) - 1} other files have the same columns, but no pattern that "
            f"{others[0][len(root) + 1 :]} does not match too: put each table into a folder of its own"
        )
    return glob


def guess_roles(tables: list[FoundTable]) -> dict[str, Guess]:
    """The tables of events, users and titles; UserError where none has events.

    Events have a user, a title and a time; users a user and no title, titles a title and no user. Of several the one
    with most rows is taken, and the others are named as doubts.
    """
    columns = {id(table): guess_columns(table) for table in tables}
    candidates: dict[str, list[FoundTable]] = {"events": [], "users": [], "titles": []}
    for table in tables:
        has = columns[id(table)]
        if {"user_id", "title_id"} <= has.keys():
            candidates["events"].append(table)
        elif "user_id" in has:
            candidates["users"].append(table)
        elif "title_id" in has:
            candidates["titles"].append(table)
    timed = [table for table in candidates["events"] if "timestamp" in columns[id(table)]]
    if not timed:
        seen = "; ".join(f"{table.location}: {', '.join(table.columns)}" for table in tables[:6])
        lacking = "a time" if candidates["events"] else "a user, a title and a time"
        fix = "rename the columns user_id, title_id, timestamp"
        raise UserError(f"no table has {lacking} for each event ({seen}): {fix}")
    candidates["events"] = timed
    guesses = {}
    for role, found in candidates.items():
        if found:
            best = max(found, key=lambda table: (len(table.paths), table.sample.num_rows))
            own = {name: raw for name, raw in columns[id(best)].items() if name in OF_TABLE[role]}
            guesses[role] = Guess(best, own)
            if others := [table.location for table in found if table is not best]:
                guesses[role].doubts.append(f"{role} may also be in {', '.join(others)}")
    return guesses


def guess_columns(table: FoundTable) -> dict[str, str]:
    """Canonical -> your name of each column that its name gives away."""
    found: dict[str, str] = {}
    for name, pattern in NAMES.items():
        for raw in table.columns:
            if raw not in found.values() and (raw.lower() == name or re.fullmatch(pattern, raw.lower())):
                found[name] = raw
                break
    return found


def guess_unit(column: pa.ChunkedArray) -> tuple[str | None, str]:
    """Unit of numbers since 1970, None for texts and timestamps; and what it was guessed from.

    UserError for numbers that are no time, such as 20190131.
    """
    known = column.drop_null()
    if pa.types.is_temporal(column.type) or not len(known):
        return None, str(column.type)
    texts = pc.cast(known, pa.string())
    if not pc.all(pc.match_substring_regex(texts, r"^\s*-?\d+(\.\d*)?([eE]\+?\d+)?\s*$")).as_py():
        return None, f"texts such as {texts[0].as_py()!r}"
    largest = float(pc.max(pc.cast(pc.utf8_trim_whitespace(texts), pa.float64())).as_py())
    for unit, low, high in UNITS:
        if low <= largest < high:
            return unit, f"numbers up to {largest:.0f}"
    raise UserError(f"times such as {texts[0].as_py()} are neither epoch numbers nor dates: write them as 2019-01-31")


def guess_attributes(guess: Guess) -> dict[str, list[str]]:
    """Columns of few values that may be sensitive -> those seen; others go into `doubts`."""
    found, used = {}, set(guess.columns.values())
    for raw in guess.table.columns:
        if raw in used:
            continue
        values = pc.unique(pc.cast(guess.table.sample[raw], pa.string()).drop_null()).to_pylist()
        values = sorted({value.strip() for value in values} - {""})
        telling = re.fullmatch(ATTRIBUTE, raw.lower())
        if 2 <= len(values) <= MAX_VALUES:
            found[raw] = values
            if not telling:
                guess.doubts.append(f"column {raw!r} ({', '.join(values[:4])}, ...) may be no sensitive attribute")
        elif telling and len(values) > MAX_VALUES:
            guess.doubts.append(
                f"column {raw!r} has {len(values)} values, too many to hide: write bands, such as 18-24, into a column"
            )
    return found

"""MovieLens 100K and 1M (Harper and Konstan 2015) as one source.

Territory = postal region: `zip-` and the first digit of the zip code, `zip-other` for anything else (Canada, abroad).
A rating is a streaming event. The evaluation days are the last `num_evaluation_days` spans of `day_length_days`.
"""

# pyright: reportAttributeAccessIssue=false

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config, advanced
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import (
    DAY_S,
    UNORDERED,
    Calendar,
    DayCounts,
    Territory,
    propose_calendar,
    timestamps_from_epoch,
)
from mtrec_ray.sources.download import download_file, unpack_files
from mtrec_ray.sources.source import Part, RawFile, Source, SourceFacts, local_folder, raw_folder
from mtrec_ray.sources.text import BYTES_PER_PIECE, UTF8, AsciiEncoding, TextFile, detect_encoding, find_file
from mtrec_ray.sources.values import label_text

REGIONS_OF_ZIP = {"northeast": "01", "south": "237", "midwest": "456", "west": "89"}
"""Areas of the United States with the first digits of their zip codes, roughly."""
TERRITORIES = {f"zip-{digit}": region for region, digits in REGIONS_OF_ZIP.items() for digit in digits}
TERRITORIES["zip-other"] = "abroad"
AGE_BANDS = {0: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
"""First year of age of the seven bands of MovieLens 1M."""
_OCCUPATIONS = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|doctor/health care|"
    "executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|retired|sales/marketing|scientist|"
    "self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
)
OCCUPATIONS_1M = _OCCUPATIONS.split("|")  # Occupations of ML-1M by their codes
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
)


@dataclass(frozen=True)
class Layout:
    """One way in which MovieLens is published: name, delimiter and columns of each file."""

    dataset: str  # `100K` or `1M`
    ratings: tuple[str, str, str]
    users: tuple[str, str, str]
    films: tuple[str, str, str]
    has_header: bool = False

    @property
    def file_names(self) -> tuple[str, ...]:
        return self.ratings[0], self.users[0], self.films[0]


RATINGS = "user_id item_id rating timestamp"
GROUPLENS_1M = Layout(
    "1M",
    ratings=("ratings.dat", "::", RATINGS),
    users=("users.dat", "::", "user_id gender age occupation zip_code"),
    films=("movies.dat", "::", "item_id movie_title class"),
)
GROUPLENS_100K = Layout(
    "100K",
    ratings=("u.data", "\t", RATINGS),
    users=("u.user", "|", "user_id age gender occupation zip_code"),
    films=("u.item", "|", f"item_id movie_title released video url {GENRES_100K}"),
)
RECBOLE_100K = Layout(
    "100K",
    ratings=("ml-100k.inter", "\t", "user_id:token item_id:token rating:float timestamp:float"),
    users=("ml-100k.user", "\t", "user_id:token age:token gender:token occupation:token zip_code:token"),
    films=("ml-100k.item", "\t", "item_id:token movie_title:token_seq release_year:token class:token_seq"),
    has_header=True,
)
LAYOUTS = (GROUPLENS_1M, GROUPLENS_100K, RECBOLE_100K)

ARCHIVES = {
    "ml-100k": (GROUPLENS_100K, "md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": (GROUPLENS_1M, "md5:c4d9eecfca2ab87c1945afe126590906"),
}
"""Layout and checksum as published by GroupLens."""
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"


class MovieLensConfig(Config):
    """How MovieLens becomes a lake (files may be gzipped), and what is downloaded."""

    day_length_days: int = Field(default=28, ge=1)
    """Length of an evaluation day in days: single days hold too few ratings."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days at the end of the data."""
    min_rating: int = Field(default=1, ge=1, le=5)
    """Lower ratings are left out, and counted; 1 = every rating is a view."""
    dataset: Literal["ml-100k", "ml-1m"] = "ml-100k"
    """What --download fetches; reading detects it from the files."""
    encoding: AsciiEncoding = advanced(None)
    """Encoding of the files; null = UTF-8 for those that are valid UTF-8, latin-1 for others, as a note says."""


class MovieLensSource(Source):
    """Reads MovieLens from the folder `raw`, where files may be gzipped."""

    def __init__(self, config: MovieLensConfig, raw: str | None):
        self.config = config
        self.folder = raw_folder("movielens", raw)
        self.layout = detect_layout(self.folder)

    @staticmethod
    def download(config: MovieLensConfig, raw: str | None, progress: ProgressCallback | None = None) -> None:
        """Download and unpack `config.dataset` into the folder `raw`, unless it is there."""
        if raw is None:
            raise UserError("--download needs a folder to fetch MovieLens into: name it with --raw DIR")
        folder = local_folder("movielens", raw)
        layout, checksum = ARCHIVES[config.dataset]
        if all(find_file(folder, name) for name in layout.file_names):
            return
        archive = folder / f"{config.dataset}.zip"
        download_file(ARCHIVE_URL.format(config.dataset), checksum, archive, f"downloading {config.dataset}", progress)
        unpack_files(archive, layout.file_names, folder)

    @cached_property
    def facts(self) -> SourceFacts:
        dataset, num_users, occupations = self.layout.dataset, 0, set[str]()
        for part in self.parts("users"):
            users = part()
            num_users += users.num_rows
            occupations |= set(pc.unique(users["occupation"].drop_null()).to_pylist())
        counted = self._counted
        rows = {"users": num_users, "events": counted.num_rows, "titles": self._films.num_rows}
        paths = {table: pieces[0].path for table, pieces in self.files.items()}
        low = {f"ratings below min_rating {self.config.min_rating}": counted.num_low}
        read_as = {pieces[0].path.name: pieces[0].encoding for pieces in self.files.values()}
        return SourceFacts(
            source="movielens",
            territories=[Territory(name=name, region=region) for name, region in TERRITORIES.items()],
            attributes={
                "gender": ["F", "M"],
                "age": list(AGE_BANDS.values()),
                "occupation": [*(OCCUPATIONS_1M if dataset == "1M" else sorted(occupations))],
            },
            calendar=self._calendar(),
            event_days=self._days,
            num_users=num_users,
            title_categoricals=["decade"],
            raw_files=[RawFile(table=t, path=str(paths[t].relative_to(self.folder)), rows=n) for t, n in rows.items()],
            left_out={reason: count for reason, count in low.items() if count},
            notes=[
                f"MovieLens {dataset}: for research, cite Harper and Konstan 2015",
                f"an evaluation day is {self.config.day_length_days} days long",
                "most users rate in a few sittings, so test users have few events before and after",
                *[UNORDERED] * (not self._counted.days.ordered()),
                *(f"{name} is read as {encoding}" for name, encoding in read_as.items() if encoding != UTF8),
            ],
        )

    @cached_property
    def files(self) -> dict[str, list[TextFile]]:
        """Pieces of the file of each table."""
        layout = self.layout
        specs = {"users": layout.users, "events": layout.ratings, "titles": layout.films}
        return {table: self._open(spec).pieces(BYTES_PER_PIECE) for table, spec in specs.items()}

    def titles(self) -> pa.Table:
        films = self._films.to_pydict()
        names, years = films["movie_title"], films.get("release_year")
        if years is None:  # `Toy Story (1995)`
            found = [re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", name) for name in names]
            years = [match[2] if match else "" for match in found]
            names = [match[1] if match else name for match, name in zip(found, names, strict=True)]
        return pa.table(
            {
                "title_id": self._films["item_id"],
                "name": names,
                "genres": [" ".join(word for word in words if word != "unknown") or None for words in _genres(films)],
                "decade": [f"{year[:3]}0s" if re.fullmatch(r"\d{4}", year) else None for year in years],
            }
        )

    def parts(self, table: str) -> list[Part]:
        if table == "users":
            return [partial(_read_users, piece, self.layout.dataset) for piece in self.files[table]]
        if table == "events":
            return [partial(_read_events, piece, self.config.min_rating) for piece in self.files[table]]
        return []

    def _open(self, spec: tuple[str, str, str]) -> TextFile:
        name, delimiter, columns = spec
        path = find_file(self.folder, name)
        assert path is not None, "the layout is there"
        encoding = self.config.encoding or detect_encoding(path)
        return TextFile.open(path, columns.split(), delimiter, encoding, self.layout.has_header)

    @cached_property
    def _films(self) -> pa.Table:
        return pa.concat_tables(piece.read(ids=["item_id"]) for piece in self.files["titles"])

    @cached_property
    def _counted(self) -> "RatingCounts":
        counts = RatingCounts()
        for piece in self.files["events"]:
            rows = piece.read(["rating", "timestamp"])
            counts.num_rows += rows.num_rows
            counts.num_low += int((piece.numbers(rows, "rating") < self.config.min_rating).sum())
            counts.days.add(timestamps_from_epoch(piece.numbers(rows, "timestamp"), "s"))
        if counts.num_low == counts.num_rows:
            path, low = self.files["events"][0].path, self.config.min_rating
            raise UserError(f"{path}: all {counts.num_rows:,} ratings are below min_rating={low}: choose a lower one")
        return counts

    @cached_property
    def _days(self) -> tuple[datetime, datetime]:
        days, path = self._counted.days, self.files["events"][0].path
        days.check_seconds(f"{path}: timestamp")
        found = days.believable()
        if not found:
            raise UserError(f"{path}: timestamp: no rating has a valid one (seconds since 1970)")
        return found

    def _calendar(self) -> Calendar:
        day_s, num_days = self.config.day_length_days * DAY_S, self.config.num_evaluation_days
        fix, ordered = "choose a shorter day_length_days", self._counted.days.ordered()
        return propose_calendar(self._days, day_s, num_days, fix, ordered=ordered)


@dataclass
class RatingCounts:
    """What one pass over the ratings finds."""

    num_rows: int = 0
    num_low: int = 0  # Below `min_rating`
    days: DayCounts = field(default_factory=DayCounts)


def _read_users(piece: TextFile, dataset: str) -> pa.Table:
    users = piece.read(ids=["user_id"])
    ages, occupations = piece.numbers(users, "age"), users["occupation"]
    if dataset == "1M":
        codes = piece.numbers(users, "occupation")
        piece.check((codes >= 0) & (codes < len(OCCUPATIONS_1M)), users, "occupation", "0 to 20")
        occupations = pa.array(OCCUPATIONS_1M).take(pa.array(codes.astype(np.int64)))
    return pa.table(
        {
            "user_id": users["user_id"],
            "territory": _map_distinct(users["zip_code"], territory_of),
            "gender": label_text(users["gender"]),
            "age": _map_distinct(pa.chunked_array([ages]), lambda age: age_band(int(age))),
            "occupation": label_text(occupations),
        }
    )


def _read_events(piece: TextFile, min_rating: int) -> pa.Table:
    rows = piece.read(["user_id", "item_id", "rating", "timestamp"], ids=["user_id", "item_id"])
    times = timestamps_from_epoch(piece.numbers(rows, "timestamp"), "s")
    events = pa.table({"user_id": rows["user_id"], "title_id": rows["item_id"], "timestamp": times})
    return events.filter(pa.array(piece.numbers(rows, "rating") >= min_rating))


def _map_distinct(column: pa.ChunkedArray, convert: Callable[[Any], str]) -> pa.Array:
    """`convert` of each value, called once for equal ones."""
    found = column.combine_chunks().dictionary_encode()
    return pa.array([convert(value) for value in found.dictionary.to_pylist()], pa.string()).take(found.indices)


def territory_of(zip_code: str) -> str:
    """`zip-` and the first digit, else `zip-other`."""
    name = f"zip-{zip_code[:1]}"
    return name if name in TERRITORIES else "zip-other"


def age_band(age: int) -> str:
    """The band of an age in years; a negative age stays as it is, to be rejected."""
    return next((band for first, band in reversed(AGE_BANDS.items()) if age >= first), str(age))


def detect_layout(folder: Path) -> Layout:
    """The layout whose files are in `folder`; UserError if one is missing."""
    for layout in LAYOUTS:
        names = layout.file_names
        missing = [name for name in names if not find_file(folder, name)]
        if not missing:
            return layout
        if len(missing) < len(names):
            raise UserError(f"{folder / missing[0]} is missing: this layout of MovieLens needs {', '.join(names)}")
    layouts = "; ".join(", ".join(layout.file_names) for layout in LAYOUTS)
    raise UserError(f"no MovieLens in {str(folder)!r}: it should hold one of {layouts} (or use --download)")


def _genres(films: dict[str, list[str]]) -> list[list[str]]:
    """Genres of each film, from one column of words or from a 0/1 column of each genre."""
    if "class" in films:
        return [text.replace("(no genres listed)", "").replace("|", " ").split() for text in films["class"]]
    names = GENRES_100K.split()
    flags = zip(*(films[name] for name in names), strict=True)
    return [[name for name, flag in zip(names, row, strict=True) if flag == "1"] for row in flags]

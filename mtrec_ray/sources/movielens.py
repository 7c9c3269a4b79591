"""MovieLens 100K and 1M (Harper and Konstan 2015) as one source.

Territory = postal region: `zip-` and the first digit of the zip code, `zip-other` for anything else (Canada, abroad).
A rating is a streaming event. The evaluation days are the last `num_evaluation_days` spans of `day_length_days`.

| layout | files |
|---|---|
| GroupLens 100K | `u.data`, `u.user`, `u.item` (tab and `|`, latin-1) |
| GroupLens 1M | `ratings.dat`, `users.dat`, `movies.dat` (`::`, latin-1) |
| RecBole atomic 100K | `ml-100k.inter`, `ml-100k.user`, `ml-100k.item` (tab, typed header) |
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S, Calendar, Territory, propose_calendar
from mtrec_ray.sources.download import download_file, unpack_files
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, timestamps_from_epoch
from mtrec_ray.sources.source import Part, Source, SourceFacts, local_folder, raw_folder
from mtrec_ray.sources.text import TextTable

REGIONS_OF_ZIP = {"northeast": "01", "south": "237", "midwest": "456", "west": "89"}
"""Areas of the United States with the first digits of their zip codes, roughly."""
TERRITORIES = {f"zip-{digit}": region for region, digits in REGIONS_OF_ZIP.items() for digit in digits} | {
    "zip-other": "abroad"
}
"""Territories with their regions."""
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
    """One way in which MovieLens is published; methods raise `UserError` with file and line."""

    dataset: str  # `100K` or `1M`
    ratings: TextTable
    users: TextTable
    films: TextTable

    @property
    def file_names(self) -> tuple[str, ...]:
        return self.ratings.name, self.users.name, self.films.name

    def read_users(self, folder: Path) -> dict[str, list]:
        """`user_id`, `age` (1M: first year of a band), `gender`, `occupation`, `zip_code`."""
        users: dict[str, list] = dict(self.users.read(folder))
        users["age"] = self.users.read_ints(folder, users, "age")
        if self.dataset == "1M":
            codes = self.users.read_ints(folder, users, "occupation")
            for line, code in enumerate(codes, start=1):
                if not 0 <= code < len(OCCUPATIONS_1M):
                    where = f"{folder / self.users.name}, line {line}"
                    raise UserError(f"{where}: occupation is {code}, should be 0 to 20: fix the line")
            users["occupation"] = [OCCUPATIONS_1M[code] for code in codes]
        return users

    def read_films(self, folder: Path) -> dict[str, list]:
        """`title_id`, `name`, `genres` separated by spaces and `decade`; None = unknown."""
        films = self.films.read(folder)
        names, years = films["movie_title"], films.get("release_year")
        if years is None:  # `Toy Story (1995)`
            found = [re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", name) for name in names]
            years = [match[2] if match else "" for match in found]
            names = [match[1] if match else name for match, name in zip(found, names, strict=True)]
        return {
            "title_id": films["item_id"],
            "name": names,
            "genres": [" ".join(word for word in words if word != "unknown") or None for words in _genres(films)],
            "decade": [f"{year[:3]}0s" if re.fullmatch(r"\d{4}", year) else None for year in years],
        }

    def read_ratings(self, folder: Path) -> dict[str, list]:
        """`user_id`, `item_id`, `rating` and `timestamp` in seconds since 1970."""
        ratings = self.ratings.read(folder)
        return ratings | {name: self.ratings.read_ints(folder, ratings, name) for name in ("rating", "timestamp")}


RATINGS = "user_id item_id rating timestamp"
GROUPLENS_1M = Layout(
    "1M",
    TextTable("ratings.dat", "::", RATINGS, encoding="latin-1"),
    TextTable("users.dat", "::", "user_id gender age occupation zip_code", encoding="latin-1"),
    TextTable("movies.dat", "::", "item_id movie_title class", encoding="latin-1"),
)
GROUPLENS_100K = Layout(
    "100K",
    TextTable("u.data", "\t", RATINGS),
    TextTable("u.user", "|", "user_id age gender occupation zip_code", encoding="latin-1"),
    TextTable("u.item", "|", f"item_id movie_title released video url {GENRES_100K}", encoding="latin-1"),
)
RECBOLE_100K = Layout(
    "100K",
    TextTable("ml-100k.inter", "\t", "user_id:token item_id:token rating:float timestamp:float", header=True),
    TextTable(
        "ml-100k.user", "\t", "user_id:token age:token gender:token occupation:token zip_code:token", header=True
    ),
    TextTable(
        "ml-100k.item", "\t", "item_id:token movie_title:token_seq release_year:token class:token_seq", header=True
    ),
)
LAYOUTS = (GROUPLENS_1M, GROUPLENS_100K, RECBOLE_100K)

ARCHIVES = {
    "ml-100k": (GROUPLENS_100K, "md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": (GROUPLENS_1M, "md5:c4d9eecfca2ab87c1945afe126590906"),
}
"""Layout and checksum as published by GroupLens."""
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"


class MovieLensConfig(Config):
    """How MovieLens becomes a lake, and what is downloaded."""

    day_length_days: int = Field(default=28, ge=1)
    """Length of an evaluation day in days: single days hold too few ratings."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days at the end of the data."""
    min_rating: int = Field(default=1, ge=1, le=5)
    """Lower ratings are left out; 1 = every rating is a view."""
    dataset: Literal["ml-100k", "ml-1m"] = "ml-100k"
    """What --download fetches; reading detects it from the files."""


class MovieLensSource(Source):
    """Reads MovieLens from the folder `raw`."""

    def __init__(self, config: MovieLensConfig, raw: str | None):
        self.config = config
        self.folder = raw_folder("movielens", raw)
        self.layout = detect_layout(self.folder)

    @cached_property
    def facts(self) -> SourceFacts:
        dataset, users = self.layout.dataset, self.layout.read_users(self.folder)
        occupations = OCCUPATIONS_1M if dataset == "1M" else sorted(set(users["occupation"]))
        return SourceFacts(
            name="movielens",
            territories=tuple(Territory(name=name, region=region) for name, region in TERRITORIES.items()),
            attributes={"gender": ("F", "M"), "age": tuple(AGE_BANDS.values()), "occupation": tuple(occupations)},
            calendar=self._calendar(),
            num_users=len(users["user_id"]),
            title_categoricals=("decade",),
            notes=(
                f"MovieLens {dataset}: for research, cite Harper and Konstan 2015",
                f"an evaluation day is {self.config.day_length_days} days long",
                "most users rate in a few sittings, so test users have few events before and after",
            ),
        )

    def titles(self) -> pa.Table:
        return pa.table(self.layout.read_films(self.folder))

    def parts(self, table: str) -> list[Part]:
        return {"users": [self._users], "events": [self._events]}.get(table, [])

    def _users(self) -> pa.Table:
        users = self.layout.read_users(self.folder)
        return pa.table(
            {
                "user_id": users["user_id"],
                "territory": [territory_of(code) for code in users["zip_code"]],
                "gender": users["gender"],
                "age": [age_band(age) for age in users["age"]],
                "occupation": users["occupation"],
            }
        )

    def _events(self) -> pa.Table:
        ratings = self.layout.read_ratings(self.folder)
        times = timestamps_from_epoch(np.array(ratings["timestamp"], np.float64), "s")  # int64 could overflow
        events = pa.table({"user_id": ratings["user_id"], "title_id": ratings["item_id"], "timestamp": times})
        return events.filter(pa.array(np.array(ratings["rating"]) >= self.config.min_rating))

    def _calendar(self) -> Calendar:
        times = self.layout.read_ratings(self.folder)["timestamp"]
        times = [time for time in times if 0 <= time < AFTER_LAST_TIMESTAMP.timestamp()]
        if not times:
            raise UserError(f"no rating in {str(self.folder)!r} has a valid timestamp (seconds since 1970)")
        first, last = (datetime.fromtimestamp(time, UTC) for time in (min(times), max(times)))
        day_s, num_days = self.config.day_length_days * DAY_S, self.config.num_evaluation_days
        return propose_calendar(first, last, day_s, num_days, fix="choose a shorter day_length_days")


def download_movielens(config: MovieLensConfig, raw: str | None, progress: ProgressCallback | None = None) -> None:
    """Download and unpack `config.dataset` into the folder `raw`, unless it is there."""
    if raw is None:
        raise UserError("--download needs a folder to fetch MovieLens into: name it with --raw DIR")
    folder = local_folder("movielens", raw)
    layout, checksum = ARCHIVES[config.dataset]
    if all((folder / name).is_file() for name in layout.file_names):
        return
    archive = folder / f"{config.dataset}.zip"
    download_file(ARCHIVE_URL.format(config.dataset), checksum, archive, f"downloading {config.dataset}", progress)
    unpack_files(archive, layout.file_names, folder)


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
        missing = [name for name in names if not (folder / name).is_file()]
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

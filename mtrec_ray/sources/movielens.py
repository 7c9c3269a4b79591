"""MovieLens 100K and 1M (Harper and Konstan 2015) as one source.

Territory = postal region: `zip-` and the first digit of the zip code, `zip-other` for anything else (Canada, abroad).
A rating is a streaming event. The evaluation days are the last `num_evaluation_days` spans of `day_length_days`.
"""

# pyright: reportAttributeAccessIssue=false

import re
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S, Calendar, DayCounts, Territory, propose_calendar, to_utc_micros
from mtrec_ray.sources.download import download_file, unpack_files
from mtrec_ray.sources.source import Part, Source, SourceFacts, local_folder, raw_folder
from mtrec_ray.sources.text import TextFile

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
    encoding: str = "latin-1"
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
    encoding="utf-8",
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

    @staticmethod
    def download(config: MovieLensConfig, raw: str | None, progress: ProgressCallback | None = None) -> None:
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

    @cached_property
    def facts(self) -> SourceFacts:
        dataset, users = self.layout.dataset, self._users()
        occupations = OCCUPATIONS_1M if dataset == "1M" else sorted(set(users["occupation"].to_pylist()))
        return SourceFacts(
            source="movielens",
            territories=[Territory(name=name, region=region) for name, region in TERRITORIES.items()],
            attributes={"gender": ["F", "M"], "age": list(AGE_BANDS.values()), "occupation": list(occupations)},
            calendar=self._calendar(),
            event_days=self._days,
            num_users=users.num_rows,
            title_categoricals=["decade"],
            notes=[
                f"MovieLens {dataset}: for research, cite Harper and Konstan 2015",
                f"an evaluation day is {self.config.day_length_days} days long",
                "most users rate in a few sittings, so test users have few events before and after",
            ],
        )

    def titles(self) -> pa.Table:
        films = self._open(self.layout.films).read().to_pydict()
        names, years = films["movie_title"], films.get("release_year")
        if years is None:  # `Toy Story (1995)`
            found = [re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", name) for name in names]
            years = [match[2] if match else "" for match in found]
            names = [match[1] if match else name for match, name in zip(found, names, strict=True)]
        return pa.table(
            {
                "title_id": films["item_id"],
                "name": names,
                "genres": [" ".join(word for word in words if word != "unknown") or None for words in _genres(films)],
                "decade": [f"{year[:3]}0s" if re.fullmatch(r"\d{4}", year) else None for year in years],
            }
        )

    def parts(self, table: str) -> list[Part]:
        return {"users": [self._users], "events": [self._events]}.get(table, [])

    def _open(self, spec: tuple[str, str, str]) -> TextFile:
        name, delimiter, columns = spec
        return TextFile.open(
            self.folder / name, columns.split(), delimiter, self.layout.encoding, self.layout.has_header
        )

    def _users(self) -> pa.Table:
        file = self._open(self.layout.users)
        users = file.read()
        ages, occupations = file.numbers(users, "age"), users["occupation"].to_pylist()
        if self.layout.dataset == "1M":
            codes = file.numbers(users, "occupation")
            file.check((codes >= 0) & (codes < len(OCCUPATIONS_1M)), users, "occupation", "0 to 20")
            occupations = [OCCUPATIONS_1M[int(code)] for code in codes]
        return pa.table(
            {
                "user_id": users["user_id"],
                "territory": [territory_of(code) for code in users["zip_code"].to_pylist()],
                "gender": users["gender"],
                "age": [age_band(int(age)) for age in ages],
                "occupation": occupations,
            }
        )

    def _ratings(self) -> pa.Table:
        """Ids as text, `rating` and `timestamp` (seconds since 1970) as float64."""
        file = self._open(self.layout.ratings)
        rows = file.read()
        numbers = {name: file.numbers(rows, name) for name in ("rating", "timestamp")}
        return pa.table({"user_id": rows["user_id"], "title_id": rows["item_id"], **numbers})

    def _events(self) -> pa.Table:
        ratings = self._ratings().filter(pc.field("rating") >= self.config.min_rating)
        times = to_utc_micros(ratings["timestamp"], "s")
        return pa.table({"user_id": ratings["user_id"], "title_id": ratings["title_id"], "timestamp": times})

    @cached_property
    def _days(self) -> tuple[datetime, datetime]:
        days = DayCounts()
        days.add(to_utc_micros(self._ratings()["timestamp"], "s"))
        found = days.believable()
        if not found:
            raise UserError(f"no rating in {str(self.folder)!r} has a valid timestamp (seconds since 1970)")
        return found

    def _calendar(self) -> Calendar:
        day_s, num_days = self.config.day_length_days * DAY_S, self.config.num_evaluation_days
        return propose_calendar(self._days, day_s, num_days, fix="choose a shorter day_length_days")


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

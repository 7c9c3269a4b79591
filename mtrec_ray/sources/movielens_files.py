"""The three forms in which MovieLens comes, read into the same columns.

| form | files |
|---|---|
| GroupLens 100K | `u.data`, `u.user`, `u.item` (tab and `|`, latin-1) |
| GroupLens 1M | `ratings.dat`, `users.dat`, `movies.dat` (`::`, latin-1) |
| RecBole atomic 100K | `ml-100k.inter`, `ml-100k.user`, `ml-100k.item` (tab, typed header) |
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mtrec_ray.errors import UserError
from mtrec_ray.sources.text import read_columns, to_ints

OCCUPATIONS = {
    "100K": (
        "administrator",
        "artist",
        "doctor",
        "educator",
        "engineer",
        "entertainment",
        "executive",
        "healthcare",
        "homemaker",
        "lawyer",
        "librarian",
        "marketing",
        "none",
        "other",
        "programmer",
        "retired",
        "salesman",
        "scientist",
        "student",
        "technician",
        "writer",
    ),
    "1M": (
        "other",
        "academic/educator",
        "artist",
        "clerical/admin",
        "college/grad student",
        "customer service",
        "doctor/health care",
        "executive/managerial",
        "farmer",
        "homemaker",
        "K-12 student",
        "lawyer",
        "programmer",
        "retired",
        "sales/marketing",
        "scientist",
        "self-employed",
        "technician/engineer",
        "tradesman/craftsman",
        "unemployed",
        "writer",
    ),
}
"""By data set; the 1M's numbers are positions."""
GENRES_100K = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""Flags of `u.item`, in order."""


@dataclass(frozen=True)
class Users:
    user_id: list[str]
    age: list[int]
    gender: list[str]
    occupation: list[str]
    zip_code: list[str]


@dataclass(frozen=True)
class Films:
    title_id: list[str]
    name: list[str]
    year: list[str | None]
    genres: list[list[str]]


@dataclass(frozen=True)
class Ratings:
    user_id: list[str]
    title_id: list[str]
    rating: list[int]
    epoch_s: list[int]


@dataclass(frozen=True)
class MovieLensFiles(ABC):
    """One of the forms, in `folder`. Picklable. Every method raises `UserError` naming file and line."""

    folder: Path

    dataset: ClassVar[str]
    """`100K` or `1M`."""

    @abstractmethod
    def read_users(self) -> Users: ...

    @abstractmethod
    def read_films(self) -> Films: ...

    @abstractmethod
    def read_ratings(self) -> Ratings: ...


class RecBole100K(MovieLensFiles):
    dataset = "100K"

    def read_users(self) -> Users:
        path = self.folder / "ml-100k.user"
        names = ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"]
        ids, ages, genders, occupations, zips = read_columns(path, "\t", names, header=True)
        return Users(ids, to_ints(ages, path, "age", header=True), genders, occupations, zips)

    def read_films(self) -> Films:
        path = self.folder / "ml-100k.item"
        names = ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
        ids, titles, years, classes = read_columns(path, "\t", names, header=True)
        return Films(ids, titles, [_year(year) for year in years], [_known(c.split()) for c in classes])

    def read_ratings(self) -> Ratings:
        path = self.folder / "ml-100k.inter"
        names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        return _ratings(read_columns(path, "\t", names, header=True), path, header=True)


class GroupLens100K(MovieLensFiles):
    dataset = "100K"

    def read_users(self) -> Users:
        path = self.folder / "u.user"
        names = ["user_id", "age", "gender", "occupation", "zip_code"]
        ids, ages, genders, occupations, zips = read_columns(path, "|", names, header=False, encoding="latin-1")
        return Users(ids, to_ints(ages, path, "age", header=False), genders, occupations, zips)

    def read_films(self) -> Films:
        names = ["title_id", "name", "released", "video", "url", *GENRES_100K]
        columns = read_columns(self.folder / "u.item", "|", names, header=False, encoding="latin-1")
        flags = zip(*columns[5:], strict=True)
        genres = [_known([g for g, flag in zip(GENRES_100K, row, strict=True) if flag == "1"]) for row in flags]
        return Films(columns[0], *_names_and_years(columns[1]), genres)

    def read_ratings(self) -> Ratings:
        path = self.folder / "u.data"
        names = ["user_id", "title_id", "rating", "timestamp"]
        return _ratings(read_columns(path, "\t", names, header=False), path, header=False)


class GroupLens1M(MovieLensFiles):
    dataset = "1M"

    def read_users(self) -> Users:
        path = self.folder / "users.dat"
        names = ["user_id", "gender", "age", "occupation", "zip_code"]
        ids, genders, ages, codes, zips = read_columns(path, "::", names, header=False, encoding="latin-1")
        occupations = to_ints(codes, path, "occupation", header=False)
        for line, code in enumerate(occupations, start=1):
            if not 0 <= code < len(OCCUPATIONS["1M"]):
                raise UserError(f"{path}, line {line}: occupation is {code}, should be 0 to 20: fix the line")
        names_of = [OCCUPATIONS["1M"][code] for code in occupations]
        return Users(ids, to_ints(ages, path, "age", header=False), genders, names_of, zips)

    def read_films(self) -> Films:
        names = ["title_id", "name", "genres"]
        ids, titles, genres = read_columns(self.folder / "movies.dat", "::", names, header=False, encoding="latin-1")
        return Films(ids, *_names_and_years(titles), [_known(listed.split("|")) for listed in genres])

    def read_ratings(self) -> Ratings:
        path = self.folder / "ratings.dat"
        names = ["user_id", "title_id", "rating", "timestamp"]
        return _ratings(read_columns(path, "::", names, header=False, encoding="latin-1"), path, header=False)


FORMS: dict[type[MovieLensFiles], tuple[str, ...]] = {
    GroupLens1M: ("ratings.dat", "users.dat", "movies.dat"),
    GroupLens100K: ("u.data", "u.user", "u.item"),
    RecBole100K: ("ml-100k.inter", "ml-100k.user", "ml-100k.item"),
}


def detect(folder: Path) -> MovieLensFiles:
    """The form whose files are in `folder`.

    Raises:
        UserError: none, or one of the form's three files is missing.
    """
    for form, names in FORMS.items():
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return form(folder)
        if len(missing) < len(names):
            raise UserError(f"{folder / missing[0]} is missing: MovieLens in this form needs {', '.join(names)}")
    forms = "; ".join(", ".join(names) for names in FORMS.values())
    raise UserError(f"no MovieLens in {str(folder)!r}: it should hold one of {forms} (or use --download)")


def _ratings(columns: list[list[str]], path: Path, header: bool) -> Ratings:
    users, titles, ratings, moments = columns
    return Ratings(users, titles, to_ints(ratings, path, "rating", header), to_ints(moments, path, "timestamp", header))


def _names_and_years(titles: list[str]) -> tuple[list[str], list[str | None]]:
    """`Toy Story (1995)` -> `Toy Story`, `1995`."""
    found = [re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", title) for title in titles]
    names = [match[1] if match else title for match, title in zip(found, titles, strict=True)]
    return names, [match[2] if match else None for match in found]


def _year(text: str) -> str | None:
    return text if re.fullmatch(r"\d{4}", text) else None


def _known(genres: list[str]) -> list[str]:
    return [genre for genre in genres if genre not in ("unknown", "(no genres listed)")]

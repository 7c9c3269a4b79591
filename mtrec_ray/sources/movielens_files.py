"""The three file layouts of MovieLens, read into the same columns.

| layout | files |
|---|---|
| GroupLens 100K | `u.data`, `u.user`, `u.item` (tab and `|`, latin-1) |
| GroupLens 1M | `ratings.dat`, `users.dat`, `movies.dat` (`::`, latin-1) |
| RecBole atomic 100K | `ml-100k.inter`, `ml-100k.user`, `ml-100k.item` (tab, typed header) |
"""

import re
from dataclasses import dataclass
from pathlib import Path

from mtrec_ray.errors import UserError
from mtrec_ray.sources.text import TextTable

OCCUPATIONS_1M = (
    "other|academic/educator|artist|clerical/admin|college/grad student|customer service|doctor/health care|"
    "executive/managerial|farmer|homemaker|K-12 student|lawyer|programmer|retired|sales/marketing|scientist|"
    "self-employed|technician/engineer|tradesman/craftsman|unemployed|writer"
)
"""Occupations of ML-1M in the order of their codes, separated by `|`."""


@dataclass(frozen=True)
class Layout:
    """One way in which MovieLens is published; all columns have RecBole's names."""

    dataset: str
    """`100K` or `1M`."""
    ratings: TextTable
    users: TextTable
    films: TextTable

    @property
    def file_names(self) -> tuple[str, ...]:
        return self.ratings.name, self.users.name, self.films.name


RATINGS = "user_id item_id rating timestamp"
GROUPLENS_1M = Layout(
    "1M",
    TextTable("ratings.dat", "::", RATINGS, encoding="latin-1"),
    TextTable("users.dat", "::", "user_id gender age occupation zip_code", encoding="latin-1"),
    TextTable("movies.dat", "::", "item_id movie_title class", encoding="latin-1"),
)
FILM_100K = "item_id movie_title released video url"
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical "
    "Mystery Romance Sci-Fi Thriller War Western"
)
GROUPLENS_100K = Layout(
    "100K",
    TextTable("u.data", "\t", RATINGS),
    TextTable("u.user", "|", "user_id age gender occupation zip_code", encoding="latin-1"),
    TextTable("u.item", "|", f"{FILM_100K} {GENRES_100K}", encoding="latin-1"),
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


@dataclass(frozen=True)
class MovieLensFiles:
    """MovieLens in one layout; methods raise `UserError` with file and line. Picklable."""

    folder: Path
    layout: Layout

    def read_users(self) -> dict[str, list]:
        """`user_id`, `age` (1M: first year of a band), `gender`, `occupation`, `zip_code`."""
        table = self.layout.users
        users: dict[str, list] = dict(table.read(self.folder))
        users["age"] = table.read_ints(self.folder, users, "age")
        if self.layout.dataset == "1M":
            codes, names = table.read_ints(self.folder, users, "occupation"), OCCUPATIONS_1M.split("|")
            for line, code in enumerate(codes, start=1):
                if not 0 <= code < len(names):
                    raise UserError(
                        f"{self.folder / table.name}, line {line}: occupation is {code}, should be 0 to "
                        f"{len(names) - 1}: fix the line"
                    )
            users["occupation"] = [names[code] for code in codes]
        return users

    def read_films(self) -> dict[str, list]:
        """`title_id`, `name`, `genres` separated by spaces and `decade`; None = unknown."""
        films = self.layout.films.read(self.folder)
        names, years = films["movie_title"], films.get("release_year")
        if years is None:  # `Toy Story (1995)`
            found = [re.fullmatch(r"(.*?)\s*\((\d{4})\)\s*", name) for name in names]
            years = [match[2] if match else "" for match in found]
            names = [match[1] if match else name for match, name in zip(found, names, strict=True)]
        return {
            "title_id": films["item_id"],
            "name": names,
            "genres": [" ".join(words) or None for words in _genres(films)],
            "decade": [f"{year[:3]}0s" if re.fullmatch(r"\d{4}", year) else None for year in years],
        }

    def read_ratings(self) -> dict[str, list]:
        """`user_id`, `item_id`, `rating` and `timestamp` in seconds since 1970."""
        table = self.layout.ratings
        ratings = table.read(self.folder)
        return ratings | {name: table.read_ints(self.folder, ratings, name) for name in ("rating", "timestamp")}


def detect_layout(folder: Path) -> MovieLensFiles:
    """The layout whose files are in `folder`; UserError if one is missing."""
    for layout in LAYOUTS:
        names = layout.file_names
        missing = [name for name in names if not (folder / name).is_file()]
        if not missing:
            return MovieLensFiles(folder, layout)
        if len(missing) < len(names):
            raise UserError(f"{folder / missing[0]} is missing: this layout of MovieLens needs {', '.join(names)}")
    layouts = "; ".join(", ".join(layout.file_names) for layout in LAYOUTS)
    raise UserError(f"no MovieLens in {str(folder)!r}: it should hold one of {layouts} (or use --download)")


def _genres(films: dict[str, list[str]]) -> list[list[str]]:
    """Known genres of each film, from one column of words or from a 0/1 column of each genre."""
    if "class" in films:
        listed = [text.replace("(no genres listed)", "").replace("|", " ").split() for text in films["class"]]
    else:
        names = GENRES_100K.split()
        flags = zip(*(films[name] for name in names), strict=True)
        listed = [[name for name, flag in zip(names, row, strict=True) if flag == "1"] for row in flags]
    return [[genre for genre in genres if genre != "unknown"] for genres in listed]

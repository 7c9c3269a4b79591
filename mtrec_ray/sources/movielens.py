"""MovieLens 100K and 1M (Harper and Konstan 2015) as one source; `movielens_files` reads the three file forms.

Territory = postal region: `zip-` and the first digit of the zip code, `zip-other` for anything else (Canada, abroad).
A rating is a streaming event of its moment. Calendar: the last `num_evaluation_days` spans of `day_length_days` before
the end of the data are the evaluation days, all before is the window. A film's decade is a categorical column.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import Calendar, Territory, proposed_calendar
from mtrec_ray.sources.download import download, unpack
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, timestamps_from_epoch
from mtrec_ray.sources.movielens_files import FORMS, OCCUPATIONS, GroupLens1M, GroupLens100K, MovieLensFiles, detect
from mtrec_ray.sources.source import Part, Source, SourceFacts, local_folder, raw_folder

REGIONS = {
    "zip-0": "northeast",
    "zip-1": "northeast",
    "zip-2": "south",
    "zip-3": "south",
    "zip-4": "midwest",
    "zip-5": "midwest",
    "zip-6": "midwest",
    "zip-7": "south",
    "zip-8": "west",
    "zip-9": "west",
    "zip-other": "abroad",
}
"""Areas of the United States that the first digit of a zip code stands for, roughly."""
AGE_BANDS = {0: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
"""First year of age of the seven bands of MovieLens 1M."""
DAY_S = 86_400

ARCHIVES = {
    "ml-100k": (
        "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        "md5:0e33842e24a9c977be4e0107933c0723",
    ),
    "ml-1m": (
        "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
        "md5:c4d9eecfca2ab87c1945afe126590906",
    ),
}
"""Address and checksum as published by GroupLens."""


class MovieLensConfig(Config):
    """How MovieLens becomes a lake, and where it is fetched from."""

    day_length_days: int = Field(default=28, ge=1)
    """Length of one evaluation day in days: single days hold too few ratings."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days at the end of the data."""
    min_rating: int = Field(default=1, ge=1, le=5)
    """Ratings below are left out; 1 = every rating is a view."""
    dataset: Literal["ml-100k", "ml-1m"] = "ml-100k"
    """What --download fetches; reading detects it from the files."""
    url: str | None = None
    """Where --download fetches the archive; null = GroupLens' own address."""
    checksum: str | None = None
    """`md5:...` or `sha256:...` of the archive; null = the MD5 that GroupLens publishes."""


class MovieLensSource(Source):
    """Reads MovieLens from `raw`."""

    def __init__(self, config: MovieLensConfig, raw: str | None):
        self.config = config
        self.files: MovieLensFiles = detect(raw_folder("movielens", raw))

    @cached_property
    def facts(self) -> SourceFacts:
        users = self.files.read_users()
        return SourceFacts(
            name="movielens",
            territories=tuple(Territory(name=name, region=region) for name, region in REGIONS.items()),
            attributes={
                "gender": ("F", "M"),
                "age": tuple(AGE_BANDS.values()),
                "occupation": OCCUPATIONS[self.files.dataset],
            },
            calendar=self._calendar(),
            num_users=len(users.user_id),
            title_categoricals=("decade",),
            notes=(
                f"MovieLens {self.files.dataset}: for research, cite Harper and Konstan 2015",
                f"an evaluation day is {self.config.day_length_days} days long",
                "most users rate in a few sittings, so test users have few events before and after",
            ),
        )

    def titles(self) -> pa.Table:
        films = self.files.read_films()
        return pa.table(
            {
                "title_id": films.title_id,
                "name": films.name,
                "genres": pa.array([" ".join(genres) or None for genres in films.genres], pa.string()),
                "synopsis": pa.nulls(len(films.title_id), pa.string()),
                "decade": pa.array([_decade(year) for year in films.year], pa.string()),
                "territories": pa.array([[]] * len(films.title_id), pa.list_(pa.string())),
            }
        )

    def user_parts(self) -> list[Part]:
        return [partial(_read_users, self.files)]

    def event_parts(self) -> list[Part]:
        return [partial(_read_events, self.files, self.config.min_rating)]

    def _calendar(self) -> Calendar:
        moments = [m for m in self.files.read_ratings().epoch_s if 0 <= m < AFTER_LAST_TIMESTAMP.timestamp()]
        if not moments:
            raise UserError(f"no rating in {str(self.files.folder)!r} has a believable timestamp (seconds since 1970)")
        first, last = (datetime.fromtimestamp(moment, UTC) for moment in (min(moments), max(moments)))
        day_s, num_days = self.config.day_length_days * DAY_S, self.config.num_evaluation_days
        return proposed_calendar(first, last, day_s, num_days, fix="choose a shorter day_length_days")


def download_movielens(
    config: MovieLensConfig, raw: str | None, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Fetch and unpack the archive of `config.dataset` into the folder `raw`, unless its files are there.

    Args:
        progress: called with (stage, bytes so far, bytes in all).

    Raises:
        UserError: no local folder named, a url without its checksum, or as `download` and `unpack`.
    """
    if raw is None:
        raise UserError("--download needs a folder to fetch MovieLens into: name it with --raw DIR")
    if config.url and not config.checksum:
        raise UserError(f"url {config.url!r} needs its checksum: set `checksum` to md5:... or sha256:...")
    folder = local_folder("movielens", raw)
    wanted = FORMS[{"ml-100k": GroupLens100K, "ml-1m": GroupLens1M}[config.dataset]]
    if all((folder / name).is_file() for name in wanted):
        return
    stage = f"downloading {config.dataset}"
    url, checksum = ARCHIVES[config.dataset]
    archive = download(
        config.url or url,
        config.checksum or checksum,
        folder / f"{config.dataset}.zip",
        (lambda done, total: progress(stage, done, total or 0)) if progress else None,
    )
    unpack(archive, wanted, folder)


def territory_of(zip_code: str) -> str:
    """`zip-` and the first digit, else `zip-other`."""
    name = f"zip-{zip_code[:1]}"
    return name if name in REGIONS else "zip-other"


def age_band(age: int) -> str:
    """One of the seven bands of MovieLens 1M, for an age in years or a band's first year (1 = under 18).

    A negative age stays as it is, for validation to report.
    """
    return next((band for first, band in reversed(AGE_BANDS.items()) if age >= first), str(age))


def _read_users(files: MovieLensFiles) -> pa.Table:
    users = files.read_users()
    return pa.table(
        {
            "user_id": users.user_id,
            "territory": [territory_of(code) for code in users.zip_code],
            "gender": users.gender,
            "age": [age_band(age) for age in users.age],
            "occupation": users.occupation,
        }
    )


def _read_events(files: MovieLensFiles, min_rating: int) -> pa.Table:
    ratings = files.read_ratings()
    events = pa.table(
        {
            "user_id": ratings.user_id,
            "title_id": ratings.title_id,
            "timestamp": timestamps_from_epoch(np.array(ratings.epoch_s, np.float64), "s"),  # any number fits
        }
    )
    return events.filter(pa.array(np.array(ratings.rating) >= min_rating))


def _decade(year: str | None) -> str | None:
    return f"{year[:3]}0s" if year else None

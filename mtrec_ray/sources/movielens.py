"""MovieLens 100K and 1M (Harper and Konstan 2015) as one source.

Territory = postal region: `zip-` and the first digit of the zip code, `zip-other` for anything else (Canada, abroad).
A rating is a streaming event. The evaluation days are the last `num_evaluation_days` spans of `day_length_days`.
"""

from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtrec_ray.config import Config, advanced
from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import DAY_S, Calendar, Territory, propose_calendar
from mtrec_ray.sources.download import download_file, unpack_files
from mtrec_ray.sources.epochs import AFTER_LAST_TIMESTAMP, timestamps_from_epoch
from mtrec_ray.sources.movielens_files import (
    GROUPLENS_1M,
    GROUPLENS_100K,
    OCCUPATIONS_1M,
    MovieLensFiles,
    detect_layout,
)
from mtrec_ray.sources.source import Part, Source, SourceFacts, local_folder, raw_folder

REGIONS = {"northeast": "01", "south": "237", "midwest": "456", "west": "89"}
"""Areas of the United States with the first digits of their zip codes, roughly."""
TERRITORIES = {f"zip-{digit}": region for region, digits in REGIONS.items() for digit in digits} | {
    "zip-other": "abroad"
}
"""Territories with their regions."""
AGE_BANDS = {0: "Under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}
"""First year of age of the seven bands of MovieLens 1M."""

ARCHIVES = {
    "ml-100k": (GROUPLENS_100K, "md5:0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": (GROUPLENS_1M, "md5:c4d9eecfca2ab87c1945afe126590906"),
}
"""Layout and checksum as published by GroupLens."""
ARCHIVE_URL = "https://files.grouplens.org/datasets/movielens/{}.zip"


class MovieLensConfig(Config):
    """How MovieLens becomes a lake, and where it is downloaded from."""

    day_length_days: int = Field(default=28, ge=1)
    """Length of an evaluation day in days: single days hold too few ratings."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Evaluation days at the end of the data."""
    min_rating: int = Field(default=1, ge=1, le=5)
    """Lower ratings are left out; 1 = every rating is a view."""
    dataset: Literal["ml-100k", "ml-1m"] = "ml-100k"
    """What --download fetches; reading detects it from the files."""
    url: str | None = advanced(None)
    """Where --download fetches the archive; null = GroupLens."""
    checksum: str | None = advanced(None)
    """`md5:...` or `sha256:...` of the archive; null = the MD5 that GroupLens publishes."""


class MovieLensSource(Source):
    """Reads MovieLens from the folder `raw`."""

    def __init__(self, config: MovieLensConfig, raw: str | None):
        self.config = config
        self.files = detect_layout(raw_folder("movielens", raw))

    @cached_property
    def facts(self) -> SourceFacts:
        dataset, users = self.files.layout.dataset, self.files.read_users()
        occupations = OCCUPATIONS_1M.split("|") if dataset == "1M" else sorted(set(users["occupation"]))
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
        return pa.table(self.files.read_films())

    def parts(self, table: str) -> list[Part]:
        read_events = partial(_read_events, self.files, self.config.min_rating)
        return {"users": [partial(_read_users, self.files)], "events": [read_events]}.get(table, [])

    def _calendar(self) -> Calendar:
        times = self.files.read_ratings()["timestamp"]
        times = [time for time in times if 0 <= time < AFTER_LAST_TIMESTAMP.timestamp()]
        if not times:
            raise UserError(f"no rating in {str(self.files.folder)!r} has a valid timestamp (seconds since 1970)")
        first, last = (datetime.fromtimestamp(time, UTC) for time in (min(times), max(times)))
        day_s, num_days = self.config.day_length_days * DAY_S, self.config.num_evaluation_days
        return propose_calendar(first, last, day_s, num_days, fix="choose a shorter day_length_days")


def download_movielens(config: MovieLensConfig, raw: str | None, progress: ProgressCallback | None = None) -> None:
    """Download and unpack `config.dataset` into the folder `raw`, unless it is there."""
    if raw is None:
        raise UserError("--download needs a folder to fetch MovieLens into: name it with --raw DIR")
    if config.url and not config.checksum:
        raise UserError(f"url {config.url!r} needs its checksum: set `checksum` to md5:... or sha256:...")
    folder = local_folder("movielens", raw)
    layout, checksum = ARCHIVES[config.dataset]
    if all((folder / name).is_file() for name in layout.file_names):
        return
    archive = folder / f"{config.dataset}.zip"
    url = config.url or ARCHIVE_URL.format(config.dataset)
    download_file(url, config.checksum or checksum, archive, f"downloading {config.dataset}", progress)
    unpack_files(archive, layout.file_names, folder)


def territory_of(zip_code: str) -> str:
    """`zip-` and the first digit, else `zip-other`."""
    name = f"zip-{zip_code[:1]}"
    return name if name in TERRITORIES else "zip-other"


def age_band(age: int) -> str:
    """The band of an age in years; a negative age stays as it is, to be rejected."""
    return next((band for first, band in reversed(AGE_BANDS.items()) if age >= first), str(age))


def _read_users(files: MovieLensFiles) -> pa.Table:
    users = files.read_users()
    return pa.table(
        {
            "user_id": users["user_id"],
            "territory": [territory_of(code) for code in users["zip_code"]],
            "gender": users["gender"],
            "age": [age_band(age) for age in users["age"]],
            "occupation": users["occupation"],
        }
    )


def _read_events(files: MovieLensFiles, min_rating: int) -> pa.Table:
    ratings = files.read_ratings()
    times = np.array(ratings["timestamp"], np.float64)  # of any size, where int64 would overflow
    events = pa.table(
        {"user_id": ratings["user_id"], "title_id": ratings["item_id"], "timestamp": timestamps_from_epoch(times, "s")}
    )
    return events.filter(pa.array(np.array(ratings["rating"]) >= min_rating))

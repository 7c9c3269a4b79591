"""The synthetic source: user ids are bucketed, each bucket generates its rows."""

from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property, partial
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.config import Config, advanced
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import uniforms
from mtrec_ray.sources.calendar import TIMESTAMP, Calendar, Territory
from mtrec_ray.sources.planted import ATTRIBUTE_FREQUENCIES, GLOBAL, REGIONS, PlantedUsers, World, embed, make_world
from mtrec_ray.sources.source import Embeddings, Part, Source, SourceFacts

USERS_PER_PART = 500_000
GENRES = ("Drama", "Comedy", "Action", "Romance", "Documentary", "Thriller", "Animation", "Fantasy")
"""One for each direction of taste; a title has those of its two largest."""


class SyntheticConfig(Config):
    """A streaming service with planted tastes; with the defaults, training takes seconds."""

    users: int = Field(default=20_000, ge=1, le=99_999_999)
    """Users over all territories."""
    territories: int = Field(default=24, ge=4, le=250)
    """Territories, in four regions."""
    titles: int = Field(default=300, ge=2)
    """Titles."""
    days: int = Field(default=90, ge=1)
    """Length of the training window in days."""
    num_evaluation_days: int = Field(default=3, ge=0)
    """Days after the window."""
    first_day: date = advanced(date(2022, 1, 1))
    """First day of the window, UTC."""
    user_width: int = advanced(64, ge=1)
    """Width of the user embeddings (Gampa et al. 2023: 512)."""
    title_width: int = advanced(64, ge=1)
    """Width of the title embeddings (Gampa et al. 2023: 768 and categoricals)."""
    events_per_user: float = Field(default=20.0, gt=0)
    """Mean events of an active user in the window."""
    evaluation_boost: float = advanced(3.0, gt=0)
    """Events of an evaluation day relative to a day of the window: tests need enough of them."""
    size_exponent: float = advanced(1.0, ge=0)
    """Zipf exponent of the territories' sizes; 0 = all alike, 1 = heavy tail."""
    popularity_spread: float = advanced(1.0, ge=0)
    """Standard deviation of the titles' popularity in logits."""
    taste_scale: float = advanced(2.0, ge=0)
    """Standard deviation of the taste part of the logits."""
    taste_groups: Literal["regions", "shuffled", "one"] = advanced("regions")
    """Which territories have a taste in common: those of a region, a balanced random four, or all."""
    attribute_correlation: float = Field(default=0.7, ge=0, le=1)
    """Correlation of each sensitive attribute with a direction of the taste."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random numbers."""


class SyntheticSource(Source):
    """A generated streaming service with planted ground truth (see `planted`)."""

    def __init__(self, config: SyntheticConfig, raw: str | None = None):
        if raw is not None:
            raise UserError("source 'synthetic' is generated and reads no raw files: leave --raw out")
        self.config = config
        self.territories = [f"T{rank:03d}" for rank in range(1, config.territories + 1)]  # the largest first
        self.title_ids = [f"t{number:06d}" for number in range(config.titles)]

    @cached_property
    def world(self) -> World:
        """Drawn by the driver; workers get it with the source."""
        return make_world(self.config)

    @property
    def facts(self) -> SourceFacts:
        config, start = self.config, datetime.combine(self.config.first_day, time(), UTC)
        end, regions = start + timedelta(days=config.days), zip(self.territories, self.world.region, strict=True)
        return SourceFacts(
            source="synthetic",
            territories=[Territory(name=name, region=REGIONS[region]) for name, region in regions],
            attributes={name: list(values) for name, values in ATTRIBUTE_FREQUENCIES.items()},
            calendar=Calendar(window_start=start, window_end=end, num_evaluation_days=config.num_evaluation_days),
            num_users=config.users,
            title_categoricals=["format", "decade"],
            embeddings=Embeddings(
                user_width=config.user_width,
                title_width=config.title_width,
                description="planted taste with noise; territory and group do not show",
            ),
            notes=[f"generated, seed {config.seed}"],
        )

    def titles(self) -> pa.Table:
        config, world = self.config, self.world
        numbers = np.arange(config.titles, dtype=np.uint64)
        genres = [[GENRES[i] for i in np.argsort(-taste, kind="stable")[:2]] for taste in world.title_taste]
        return pa.table(
            {
                "title_id": self.title_ids,
                "name": [f"Title {n}" for n in range(config.titles)],
                "genres": [" ".join(words) for words in genres],
                "synopsis": [f"A story of {' and '.join(words).lower()}." for words in genres],
                "format": np.where(uniforms(numbers, config.seed, "format") < 0.5, "film", "series").tolist(),
                "decade": [f"{1970 + 10 * int(6 * u)}s" for u in uniforms(numbers, config.seed, "decade")],
                "territories": [[] if home == GLOBAL else [self.territories[home]] for home in world.home],
                "embedding": fixed_width_column(embed(config.seed, numbers, world.title_taste, world.title_lift)),
            }
        )

    def parts(self, table: str) -> list[Part]:
        """The ids of users; `complete_bucket` generates the rest."""
        num_users = self.config.users if table == "users" else 0
        starts = range(0, num_users, USERS_PER_PART)
        return [partial(_user_ids, start, min(start + USERS_PER_PART, num_users)) for start in starts]

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        ids = users["user_id"].sort()
        planted = self.planted(pa.table({"user_id": ids}))
        user_row, title_index, time_us = planted.draw_events()
        start_us = int(self.facts.calendar.window_start.timestamp()) * 1_000_000
        events = {
            "user_id": ids.take(pa.array(user_row)),
            "title_id": _take(self.title_ids, title_index),
            "timestamp": pa.array(time_us + start_us).cast(TIMESTAMP),
        }
        columns = {"user_id": ids, "territory": _take(self.territories, planted.territory)}
        values_and_codes = zip(ATTRIBUTE_FREQUENCIES.items(), planted.attribute_codes().T, strict=True)
        columns |= {name: _take(list(values), codes) for (name, values), codes in values_and_codes}
        matrix = embed(self.config.seed, planted.numbers, planted.taste, self.world.user_lift)
        return pa.table(columns | {"embedding": fixed_width_column(matrix)}), pa.table(events)

    def planted(self, users: pa.Table) -> PlantedUsers:
        """The planted numbers of the users of a table."""
        numbers = [int(user_id[1:]) for user_id in users["user_id"].to_pylist()]
        return PlantedUsers.draw(self.world, np.array(numbers, dtype=np.uint64))


def _user_ids(start: int, stop: int) -> pa.Table:
    return pa.table({"user_id": [f"u{number:08d}" for number in range(start, stop)]})


def _take(names: list[str], codes: np.ndarray) -> pa.Array:
    """Names by their index; -1 becomes null."""
    return pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))

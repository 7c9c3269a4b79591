"""The synthetic source: only user ids are bucketed, then each bucket generates its users and events."""

from datetime import UTC, datetime, time, timedelta
from functools import partial

import numpy as np
import pyarrow as pa

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import uniforms
from mtrec_ray.sources.calendar import Calendar, Territory
from mtrec_ray.sources.epochs import TIMESTAMP
from mtrec_ray.sources.planted import (
    ATTRIBUTE_FREQUENCIES,
    GLOBAL,
    TASTE_WIDTH,
    attribute_codes,
    embeddings,
    is_active,
    make_world,
    territory_index,
    user_taste,
)
from mtrec_ray.sources.planted_events import draw_events
from mtrec_ray.sources.source import Part, Source, SourceFacts, make_titles
from mtrec_ray.sources.synthetic_config import REGIONS, SyntheticConfig

USERS_PER_PART = 500_000
GENRES = ("Drama", "Comedy", "Action", "Romance", "Documentary", "Thriller", "Animation", "Fantasy")
"""One for each direction of taste; a title has those of its two largest."""


class SyntheticSource(Source):
    """A generated streaming service with planted ground truth (see `planted`)."""

    def __init__(self, config: SyntheticConfig, raw: str | None = None):
        if raw is not None:
            raise UserError("source 'synthetic' is generated and reads no raw files: leave --raw out")
        self.config = config

    @property
    def facts(self) -> SourceFacts:
        config, region = self.config, make_world(self.config).region
        start = datetime.combine(config.first_day, time(), UTC)
        return SourceFacts(
            name="synthetic",
            territories=tuple(
                Territory(name=name, region=REGIONS[region])
                for name, region in zip(_territory_names(config), region.tolist(), strict=True)
            ),
            attributes={name: tuple(values) for name, values in ATTRIBUTE_FREQUENCIES.items()},
            calendar=Calendar(
                window_start=start,
                window_end=start + timedelta(days=config.days),
                num_evaluation_days=config.num_evaluation_days,
            ),
            num_users=config.users,
            title_categoricals=("format", "decade"),
            user_width=config.user_width,
            title_width=config.title_width,
            embedding_description="planted taste with noise; territory and group do not show",
            notes=(f"generated, seed {config.seed}; the planted ground truth is in truth/",),
        )

    def titles(self) -> pa.Table:
        config, world = self.config, make_world(self.config)
        territories, numbers = _territory_names(config), np.arange(config.titles, dtype=np.uint64)
        genres = [[GENRES[i] for i in np.argsort(-taste, kind="stable")[:2]] for taste in world.title_taste]
        matrix = embeddings(numbers, world.title_taste, world.title_lift, config.embedding_noise, config.seed)
        return make_titles(
            _title_ids(config),
            [[] if home == GLOBAL else [territories[home]] for home in world.home.tolist()],
            name=[f"Title {n}" for n in range(config.titles)],
            genres=[" ".join(words) for words in genres],
            synopsis=[f"A story of {' and '.join(words).lower()}." for words in genres],
            format=np.where(uniforms(numbers, config.seed, "format") < 0.5, "film", "series").tolist(),
            decade=[f"{1970 + 10 * int(6 * u)}s" for u in uniforms(numbers, config.seed, "decade")],
        ).append_column("embedding", fixed_width_column(matrix))

    def user_parts(self) -> list[Part]:
        starts = range(0, self.config.users, USERS_PER_PART)
        return [partial(_user_ids, start, min(start + USERS_PER_PART, self.config.users)) for start in starts]

    def event_parts(self) -> list[Part]:
        return []

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        config, world = self.config, make_world(self.config)
        users = users.select(["user_id"]).sort_by("user_id")
        numbers = _user_numbers(users)
        territory, taste = territory_index(world, numbers), user_taste(world, numbers)
        user_row, title_index, time_us = draw_events(config, world, numbers, territory, taste)
        start_us = int(self.facts.calendar.window_start.timestamp()) * 1_000_000
        codes = attribute_codes(config, world, numbers, taste)
        users = users.append_column("territory", _take(_territory_names(config), territory))
        for i, (name, values) in enumerate(ATTRIBUTE_FREQUENCIES.items()):
            users = users.append_column(name, _take(list(values), codes[:, i]))
        matrix = embeddings(numbers, taste, world.user_lift, config.embedding_noise, config.seed)
        events = pa.table(
            {
                "user_id": users["user_id"].take(pa.array(user_row)),
                "title_id": _take(_title_ids(config), title_index),
                "timestamp": pa.array(time_us + start_us).cast(TIMESTAMP),
            }
        )
        return users.append_column("embedding", fixed_width_column(matrix)), events

    def truth(self) -> dict[str, pa.Table]:
        """`territories`, `titles` and `groups`: tastes, popularity, and M_g row by row with the scale of the logits."""
        config, world = self.config, make_world(self.config)
        vector = pa.list_(pa.float64())
        territories = {
            "territory": _territory_names(config),
            "region": [REGIONS[i] for i in world.region],
            "taste_group": world.taste_group,
            "user_share": world.user_fraction,
            "active_share": world.active_fraction,
        }
        titles = {
            "title_id": _title_ids(config),
            "taste": pa.array(list(world.title_taste), vector),
            "popularity": world.popularity,
            "is_local": world.home != GLOBAL,
        }
        groups = {
            "taste_group": np.arange(len(REGIONS)),
            "matrix": pa.array(list(world.group_matrix.reshape(len(REGIONS), -1)), vector),
            "logit_scale": np.full(len(REGIONS), config.taste_scale / np.sqrt(TASTE_WIDTH)),
            "local_boost": np.full(len(REGIONS), config.local_boost),
        }
        return {"territories": pa.table(territories), "titles": pa.table(titles), "groups": pa.table(groups)}

    def user_truth(self, users: pa.Table) -> pa.Table:
        """`user_id`, `taste` (z_u), `taste_group`, `is_active`."""
        world = make_world(self.config)
        numbers = _user_numbers(users)
        territory = territory_index(world, numbers)
        return pa.table(
            {
                "user_id": users["user_id"],
                "taste": pa.array(list(user_taste(world, numbers)), pa.list_(pa.float32())),
                "taste_group": world.taste_group[territory],
                "is_active": is_active(world, numbers, territory),
            }
        )


def _user_ids(start: int, stop: int) -> pa.Table:
    return pa.table({"user_id": [f"u{number:08d}" for number in range(start, stop)]})


def _user_numbers(users: pa.Table) -> np.ndarray:
    return np.array([int(user_id[1:]) for user_id in users["user_id"].to_pylist()], dtype=np.uint64)


def _title_ids(config: SyntheticConfig) -> list[str]:
    return [f"t{number:06d}" for number in range(config.titles)]


def _territory_names(config: SyntheticConfig) -> list[str]:
    """The largest first."""
    return [f"T{rank:03d}" for rank in range(1, config.territories + 1)]


def _take(names: list[str], codes: np.ndarray) -> pa.Array:
    """Names by their index; -1 becomes null."""
    return pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))

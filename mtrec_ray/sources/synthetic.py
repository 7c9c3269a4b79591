"""The synthetic source: light rows (user ids) are bucketed, and each bucket generates its users and events itself."""

from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa

from mtrec_ray.columns import fixed_width_column
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import uniforms
from mtrec_ray.sources.calendar import Calendar, Territory
from mtrec_ray.sources.epochs import TIMESTAMP, epoch_us
from mtrec_ray.sources.planted import (
    ATTRIBUTE_SHARES,
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
from mtrec_ray.sources.source import Part, Source, SourceFacts
from mtrec_ray.sources.synthetic_config import REGIONS, SyntheticConfig

USERS_PER_PART = 500_000
GENRES = ("Drama", "Comedy", "Action", "Romance", "Documentary", "Thriller", "Animation", "Fantasy")
"""One for each direction of taste; a title carries its two strongest."""


class SyntheticSource(Source):
    """A generated streaming service with planted truth (see `planted`)."""

    def __init__(self, config: SyntheticConfig, raw: str | None = None):
        if raw is not None:
            raise UserError("source 'synthetic' is generated and reads no raw files: leave --raw out")
        self.config = config

    @property
    def facts(self) -> SourceFacts:
        config, world = self.config, make_world(self.config)
        start = _first_moment(config)
        return SourceFacts(
            name="synthetic",
            territories=tuple(
                Territory(name=name, region=REGIONS[region])
                for name, region in zip(_territory_names(config), world.region.tolist(), strict=True)
            ),
            attributes={name: tuple(shares) for name, shares in ATTRIBUTE_SHARES.items()},
            calendar=Calendar(
                window_start=start,
                window_end=start + timedelta(days=config.days),
                num_evaluation_days=config.num_evaluation_days,
            ),
            num_users=config.users,
            title_categoricals=("format", "decade"),
            user_width=config.user_width,
            title_width=config.title_width,
            embedding_description="lifted planted taste with noise; shows neither territory nor group",
            notes=(f"generated, seed {config.seed}; the planted truth is in truth/",),
        )

    def titles(self) -> pa.Table:
        config, world = self.config, make_world(self.config)
        names, numbers = _territory_names(config), np.arange(config.titles, dtype=np.uint64)
        genres = [" ".join(_genres(taste)) for taste in world.title_taste]
        matrix = embeddings(numbers, world.title_taste, world.title_lift, config.embedding_noise, config.seed)
        return pa.table(
            {
                "title_id": _title_ids(config),
                "name": [f"Title {n}" for n in range(config.titles)],
                "genres": genres,
                "synopsis": [f"A story of {' and '.join(g.lower().split())}." for g in genres],
                "format": np.where(uniforms(numbers, config.seed, "format") < 0.5, "film", "series").tolist(),
                "decade": [f"{1970 + 10 * int(6 * u)}s" for u in uniforms(numbers, config.seed, "decade")],
                "territories": [[] if home == GLOBAL else [names[home]] for home in world.home.tolist()],
                "embedding": fixed_width_column(matrix),
            }
        )

    def user_parts(self) -> list[Part]:
        bounds = range(0, self.config.users, USERS_PER_PART)
        return [partial(_user_ids, start, min(start + USERS_PER_PART, self.config.users)) for start in bounds]

    def event_parts(self) -> list[Part]:
        return []

    def complete_bucket(self, users: pa.Table, events: pa.Table) -> tuple[pa.Table, pa.Table]:
        config, world = self.config, make_world(self.config)
        users = users.select(["user_id"]).sort_by("user_id")
        numbers = _user_numbers(users)
        territory, taste = territory_index(world, numbers), user_taste(world, numbers)
        user_row, title_index, moment_us = draw_events(config, world, numbers, territory, taste)
        moments = moment_us + epoch_us(_first_moment(config))
        codes = attribute_codes(config, world, numbers, taste)
        columns = {"user_id": users["user_id"], "territory": _named(_territory_names(config), territory)}
        for i, (name, shares) in enumerate(ATTRIBUTE_SHARES.items()):
            columns[name] = _named(list(shares), codes[:, i])
        matrix = embeddings(numbers, taste, world.user_lift, config.embedding_noise, config.seed)
        return pa.table(columns | {"embedding": fixed_width_column(matrix)}), pa.table(
            {
                "user_id": users["user_id"].take(pa.array(user_row)),
                "title_id": _title_ids(config).take(pa.array(title_index)),
                "timestamp": pa.array(moments).cast(TIMESTAMP),
            }
        )

    def truth(self) -> dict[str, pa.Table]:
        """`territories`, `titles` and `groups`: group, taste and popularity; M_g row by row with the logits' scale."""
        config, world = self.config, make_world(self.config)
        return {
            "territories": pa.table(
                {
                    "territory": _territory_names(config),
                    "region": [REGIONS[i] for i in world.region],
                    "taste_group": world.taste_group,
                    "user_share": world.territory_share,
                    "active_share": world.active_share,
                }
            ),
            "titles": pa.table(
                {
                    "title_id": _title_ids(config),
                    "taste": pa.array(list(world.title_taste), pa.list_(pa.float64())),
                    "popularity": world.popularity,
                    "is_local": world.home != GLOBAL,
                }
            ),
            "groups": pa.table(
                {
                    "taste_group": np.arange(len(REGIONS)),
                    "matrix": pa.array(list(world.group_matrix.reshape(len(REGIONS), -1)), pa.list_(pa.float64())),
                    "logit_scale": np.full(len(REGIONS), config.taste_scale / np.sqrt(TASTE_WIDTH)),
                    "local_boost": np.full(len(REGIONS), config.local_boost),
                }
            ),
        }

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


def _title_ids(config: SyntheticConfig) -> pa.Array:
    return pa.array([f"t{number:06d}" for number in range(config.titles)])


def _territory_names(config: SyntheticConfig) -> list[str]:
    """The largest first."""
    return [f"T{rank:03d}" for rank in range(1, config.territories + 1)]


def _named(names: list[str], codes: np.ndarray) -> pa.Array:
    """Strings of the codes; -1 becomes null."""
    return pa.array(names, pa.string()).take(pa.array(codes, mask=codes < 0))


def _genres(taste: np.ndarray) -> list[str]:
    return [GENRES[i] for i in np.argsort(-taste, kind="stable")[:2]]


def _first_moment(config: SyntheticConfig) -> datetime:
    return datetime(config.first_day.year, config.first_day.month, config.first_day.day, tzinfo=UTC)

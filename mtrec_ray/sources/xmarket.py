"""XMarket (Bonab et al., CIKM 2021), the WSDM Cup 2022 split: one folder per market, users of one market only.

    <market>/train.tsv        userId itemId rating       all interactions, without order or time
    <market>/valid_qrel.tsv   userId itemId rating       one held-out positive per user (some markets)
    <market>/valid_run.tsv    userId item,item,...       candidates of each user, the positive among them (some markets)

Territory = market. The window is one day, 2022-01-01, that carries every training event at its first moment; the
held-out positives are the day after.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import uniforms, user_keys
from mtrec_ray.sources.calendar import Calendar, Territory
from mtrec_ray.sources.epochs import TIMESTAMP
from mtrec_ray.sources.source import Part, Source, SourceFacts, raw_folder
from mtrec_ray.sources.text import read_columns, to_ints

WINDOW_START = datetime(2022, 1, 1, tzinfo=UTC)
TEST_DAY = WINDOW_START + timedelta(days=1)
COLUMNS = ["userId", "itemId", "rating"]


class XMarketConfig(Config):
    """What is held out of XMarket."""

    holdout: Literal["qrel", "validation"] = "qrel"
    """qrel: the published positives are the test day. validation: they are never read; one training interaction of each
    user with enough of them becomes the test day, for choices made without the test data."""
    min_interactions: int = Field(default=3, ge=2)
    """validation: users with fewer training interactions keep them all in training."""
    seed: int = Field(default=0, ge=0)
    """validation: seed of the choice."""


@dataclass(frozen=True)
class Market:
    """One market's files, read."""

    name: str
    train: pd.DataFrame
    """`user_id`, `title_id`"""
    held_out: pd.DataFrame
    """The same columns; empty where there is no test day."""
    candidates: list[tuple[str, list[str]]]
    """(user, titles) of each line."""


class XMarketSource(Source):
    """Reads the markets found in `raw`."""

    def __init__(self, config: XMarketConfig, raw: str | None):
        self.config = config
        self.folder = raw_folder("xmarket", raw)
        self.market_names = sorted(path.parent.name for path in self.folder.glob("*/train.tsv"))
        if not self.market_names:
            raise UserError(f"{str(self.folder)!r} has no market: each is a folder with a train.tsv")

    def __getstate__(self) -> dict:
        """Workers get the paths and facts, not the rows."""
        return {name: value for name, value in self.__dict__.items() if name != "markets"}

    @cached_property
    def markets(self) -> list[Market]:
        return [read_market(self.folder, name, self.config) for name in self.market_names]

    @cached_property
    def facts(self) -> SourceFacts:
        return SourceFacts(
            name="xmarket",
            territories=tuple(Territory(name=name, region=name) for name in self.market_names),
            attributes={},
            calendar=Calendar(window_start=WINDOW_START, window_end=TEST_DAY, num_evaluation_days=1, ordered=False),
            num_users=sum(len(market.train["user_id"].unique()) for market in self.markets),
            notes=self._notes(),
            trained_users_are_tested=True,
            has_candidates=any(market.candidates for market in self.markets),
        )

    def titles(self) -> pa.Table:
        """Titles are offered in the markets where they occur; XMarket says nothing else about them."""
        pairs = pd.concat([_occurrences(market) for market in self.markets]).drop_duplicates()
        offered = pairs.groupby("title_id", sort=True)["territory"].agg(sorted)
        unknown = pa.nulls(len(offered), pa.string())
        return pa.table(
            {
                "title_id": pa.array(offered.index.to_list(), pa.string()),
                "name": unknown,
                "genres": unknown,
                "synopsis": unknown,
                "territories": pa.array(offered.to_list(), pa.list_(pa.string())),
            }
        )

    def user_parts(self) -> list[Part]:
        return [partial(_read_users, self.folder, name, self.config) for name in self.market_names]

    def event_parts(self) -> list[Part]:
        return [partial(_read_events, self.folder, name, self.config) for name in self.market_names]

    def candidate_parts(self) -> list[Part]:
        chosen = [market.name for market in self.markets if market.candidates]
        return [partial(_read_candidates, self.folder, name, self.config) for name in chosen]

    def _notes(self) -> tuple[str, ...]:
        untested = [market.name for market in self.markets if market.held_out.empty]
        fixed = [market.name for market in self.markets if market.candidates]
        held_out = {
            "qrel": "held-out positives: the published valid_qrel.tsv",
            "validation": f"held-out positives: one training interaction of each user with at least "
            f"{self.config.min_interactions}, seed {self.config.seed}; valid_qrel.tsv was not read",
        }[self.config.holdout]
        return (
            "neither order nor time exists inside the window: all its events carry one timestamp",
            "test users have training interactions too",
            "every market is a region of its own",
            held_out,
            f"markets without a test day: {', '.join(untested) or 'none'}",
            f"markets with fixed candidates: {', '.join(fixed) or 'none'}",
        )


def read_market(folder: Path, name: str, config: XMarketConfig) -> Market:
    """Read one market; with `holdout: validation` neither valid_qrel.tsv nor valid_run.tsv is touched.

    Raises:
        UserError: a file is missing, truncated, or not in the form above.
    """
    train = _read_pairs(folder / name / "train.tsv")
    if config.holdout == "validation":
        chosen = choose_held_out(train, config.min_interactions, config.seed)
        return Market(name, train.loc[~chosen], train.loc[chosen], [])
    qrel, run = folder / name / "valid_qrel.tsv", folder / name / "valid_run.tsv"
    held_out = _read_pairs(qrel) if qrel.exists() else train.iloc[:0]
    return Market(name, train, held_out, _read_run(run) if run.exists() else [])


def choose_held_out(train: pd.DataFrame, min_interactions: int, seed: int) -> np.ndarray:
    """(rows,) True for one interaction of each user with at least `min_interactions`, that of the smallest hash."""
    draw = pd.Series(uniforms(user_keys(train["user_id"].to_numpy()), seed, user_keys(train["title_id"].to_numpy())))
    users = train["user_id"].to_numpy()
    first = draw.groupby(users).transform("idxmin").to_numpy() == np.arange(len(train))
    enough = draw.groupby(users).transform("size").to_numpy() >= min_interactions
    return first & enough


def _read_pairs(path: Path) -> pd.DataFrame:
    users, titles, ratings = read_columns(path, "\t", COLUMNS, header=True)
    to_ints(ratings, path, "rating", header=True)
    return pd.DataFrame({"user_id": users, "title_id": titles}, dtype=object)


def _read_run(path: Path) -> list[tuple[str, list[str]]]:
    users, titles = read_columns(path, "\t", ["userId", "candidates"], header=False)
    return [(user, listed.split(",")) for user, listed in zip(users, titles, strict=True)]


def _read_users(folder: Path, name: str, config: XMarketConfig) -> pa.Table:
    market = read_market(folder, name, config)
    users = pd.concat([market.train["user_id"], market.held_out["user_id"]]).unique().tolist()
    return pa.table({"user_id": pa.array(users, pa.string()), "territory": pa.array([name] * len(users), pa.string())})


def _read_events(folder: Path, name: str, config: XMarketConfig) -> pa.Table:
    market = read_market(folder, name, config)
    moments = [WINDOW_START] * len(market.train) + [TEST_DAY] * len(market.held_out)
    rows = pd.concat([market.train, market.held_out])
    return pa.table(
        {
            "user_id": pa.array(rows["user_id"].to_list(), pa.string()),
            "title_id": pa.array(rows["title_id"].to_list(), pa.string()),
            "timestamp": pa.array(moments, TIMESTAMP),
        }
    )


def _read_candidates(folder: Path, name: str, config: XMarketConfig) -> pa.Table:
    rows = read_market(folder, name, config).candidates
    return pa.table(
        {
            "user_id": pa.array([user for user, _ in rows], pa.string()),
            "title_ids": pa.array([titles for _, titles in rows], pa.list_(pa.string())),
        }
    )


def _occurrences(market: Market) -> pd.DataFrame:
    listed = [title for _, titles in market.candidates for title in titles]
    titles = {*market.train["title_id"], *market.held_out["title_id"], *listed}
    return pd.DataFrame({"title_id": sorted(titles), "territory": market.name})

"""XMarket (Bonab et al., CIKM 2021), the WSDM Cup 2022 split: a folder per market.

    <market>/train.tsv        userId itemId rating    all interactions, without order or time
    <market>/valid_qrel.tsv   userId itemId rating    one held-out positive per user (some markets)
    <market>/valid_run.tsv    userId item,item,...    titles to rank for each user, the positive among them (some)

Territory = market; a user is in one market only. The training window is one day, 2022-01-01, and all its events carry
its first timestamp; the held-out positives are the day after.
"""

# pyright: reportAttributeAccessIssue=false

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from mtrec_ray.config import Config
from mtrec_ray.errors import UserError
from mtrec_ray.hashing import uniforms, user_keys
from mtrec_ray.sources.calendar import TIMESTAMP, Calendar, Territory
from mtrec_ray.sources.source import Part, Source, SourceFacts, raw_folder
from mtrec_ray.sources.text import TextFile

WINDOW_START = datetime(2022, 1, 1, tzinfo=UTC)
TEST_DAY = WINDOW_START + timedelta(days=1)
MIN_INTERACTIONS = 3  # validation: users with fewer training interactions keep them all in training


class XMarketConfig(Config):
    """What is held out of XMarket."""

    holdout: Literal["qrel", "validation"] = "qrel"
    """qrel: the published positives are the test day. validation: they are never read; one training interaction of each
    user with at least three becomes the test day, for choices made without the test data."""
    seed: int = Field(default=0, ge=0)
    """validation: seed of the choice."""


@dataclass(frozen=True)
class Market:
    """The tables of one market; small enough to be sent to the workers."""

    name: str
    users: pa.Table
    events: pa.Table  # Held-out positives have the timestamp `TEST_DAY`
    candidates: pa.Table  # A row for each line of valid_run.tsv

    @staticmethod
    def read(folder: Path, config: XMarketConfig) -> "Market":
        """Read a market; with `holdout: validation` no file of the test is opened."""
        train = _read_pairs(folder / "train.tsv")
        held_out, candidates = train.iloc[:0], {"user_id": [], "title_ids": []}
        if config.holdout == "validation":
            chosen = choose_held_out(train, config.seed)
            train, held_out = train.loc[~chosen], train.loc[chosen]
        else:
            if (folder / "valid_qrel.tsv").exists():
                held_out = _read_pairs(folder / "valid_qrel.tsv")
            if (folder / "valid_run.tsv").exists():
                file = TextFile.open(folder / "valid_run.tsv", ("user_id", "title_ids"), has_header=False)
                candidates = file.read().to_pydict()
        pairs = pd.concat([train, held_out])
        users = pairs["user_id"].unique().tolist()
        times = [WINDOW_START] * len(train) + [TEST_DAY] * len(held_out)
        return Market(
            folder.name,
            pa.table({"user_id": users, "territory": [folder.name] * len(users)}),
            pa.table(pairs.to_dict("list") | {"timestamp": pa.array(times, TIMESTAMP)}),
            pa.table(candidates | {"title_ids": [listed.split(",") for listed in candidates["title_ids"]]}),
        )


class XMarketSource(Source):
    """Reads the markets found in `raw`."""

    def __init__(self, config: XMarketConfig, raw: str | None):
        self.config = config
        folder = raw_folder("xmarket", raw)
        self.markets = [Market.read(path.parent, config) for path in sorted(folder.glob("*/train.tsv"))]
        if not self.markets:
            raise UserError(f"{str(folder)!r} has no market: each is a folder with a train.tsv")

    @cached_property
    def facts(self) -> SourceFacts:
        held_out = "the published valid_qrel.tsv"
        if self.config.holdout == "validation":
            held_out = (
                f"one training interaction of each user with at least {MIN_INTERACTIONS}, seed {self.config.seed}; "
                "valid_qrel.tsv was not read"
            )
        untested = [market.name for market in self.markets if pc.max(market.events["timestamp"]).as_py() != TEST_DAY]
        fixed = [market.name for market in self.markets if market.candidates.num_rows]
        return SourceFacts(
            source="xmarket",
            territories=[Territory(name=market.name, region=market.name) for market in self.markets],
            attributes={},
            calendar=Calendar(window_start=WINDOW_START, window_end=TEST_DAY, num_evaluation_days=1, ordered=False),
            num_users=sum(market.users.num_rows for market in self.markets),
            notes=[
                "events of the training window have neither order nor time: all carry one timestamp",
                "test users have training interactions too",
                "every market is a region of its own",
                f"held-out positives: {held_out}",
                f"markets without a test day: {', '.join(untested) or 'none'}",
                f"markets with fixed titles to rank: {', '.join(fixed) or 'none'}",
            ],
            trained_users_are_tested=True,
        )

    def titles(self) -> pa.Table:
        """Titles are offered in the markets where they occur; nothing else is known of them."""
        offered: dict[str, list[str]] = {}
        for market in self.markets:
            lists = market.candidates["title_ids"].to_pylist()
            for title_id in set(market.events["title_id"].to_pylist()).union(*lists):
                offered.setdefault(title_id, []).append(market.name)
        return pa.table({"title_id": list(offered), "territories": list(offered.values())})

    def parts(self, table: str) -> list[Part]:
        return [partial(getattr, market, table) for market in self.markets if getattr(market, table).num_rows]


def choose_held_out(train: pd.DataFrame, seed: int) -> np.ndarray:
    """(rows,) True for one row, that of the smallest hash, of users with MIN_INTERACTIONS."""
    users = train["user_id"].to_numpy()
    draw = pd.Series(uniforms(user_keys(users), seed, user_keys(train["title_id"].to_numpy()))).groupby(users)
    is_first = draw.transform("idxmin").to_numpy() == np.arange(len(train))
    return is_first & (draw.transform("size").to_numpy() >= MIN_INTERACTIONS)


def _read_pairs(path: Path) -> pd.DataFrame:
    file = TextFile.open(path, ("userId", "itemId", "rating"))
    rows = file.read()
    file.numbers(rows, "rating")  # ratings are not used, but a damaged line is found
    return pd.DataFrame({"user_id": rows["userId"].to_pylist(), "title_id": rows["itemId"].to_pylist()}, dtype=object)

"""XMarket (Bonab et al., CIKM 2021), the WSDM Cup 2022 split: a folder per market.

    <market>/train.tsv        userId itemId rating    all interactions, without order or time
    <market>/valid_qrel.tsv   userId itemId rating    one held-out positive per user (some markets)
    <market>/valid_run.tsv    userId item,item,...    titles to rank for each user, the positive among them (some)

Territory = market; a user is in one market only. The training window is one day, 2022-01-01, and all its events carry
its first timestamp; the held-out positives are the day after.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Callable
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
from mtrec_ray.sources.source import Part, RawFile, Source, SourceFacts, raw_folder
from mtrec_ray.sources.text import TextFile, find_file
from mtrec_ray.sources.values import id_text, text_lists

WINDOW_START = datetime(2022, 1, 1, tzinfo=UTC)
TEST_DAY = WINDOW_START + timedelta(days=1)
PAIRS = pa.schema([("user_id", pa.string()), ("title_id", pa.string())])
CANDIDATES = pa.schema([("user_id", pa.string()), ("title_ids", pa.list_(pa.string()))])
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
    raw_files: list[RawFile]

    @staticmethod
    def read(folder: Path, config: XMarketConfig) -> "Market":
        """Read a market; with `holdout: validation` no file of the test is opened."""
        name, raw_files = folder.name, list[RawFile]()

        def rows_of(file_name: str, table: str, read: Callable[[Path], pa.Table], empty: pa.Table) -> pa.Table:
            path = find_file(folder, file_name)
            if path is None:
                return empty
            rows = read(path)
            raw_files.append(RawFile(table=table, path=f"{name}/{path.name}", rows=rows.num_rows))
            return rows

        no_pairs, candidates = PAIRS.empty_table(), CANDIDATES.empty_table()
        train = rows_of("train.tsv", "events", _read_pairs, no_pairs)
        if config.holdout == "validation":
            chosen = choose_held_out(train, config.seed)
            train, held_out = train.filter(pa.array(~chosen)), train.filter(pa.array(chosen))
        else:
            held_out = rows_of("valid_qrel.tsv", "events", _read_pairs, no_pairs)
            candidates = rows_of("valid_run.tsv", "candidates", _read_candidates, candidates)
        pairs = pa.concat_tables([train, held_out])
        users = pc.unique(pairs["user_id"]).drop_null()  # the build rejects events without a user
        times = [WINDOW_START] * len(train) + [TEST_DAY] * len(held_out)
        return Market(
            name,
            pa.table({"user_id": users, "territory": pa.array([name] * len(users), pa.string())}),
            pairs.append_column("timestamp", pa.array(times, TIMESTAMP)),
            candidates,
            raw_files,
        )


class XMarketSource(Source):
    """Reads the markets found in `raw`."""

    def __init__(self, config: XMarketConfig, raw: str | None):
        self.config = config
        folder = raw_folder("xmarket", raw)
        markets = sorted(
            {path.parent for pattern in ("*/train.tsv", "*/train.tsv.gz") for path in folder.glob(pattern)}
        )
        self.markets = [Market.read(market, config) for market in markets]
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
            raw_files=[file for market in self.markets for file in market.raw_files],
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
            for title_id in set(market.events["title_id"].to_pylist()).union(*lists) - {None}:
                offered.setdefault(title_id, []).append(market.name)
        return pa.table({"title_id": list(offered), "territories": list(offered.values())})

    def parts(self, table: str) -> list[Part]:
        return [partial(getattr, market, table) for market in self.markets if getattr(market, table).num_rows]


def choose_held_out(train: pa.Table, seed: int) -> np.ndarray:
    """(rows,) True for one row, that of the smallest hash, of users with MIN_INTERACTIONS."""
    users, titles = (train[name].to_numpy() for name in ("user_id", "title_id"))
    draw = pd.Series(uniforms(user_keys(users), seed, user_keys(titles))).groupby(users)
    is_first = draw.transform("idxmin").to_numpy() == np.arange(len(train))
    return is_first & (draw.transform("size").to_numpy() >= MIN_INTERACTIONS)


def _read_pairs(path: Path) -> pa.Table:
    file = TextFile.open(path, ("userId", "itemId", "rating"), quoted=True)
    rows = file.read(ids=["userId", "itemId"])
    file.numbers(rows, "rating")  # ratings are not used, but a damaged line is found
    return pa.table({"user_id": rows["userId"], "title_id": rows["itemId"]}, PAIRS)


def _read_candidates(path: Path) -> pa.Table:
    file = TextFile.open(path, ("user_id", "title_ids"), has_header=False, quoted=True)
    rows = file.read(ids=["user_id"])
    lists = text_lists(pc.split_pattern(rows["title_ids"], ","), id_text)
    return pa.table({"user_id": rows["user_id"], "title_ids": lists}, CANDIDATES)

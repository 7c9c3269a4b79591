"""`mtrec partition show`: one partition of a lake's territories, and the evidence for it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from rich.console import RenderableType
from rich.table import Column, Table

from mtrec_ray.console import ProgressCallback
from mtrec_ray.files import exists, write_file
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import Groups, make_groups
from mtrec_ray.streams.plan import count_users
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.config import PartitionConfig
from mtrec_ray.tuning.data import TrialData, first_buckets
from mtrec_ray.tuning.partitions import NAME, PartitionSpec, groups_document, partition_maker, quick_reader
from mtrec_ray.yaml12 import format_yaml

MAX_NAMES = 12
NUM_TITLES = 3
MIN_DEVIATIONS = 2  # standard deviations above expectation from which a title is listed


@dataclass(frozen=True)
class PartitionResult:
    """Groups of a lake's territories with their sizes and the evidence behind them."""

    lake: Lake
    name: str
    groups: Groups
    discoveries: np.ndarray  # (N, T) in the training window, by territory and title
    users: np.ndarray  # (N,) training users
    cosines: np.ndarray  # (N, N) of the territories' evidence

    @property
    def metrics(self) -> pd.DataFrame:
        """One row a territory: territory, group, users, discoveries."""
        groups = [self.groups.names[group] for group in self.groups.of_territory]
        columns = {"territory": self.lake.territory_names(), "group": groups, "users": self.users}
        return pd.DataFrame(columns | {"discoveries": self.discoveries.sum(axis=1)})

    def document(self) -> dict[str, Any]:
        return {
            "version": 1,
            "partition": self.name,
            "groups": groups_document(self.groups, self.lake.territory_names()),
            "territories": self.metrics.set_index("territory").drop(columns="group").to_dict(orient="index"),
        }

    def tables(self) -> list[RenderableType]:
        headers = ("group", "territories", "users", "discoveries", "cosine in / out", "discovers most above others")
        columns = (Column(name, overflow="fold") for name in headers)
        table = Table(*columns, title=f"Partition {self.name}: {len(self.groups.names)} groups", show_lines=True)
        names, volume = self.lake.territory_names(), self.discoveries.sum(axis=1)
        titles = pc.coalesce(self.lake.titles["name"], self.lake.titles["title_id"])  # pyright: ignore[reportAttributeAccessIssue]
        for index, name in enumerate(self.groups.names):
            own = np.array(self.groups.of_territory) == index
            ranked = np.flatnonzero(own)[np.argsort(-volume[own], kind="stable")]
            more = [f"and {len(ranked) - MAX_NAMES} more"] if len(ranked) > MAX_NAMES else []
            table.add_row(
                name,
                ", ".join([*(names[t] for t in ranked[:MAX_NAMES]), *more]),
                f"{self.users[own].sum():,}",
                f"{volume[own].sum():,} ({volume[own].sum() / max(1, volume.sum()):.0%})",
                in_and_out(self.cosines, own),
                ", ".join(str(titles[title]) for title in most_lifted(self.discoveries, own)) or "-",
            )
        return [table]


def show_partition(config: PartitionConfig, progress: ProgressCallback | None = None) -> PartitionResult:
    """The partition, written to `config.out` if given; UserError if it does not fit the lake."""
    lake, name = Lake.open(config.lake), config.partition
    calendar, buckets = config.window.resolve(lake.manifest.calendar), first_buckets(lake, config.buckets)
    from_file = None
    if not NAME.fullmatch(name) and exists(name):
        from_file = make_groups(name, lake.manifest)
    else:
        PartitionSpec.parse(name, len(lake.manifest.territories), len(buckets))
    data = TrialData(lake, calendar, buckets, calendar.day_bounds(0), held_back=False)
    settings = PropensityConfig(
        lake=config.lake, name="affinity", kind="baseline", seed=config.seed, sample=config.sample, window=config.window
    )
    maker = partition_maker(settings, data, progress)
    groups = from_file or maker.make(name)
    evidence = maker.evidence["affinity" if name.startswith("affinity") and not from_file else "taste"]()
    catalogue = Catalogue.of(lake, *calendar.day_bounds(0))
    counted = quick_reader().map(count_users, buckets, lake, config.sample, calendar, catalogue)
    users = np.sum([counts.training for _, (counts, _) in counted], axis=0)
    if config.out:
        document = groups_document(groups, lake.territory_names())
        write_file(config.out, format_yaml(document).encode())
    return PartitionResult(lake, name, groups, maker.discoveries, users, evidence.cosines())


def in_and_out(cosines: np.ndarray, own: np.ndarray) -> str:
    """Mean cosine of a group's territories with each other and with others, "-" for none."""
    inside = cosines[np.ix_(own, own)][~np.eye(int(own.sum()), dtype=bool)]
    outside = cosines[np.ix_(own, ~own)]
    return " / ".join(f"{values.mean():+.2f}" if values.size else "-" for values in (inside, outside))


def most_lifted(discoveries: np.ndarray, own: np.ndarray) -> list[int]:
    """Titles that a group, of several that discover them, discovers most above expectation."""
    inside, total = discoveries[own].sum(axis=0), discoveries.sum(axis=0)
    expected = total * discoveries[own].sum() / max(1, discoveries.sum())
    comparable = (discoveries > 0).sum(axis=0) > 1
    lift = np.where(comparable, (inside - expected) / np.sqrt(np.maximum(expected, 1.0)), -np.inf)
    best = np.argsort(-lift, kind="stable")[:NUM_TITLES]
    return [int(title) for title in best if lift[title] > MIN_DEVIATIONS]

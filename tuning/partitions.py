"""Partitions of the territories by name: `one`, `regions`, `taste:4`, `random:4:2`, ...

one, each, regions   all territories together, each alone, by geography
regions:G            regions packed into G groups with equally many discoveries and minor territories (paper A)
volume:G             G groups with equally many discoveries: the largest territory joins the lightest group
taste:G              balanced clusters of what territories discover
affinity:G           balanced clusters of gradients on the shared towers (`tuning.affinity`)
random:G:N           draw N of G groups with equally many territories, large and small ones spread evenly

`taste` and `affinity` without G take the number of groups, 2 to 8, that one half of the users confirms of the other.
Legend: `N` territories, `T` titles.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.shards import count_bucket_discoveries
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.cluster import joins_cluster
from mtrec_ray.lake.manifest import Manifest
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.groups import Groups, make_groups, packed
from mtrec_ray.streams.ordered import CLUSTER, LocalReader, Reader
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.affinity import gradient_evidence
from mtrec_ray.tuning.clustering import Evidence, renumbered
from mtrec_ray.tuning.data import TrialData

PLAIN = ("one", "each", "regions")
KINDS = "regions|volume|taste|affinity|random"
NAME = re.compile(rf"one|each|regions|taste|affinity|({KINDS}):\d+|random:\d+:\d+", re.ASCII)
NAMES = "one, each, regions[:G], volume:G, taste[:G], affinity[:G], random:G[:DRAW] with G groups"
MAX_AUTO_GROUPS = 8
SMOOTHING = 100.0  # discoveries added to each territory's profile, distributed as those of all


@dataclass(frozen=True)
class PartitionSpec:
    """A parsed name."""

    kind: str
    num_groups: int | None = None
    draw: int = 0

    @staticmethod
    def parse(text: str, num_territories: int, num_buckets: int = 2) -> "PartitionSpec":
        """Raises UserError for an unknown name, or numbers that do not fit the lake."""
        if not NAME.fullmatch(text):
            in_search = "(a search takes a file of groups as a choice, model.groups: [one, FILE])"
            raise UserError(f"unknown partition {text!r}: choose {NAMES}, or an existing file of groups {in_search}")
        kind, *numbers = text.split(":")
        if numbers and not 2 <= int(numbers[0]) <= num_territories:
            raise UserError(f"partition {text!r}: the lake has {num_territories} territories, take 2 to as many groups")
        if kind in ("taste", "affinity") and not numbers and num_buckets < 2:
            found = f"partition {text!r} finds its number of groups by two halves of the users, which need two buckets"
            raise UserError(f"{found}: give the number, as in {kind}:4, or read more buckets")
        return PartitionSpec(kind, *map(int, numbers))


@dataclass(frozen=True)
class PartitionMaker:
    """Makes partitions of one lake; `seed` is of random ones and the starts of clustering."""

    manifest: Manifest
    discoveries: np.ndarray  # (N, T) in the training window, by territory and title
    evidence: dict[str, Callable[[], Evidence]]  # of `taste` and `affinity`; called only for partitions of that kind
    seed: int = 0

    @property
    def volume(self) -> np.ndarray:
        return self.discoveries.sum(axis=1)

    def make(self, name: str) -> Groups:
        """The partition of a name; UserError for an unknown name."""
        spec = PartitionSpec.parse(name, len(self.manifest.territories))
        if spec.kind in PLAIN:
            return make_groups(name, self.manifest, lambda: self.volume)
        if spec.kind in self.evidence:
            return numbered_groups(self._clusters(self.evidence[spec.kind](), spec.num_groups))
        assert spec.num_groups is not None, "parse requires it"
        if spec.kind == "volume":
            return numbered_groups(packed(np.maximum(self.volume, 1)[:, None], spec.num_groups))
        return numbered_groups(at_random(self.volume, spec.num_groups, self.seed, spec.draw))

    def _clusters(self, evidence: Evidence, num_groups: int | None) -> np.ndarray:
        if num_groups is None:
            if not evidence.pairs.sum(axis=1).all():
                found = "taste and affinity find their number of groups by two halves of the users, of which one"
                raise UserError(f"{found} has no discovery: give the number, as in taste:4, or read more buckets")
            most = min(MAX_AUTO_GROUPS, len(self.manifest.territories))
            num_groups = evidence.best_count(range(min(2, most), most + 1), self.seed)
        return evidence.clusters(num_groups, self.seed)


def quick_reader() -> Reader:
    """A cluster's reader, or that of this process: a local Ray would take longer to start."""
    return CLUSTER if joins_cluster() else LocalReader()


def partition_maker(config: PropensityConfig, data: TrialData, progress: ProgressCallback | None) -> PartitionMaker:
    """Makes partitions of a lake from what its training users discover in the training window."""
    counts = count_discoveries(data, config.sample, quick_reader(), progress)
    mask = Catalogue.of(data.lake, *data.calendar.day_bounds(0)).offer_mask
    model = config.model.model_copy(update={"groups": None, "group_block": None})
    baseline = config.model_copy(update={"kind": "baseline", "preset": "ours", "model": model})
    evidence = {
        "taste": cache(partial(taste_evidence, counts, mask)),
        "affinity": cache(partial(gradient_evidence, baseline, data)),
    }
    return PartitionMaker(data.lake.manifest, counts.sum(axis=0), evidence, config.seed)


def count_discoveries(
    data: TrialData, sample: SampleConfig, reader: Reader, progress: ProgressCallback | None = None
) -> np.ndarray:
    """(2, N, T) discoveries in the window by training users of even and odd buckets."""
    window = {0: Catalogue.of(data.lake, *data.calendar.day_bounds(0))}
    counts = np.zeros((2, len(window[0].offers), len(window[0].title_ids)), dtype=np.int64)
    shared, stage = (data.lake, sample, window), "counting discoveries"
    counted = reader.map(count_bucket_discoveries, data.buckets, *shared, stage=stage, progress=progress)
    for bucket, found in counted:
        cells, numbers = found.window
        counts[bucket % 2].ravel()[cells] += numbers
    return counts


def taste_evidence(counts: np.ndarray, offer_mask: np.ndarray) -> Evidence:
    """How much more of each title a territory discovers than all do, in standard deviations.

    s_tj = (x_tj - n_t q_tj) / sqrt(q_tj (1 + SMOOTHING / n_t)), q_tj being title j's fraction of what all territories
    discover of the titles offered in t: a smoothed log ratio for popular titles, small for territories with few
    discoveries. Titles offered in a single territory do not compare territories and are left out.
    `counts` (2, N, T) from `count_discoveries`, `offer_mask` (N, T) bool.
    """
    comparable = offer_mask & (offer_mask.sum(axis=0) > 1)
    counts = np.where(comparable, counts, 0).astype(np.float64)
    popularity = (counts.sum(axis=1, keepdims=True) + 0.5) * comparable  # (2, N, T)
    fraction = popularity / np.maximum(popularity.sum(axis=2, keepdims=True), 1.0)
    seen = counts.sum(axis=2, keepdims=True)  # (2, N, 1)
    spread = np.sqrt(fraction * (1.0 + SMOOTHING / np.maximum(seen, 1.0)))
    vectors = np.divide(counts - seen * fraction, spread, out=np.zeros_like(counts), where=spread > 0)
    return Evidence(vectors, seen[:, :, 0])


def at_random(volume: np.ndarray, num_groups: int, seed: int, draw: int) -> np.ndarray:
    """(N,) groups: territories of similar size are dealt out in random order."""
    rng = np.random.default_rng([seed, draw, num_groups])
    group = np.empty(len(volume), dtype=np.int64)
    ranked = np.argsort(-volume, kind="stable")
    for start in range(0, len(ranked), num_groups):
        part = ranked[start : start + num_groups]
        group[part] = rng.permutation(num_groups)[: len(part)]
    return group


def numbered_groups(group: np.ndarray) -> Groups:
    """`group1`, `group2`, ... in the order of their first territory; `group` is (N,)."""
    group = renumbered(group)
    return Groups(names=[f"group{g + 1}" for g in range(int(group.max()) + 1)], of_territory=group.tolist())


def with_moves(groups: Groups, moves: list[tuple[int, int]]) -> Groups:
    """Groups after moves in turn: (territory, the territory whose group it joins)."""
    group = list(groups.of_territory)
    for territory, host in moves:
        group[territory] = group[host]
    return groups if group == groups.of_territory else numbered_groups(np.array(group))


def groups_document(groups: Groups, territories: list[str]) -> dict[str, list[str]]:
    """What a groups file holds: group name -> territories."""
    return {
        name: [territory for territory, own in zip(territories, groups.of_territory, strict=True) if own == index]
        for index, name in enumerate(groups.names)
    }

"""FairnessMethod partitions of the territories into groups, by name: `one`, `regions`, `taste:4`, `random:4:2`, ...

| name | groups |
|---|---|
| one, each, regions | everybody together, alone, by geography |
| volume:G | G groups with equally many discoveries: the largest territory next to the lightest group |
| taste:G | balanced clusters of what territories discover (`tuning.profiles`) |
| affinity:G | balanced clusters of gradients on the shared towers (`tuning.affinity`) |
| random:G:N | the N-th draw of G groups with equally many territories, large and small ones spread evenly |

`taste` and `affinity` without G take the number of groups, 2 to 8, that one half of the users confirms of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Manifest
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.tuning.clustering import Evidence, renumbered

PLAIN = ("one", "each", "regions")
KINDS = (*PLAIN, "volume", "taste", "affinity", "random")
MAX_AUTO_GROUPS = 8


@dataclass(frozen=True)
class Partition:
    """Group of each of N territories, in the lake's order."""

    name: str
    group_names: tuple[str, ...]
    group: tuple[int, ...]

    @staticmethod
    def numbered(name: str, group: np.ndarray) -> "Partition":
        group = renumbered(group)
        return Partition(name, tuple(f"group{g + 1}" for g in range(int(group.max()) + 1)), tuple(group.tolist()))

    def document(self, territories: list[str]) -> dict[str, list[str]]:
        """What a groups file holds: group name -> territories."""
        return {
            name: [territory for territory, own in zip(territories, self.group, strict=True) if own == index]
            for index, name in enumerate(self.group_names)
        }


@dataclass(frozen=True)
class PartitionSpec:
    """A parsed name."""

    kind: str
    num_groups: int | None = None
    draw: int = 0

    @staticmethod
    def parse(text: str, num_territories: int) -> "PartitionSpec":
        """Raises UserError for an unknown kind, or numbers that the kind or the lake does not have."""
        kind, *numbers = str(text).split(":")
        if kind not in KINDS:
            raise UserError(
                f"unknown partition {text!r}: choose {', '.join(KINDS)}, the last four with :GROUPS; a search takes a "
                "file of groups as a choice, model.groups: [one, FILE]"
            )
        most = 0 if kind in PLAIN else 2 if kind == "random" else 1
        if len(numbers) > most or not all(number.isdecimal() for number in numbers):
            raise UserError(
                f"partition {text!r} is not of the form {kind}{':GROUPS' * (most > 0)}{':DRAW' * (most > 1)}"
            )
        if kind in ("volume", "random") and not numbers:
            raise UserError(f"partition {text!r} needs a number of groups: {kind}:4")
        if numbers and not 2 <= int(numbers[0]) <= num_territories:
            raise UserError(f"partition {text!r}: the lake has {num_territories} territories, take 2 to as many groups")
        return PartitionSpec(kind, int(numbers[0]) if numbers else None, int(numbers[1]) if len(numbers) > 1 else 0)

    def check_halves(self, num_buckets: int) -> None:
        """UserError where the number of groups is to be found in halves of the users that are not there."""
        if self.kind in ("taste", "affinity") and self.num_groups is None and num_buckets < 2:
            raise UserError(
                "taste and affinity find their number of groups by two halves of the users, which one bucket has not: "
                f"name it, as in {self.kind}:4, or read more buckets"
            )


class PartitionMaker:
    """Makes partitions of one lake; evidence is gathered when the first of its kind is asked for.

    Args:
        manifest: of the lake.
        discoveries: (N, T) in the window, by territory and title.
        taste, affinity: gather evidence.
        seed: of random partitions and of the clustering's starts.
    """

    def __init__(
        self,
        manifest: Manifest,
        discoveries: np.ndarray,
        taste: Callable[[], Evidence],
        affinity: Callable[[], Evidence],
        seed: int = 0,
    ) -> None:
        self.manifest, self.discoveries, self.seed = manifest, discoveries, seed
        self._gather = {"taste": taste, "affinity": affinity}

    @cached_property
    def volume(self) -> np.ndarray:
        """(N,) discoveries of each territory."""
        return self.discoveries.sum(axis=1)

    @cached_property
    def taste(self) -> Evidence:
        return self._gather["taste"]()

    @cached_property
    def affinity(self) -> Evidence:
        return self._gather["affinity"]()

    def make(self, name: str) -> Partition:
        """The partition of a name; UserError where the name means none."""
        spec = PartitionSpec.parse(name, len(self.manifest.territories))
        if spec.kind in PLAIN:
            groups = make_groups(spec.kind, self.manifest)
            return Partition(name, tuple(groups.names), tuple(groups.of_territory))
        if spec.kind in self._gather:
            return Partition.numbered(name, self._clusters(getattr(self, spec.kind), spec.num_groups))
        assert spec.num_groups is not None, "parse asks for it"
        if spec.kind == "volume":
            return Partition.numbered(name, by_volume(self.volume, spec.num_groups))
        return Partition.numbered(name, at_random(self.volume, spec.num_groups, self.seed, spec.draw))

    def _clusters(self, evidence: Evidence, num_groups: int | None) -> np.ndarray:
        if num_groups is None and not evidence.pairs.sum(axis=1).all():
            raise UserError(
                "taste and affinity find their number of groups by two halves of the users, of which one "
                "discovers nothing: name it, as in taste:4, or read more buckets"
            )
        most = min(MAX_AUTO_GROUPS, len(self.manifest.territories))
        return evidence.clusters(num_groups or evidence.best_count(range(min(2, most), most + 1), self.seed), self.seed)


def by_volume(volume: np.ndarray, num_groups: int) -> np.ndarray:
    """(N,) groups of about equal volume: from the largest on, each into the lightest group (Graham 1969, LPT)."""
    load, group = np.zeros(num_groups), np.empty(len(volume), dtype=np.int64)
    for territory in np.argsort(-volume, kind="stable"):
        group[territory] = load.argmin()
        load[group[territory]] += max(volume[territory], 1)
    return group


def at_random(volume: np.ndarray, num_groups: int, seed: int, draw: int) -> np.ndarray:
    """(N,) groups: each run of `num_groups` territories of about one size is dealt out in random order."""
    rng = np.random.default_rng([seed, draw, num_groups])
    group = np.empty(len(volume), dtype=np.int64)
    ranked = np.argsort(-volume, kind="stable")
    for start in range(0, len(ranked), num_groups):
        part = ranked[start : start + num_groups]
        group[part] = rng.permutation(num_groups)[: len(part)]
    return group


def with_moves(partition: Partition, moves: list[tuple[int, int]]) -> Partition:
    """The partition after territories moved: (territory, the territory whose group it joins), in turn."""
    group = np.array(partition.group)
    for territory, host in moves:
        group[territory] = group[host]
    if tuple(group.tolist()) == partition.group:
        return partition
    return Partition.numbered(f"{partition.name} moved", group)

"""Territory groups: which territories share a group block."""

import os
import re
from collections.abc import Callable, Sequence

import numpy as np
from pydantic import BaseModel

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import read_file
from mtrec_ray.lake.bucket import Bucket, Catalogue
from mtrec_ray.lake.manifest import Calendar, Lake, Manifest
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.ordered import CLUSTER, Reader
from mtrec_ray.streams.sampling import TRAIN, split_of
from mtrec_ray.yaml12 import parse_yaml

BY_NAME = re.compile(r"one|each|regions(:(?P<number>\d+))?", re.ASCII)
TOO_LARGE = 2.0  # times a group's mean volume: a region with more, without its largest territory, is halved


class Groups(BaseModel, frozen=True, extra="forbid"):
    """A partition of the lake's territories."""

    names: list[str]
    of_territory: list[int]  # index into `names` of each territory, in the lake's order


def make_groups(spec: str, manifest: Manifest, volume: Callable[[], np.ndarray] | None = None) -> Groups:
    """`one`, `each`, `regions`, `regions:N`, or a file or URI.

    A file is YAML, `group name: [territory, ...]`. `volume` counts (territories,) discoveries, for regions:N alone.
    UserError for more groups than territories, an unreadable file, or a territory that is unknown, missing or in two
    groups.
    """
    territories = [t.name for t in manifest.territories]
    named = BY_NAME.fullmatch(spec)
    if named and named["number"] and volume:
        number, most = int(named["number"]), len(territories)
        if not 1 <= number <= most:
            raise UserError(f"model.groups = {spec!r}: the lake has {most} territories: take 1 to {most} groups")
        return balanced_regions([t.region for t in manifest.territories], volume(), number)
    if spec == "one":
        return Groups(names=["all"], of_territory=[0] * len(territories))
    if spec == "each":
        return Groups(names=territories, of_territory=list(range(len(territories))))
    if spec == "regions":
        names = sorted({t.region for t in manifest.territories})
        return Groups(names=names, of_territory=[names.index(t.region) for t in manifest.territories])
    return _from_file(spec, territories)


def training_volume(
    lake: Lake,
    sample: SampleConfig,
    calendar: Calendar,
    buckets: Sequence[int] | None = None,
    progress: ProgressCallback | None = None,
    reader: Reader = CLUSTER,
) -> np.ndarray:
    """(territories,) discoveries in the training window by training users.

    `buckets` are those to read, None is all.
    """
    buckets = range(lake.manifest.num_buckets) if buckets is None else buckets
    shared = lake, sample, Catalogue.of(lake, *calendar.day_bounds(0))
    counted = reader.map(_bucket_volume, buckets, *shared, stage="counting discoveries", progress=progress)
    return np.sum([count for _, count in counted], axis=0)


def _bucket_volume(index: int, lake: Lake, sample: SampleConfig, window: Catalogue) -> np.ndarray:
    bucket = Bucket.read(lake, index)
    users = bucket.event_user[bucket.discoveries(*window.bounds, window.offer_mask)]
    users = users[split_of(bucket.keys, sample)[users] == TRAIN]
    return np.bincount(bucket.territory[users], minlength=len(window.offers))


def balanced_regions(regions: Sequence[str], volume: np.ndarray, num_groups: int) -> Groups:
    """Regions packed into groups of similar volume and number of minor territories.

    As paper A's groups (3.3). `regions` and `volume` are by territory; a territory is minor if its volume is below the
    mean. Regions stay whole, unless there are fewer than groups or one is `TOO_LARGE`: then it is halved.
    """
    size = np.maximum(volume, 1) / np.maximum(volume, 1).sum()
    minor = (size < size.mean()) / max(1, (size < size.mean()).sum())
    loads = np.stack([size, minor], axis=1)  # (territories, 2)
    parts = {name: np.flatnonzero(np.array(regions) == name) for name in sorted(set(regions))}
    while divisible := {name: part for name, part in parts.items() if len(part) > 1}:
        rest = {name: loads[part].sum(axis=0) - loads[part[size[part].argmax()]] for name, part in divisible.items()}
        name = max(rest, key=lambda name: rest[name].sum())  # without its largest territory, which no split makes less
        if len(parts) >= num_groups:
            name = max(rest, key=lambda name: rest[name][0])
            if rest[name][0] <= TOO_LARGE / num_groups:
                break
        part = parts.pop(name)
        half = packed(loads[part], 2)
        parts |= {f"{name} {number + 1}": part[half == number] for number in range(2)}
    group_of = packed(np.stack([loads[part].sum(axis=0) for part in parts.values()]), num_groups)
    group_of_part = dict(zip(parts, group_of.tolist(), strict=True))
    group = np.empty(len(regions), dtype=np.int64)
    for name, part in parts.items():
        group[part] = group_of_part[name]
    order = list(dict.fromkeys(group.tolist()))  # by first territory
    names = ["+".join(name for name, of in group_of_part.items() if of == number) for number in order]
    return Groups(names=names, of_territory=[order.index(number) for number in group.tolist()])


def packed(loads: np.ndarray, num_groups: int) -> np.ndarray:
    """(parts,) groups of (parts, kinds) loads: largest first, to the least sum of squares.

    Of one kind of load, the largest joins the lightest group (Graham 1969, LPT).
    """
    filled, group = np.zeros((num_groups, loads.shape[1])), np.empty(len(loads), dtype=np.int64)
    for part in np.argsort(-loads.sum(axis=1), kind="stable"):
        group[part] = (filled @ loads[part]).argmin()
        filled[group[part]] += loads[part]
    return group


def _from_file(uri: str, territories: list[str]) -> Groups:
    try:
        document = parse_yaml(read_file(uri), f"groups file {uri}")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        found = f"model.groups = {uri!r} is neither one, each, regions, regions:N nor a readable file"
        raise UserError(f"{found}: {reason}") from error
    if not isinstance(document, dict) or not all(isinstance(members, list) for members in document.values()):
        raise UserError(f"groups file {uri} must hold lines `group name: [territory, ...]`")
    group_of: dict[str, int] = {}
    for index, members in enumerate(document.values()):
        for territory in map(str, members):
            if territory not in territories:
                known = ", ".join(territories[:12])
                raise UserError(f"groups file {uri}: unknown territory {territory!r}; the lake has {known}")
            if territory in group_of:
                raise UserError(f"groups file {uri}: territory {territory!r} is in two groups; keep it in one")
            group_of[territory] = index
    missing = [t for t in territories if t not in group_of]
    if missing:
        found = f"groups file {uri} leaves out {len(missing)} territories, first {missing[0]!r}"
        raise UserError(f"{found}: give each a group")
    return Groups(names=[str(name) for name in document], of_territory=[group_of[t] for t in territories])

"""`mtrec partition show`: one partition of a lake's territories, and what speaks for it."""

from typing import Any

import numpy as np
import yaml
from rich.console import RenderableType

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import exists, write_file
from mtrec_ray.lake.cluster import map_tasks
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.lake.window import resolve_calendar
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.streams.counting import count_users
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.config import PartitionConfig
from mtrec_ray.tuning.data import TrialData, first_buckets
from mtrec_ray.tuning.partitions import KINDS, Partition, PartitionSpec
from mtrec_ray.tuning.propensity_search import partition_maker
from mtrec_ray.tuning.report import partition_table


def show_partition(
    config: PartitionConfig, progress: ProgressCallback | None = None
) -> tuple[dict[str, Any], list[RenderableType]]:
    """The partition as a document, and as a table.

    Raises:
        UserError: an unknown kind, or a groups file that misses or repeats a territory.
    """
    lake = Lake.open(config.lake)
    calendar, buckets = resolve_calendar(lake, config.window), first_buckets(lake, config.buckets)
    kind, partition = config.partition.split(":")[0], None
    if kind in KINDS:
        PartitionSpec.parse(config.partition, len(lake.manifest.territories)).check_halves(len(buckets))
    elif not exists(config.partition):
        raise UserError(f"unknown partition {config.partition!r}: choose {', '.join(KINDS)}, or a YAML file of groups")
    else:
        groups = make_groups(config.partition, lake.manifest)
        partition = Partition(config.partition, tuple(groups.names), tuple(groups.of_territory))
    data = TrialData(lake, calendar, buckets, calendar.day_bounds(0), held_back=False)
    settings = PropensityConfig(
        lake=config.lake, name="affinity", kind="baseline", seed=config.seed, sample=config.sample, window=config.window
    )
    maker = partition_maker(settings, data, progress)
    partition = partition or maker.make(config.partition)
    evidence = maker.affinity if kind == "affinity" else maker.taste
    counted = map_tasks(
        count_users, buckets, lake, config.sample, calendar, Catalogue.of(lake, *calendar.day_bounds(0))
    )
    users = np.sum([counts.training for _, counts in counted], axis=0)
    groups = partition.document(lake.territory_names())
    if config.out:
        write_file(config.out, yaml.safe_dump(groups, sort_keys=False).encode())
    document = {"partition": partition.name, "groups": groups, "users": users.tolist()}
    return document, [partition_table(lake, partition, maker.discoveries, users, evidence)]

"""`mtrec partition show`: what it prints can be trained with, and what does not fit is refused before the counting."""

from typing import Any

import pytest
import yaml

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.tuning import show
from mtrec_ray.tuning.config import PartitionConfig
from mtrec_ray.tuning.data import map_here
from mtrec_ray.tuning.show import show_partition


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(show, "map_tasks", map_here)


def shown(lake: Lake, partition: str, **settings: Any) -> dict[str, Any]:
    return show_partition(PartitionConfig(lake=lake.uri, partition=partition, **settings))[0]


def test_the_groups_can_be_trained_with(trial_lake, tmp_path):
    document = shown(trial_lake, "volume:2", out=str(tmp_path / "groups.yaml"))
    assert yaml.safe_load((tmp_path / "groups.yaml").read_text()) == document["groups"]
    groups = make_groups(str(tmp_path / "groups.yaml"), trial_lake.manifest)
    names = [groups.names[group] for group in groups.of_territory]
    for name, territories in document["groups"].items():
        assert {trial_lake.territory_names().index(t) for t in territories} == {
            t for t, own in enumerate(names) if own == name
        }
    again = shown(trial_lake, str(tmp_path / "groups.yaml"))
    assert again["groups"] == document["groups"]


def test_fewer_buckets_hold_fewer_users(trial_lake):
    whole, part = (sum(shown(trial_lake, "one", buckets=count)["users"]) for count in (None, 1))
    assert 0 < part < whole / 2


@pytest.mark.parametrize(
    ("partition", "settings", "says"),
    [
        ("volume:7", {}, "volume:7.*6 territories"),
        ("random:two", {}, "random:two"),
        ("missing.yaml", {}, "unknown partition 'missing.yaml': choose one, each.*, or a YAML file"),
        ("one", {"buckets": 5}, "buckets = 5: the lake has 4"),
        ("taste", {"buckets": 1}, "which one bucket has not: name it, as in taste:4"),
        ("affinity", {"buckets": 1}, "which one bucket has not: name it, as in affinity:4"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(trial_lake, monkeypatch, partition, settings, says):
    monkeypatch.setattr(show, "partition_maker", None)
    with pytest.raises(UserError, match=says):
        shown(trial_lake, partition, **settings)

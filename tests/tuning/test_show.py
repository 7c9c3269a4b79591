"""`mtrec partition show`: groups, figures, table, and refusals before any work."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from rich.table import Table

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import Groups, make_groups
from mtrec_ray.tuning import show
from mtrec_ray.tuning.config import PartitionConfig
from mtrec_ray.tuning.show import PartitionResult, in_and_out, most_lifted, show_partition


def shown(lake: Lake, partition: str, **settings: Any) -> dict[str, Any]:
    return show_partition(PartitionConfig(lake=lake.uri, partition=partition, **settings)).document()


def test_the_groups_file_is_read_back_as_the_same_groups(trial_lake, tmp_path):
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
    documents = [shown(trial_lake, "one", buckets=count)["territories"] for count in (None, 1)]
    whole, part = (sum(sizes["users"] for sizes in document.values()) for document in documents)
    assert 0 < part < whole / 2


@pytest.mark.parametrize(
    ("partition", "settings", "problem"),
    [
        ("volume:7", {}, "volume:7.*6 territories"),
        ("missing.yaml", {}, "unknown partition 'missing.yaml': choose one, each.*, or an existing file of groups"),
        ("one", {"buckets": 5}, "buckets = 5: the lake has 4"),
        ("taste", {"buckets": 1}, "need two buckets: give the number, as in taste:4"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(trial_lake, monkeypatch, partition, settings, problem):
    monkeypatch.setattr(show, "partition_maker", None)
    with pytest.raises(UserError, match=problem):
        shown(trial_lake, partition, **settings)


DISCOVERIES = np.array([[10, 0, 5, 0], [0, 40, 5, 0], [30, 0, 5, 0], [0, 60, 5, 0]])
"""(N, T): north discovers title 0, south title 1, all discover title 2, none title 3."""


def result_of_four() -> PartitionResult:
    titles = {"name": pa.chunked_array([["A", None, "C", "D"]]), "title_id": pa.chunked_array([["a", "b", "c", "d"]])}
    lake: Any = SimpleNamespace(titles=titles, territory_names=lambda: ["NO", "ES", "SE", "IT"])
    groups, cosines = Groups(names=["north", "south"], of_territory=[0, 1, 0, 1]), np.tile(np.eye(2), (2, 2))
    return PartitionResult(lake, "taste:2", groups, DISCOVERIES, np.array([1, 20, 300, 4000]), cosines)


def test_the_table_lists_territories_largest_first_and_the_most_lifted_titles():
    (table,) = result_of_four().tables()
    assert isinstance(table, Table)
    assert table.title == "Partition taste:2: 2 groups"
    rows = zip(*(column.cells for column in table.columns), strict=True)
    assert [list(row) for row in rows] == [
        ["north", "SE, NO", "301", "50 (31%)", "+1.00 / +0.00", "A"],
        ["south", "IT, ES", "4,020", "110 (69%)", "+1.00 / +0.00", "b"],
    ]


def test_metrics_have_a_row_for_each_territory():
    assert result_of_four().metrics.to_numpy().tolist() == [
        ["NO", "north", 1, 15],
        ["ES", "south", 20, 45],
        ["SE", "north", 300, 35],
        ["IT", "south", 4000, 65],
    ]


def test_cosines_inside_and_outside_a_group_are_means():
    cosines = np.array([[1.0, 0.5, -0.2], [0.5, 1.0, 0.4], [-0.2, 0.4, 1.0]])
    assert in_and_out(cosines, np.array([True, True, False])) == "+0.50 / +0.10"
    assert in_and_out(cosines, np.array([False, False, True])) == "- / +0.10"


@pytest.mark.parametrize(
    ("discoveries", "lifted"),
    [
        ([[90, 10], [10, 90]], [0]),
        ([[12, 10], [10, 12]], []),  # less than two standard deviations
        ([[90, 10], [0, 90]], []),  # a single territory discovers title 0
    ],
)
def test_a_lifted_title_is_clearly_above_expectation(discoveries, lifted):
    assert most_lifted(np.array(discoveries), np.array([True, False])) == lifted

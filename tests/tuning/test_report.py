"""Tables of a search: candidates are compared alike, and a moved or otherwise tuned trial is none of them.

And of a partition: each group's own territories, users and discoveries, and what sets it apart.
"""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.partitions import Partition
from mtrec_ray.tuning.report import in_and_out, most_lifted, partition_table, search_tables
from mtrec_ray.tuning.results import DONE, SearchResult, TrialRow
from mtrec_ray.tuning.search import Goal, Prepared
from mtrec_ray.tuning.space import GROUPS, Space

METRIC = "pr_auc/weighted"
LR = "optim.lr"
NUM_GROUPS = {"one": 1, "taste:4": 4, "taste": 4, "taste:2": 2, "random:2:0": 2, "random:4:0": 4, "random:4:1": 4}


def row(partition: str, value: float, lr: float = 0.1, **moves) -> TrialRow:
    params = {GROUPS: partition, LR: lr, "moves": 0} | moves
    return TrialRow(f"{partition} {value}", DONE, params, {METRIC: value}, [])


def printed(rows: list[TrialRow]) -> list[str]:
    first = [{GROUPS: r.params[GROUPS], LR: 0.1, "moves": 0} for r in rows]
    prepared = Prepared(Space(), (Goal(METRIC, "max"),), lambda params: params, first, num_groups=NUM_GROUPS)
    result = SearchResult("searches/x", rows, max(rows, key=lambda r: r.metrics[METRIC]), prepared, ["a note"], [])
    console = Console(file=io.StringIO(), width=200)
    for table in search_tables(result):
        console.print(table)
    return console.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_partition_is_held_against_random_ones_with_as_many_groups():
    rows = [row("taste:4", 0.6), row("taste:2", 0.3), row("random:4:0", 0.4), row("random:4:1", 0.6)]
    lines = printed([*rows, row("random:2:0", 0.3)])
    assert any("taste:4" in line and "+20.0%" in line for line in lines)
    assert any("taste:2" in line and "+0.0%" in line for line in lines)


def test_a_number_of_groups_that_was_found_counts_as_one_that_was_named():
    lines = printed([row("taste", 0.6), row("random:4:0", 0.5), row("random:2:0", 0.3)])
    assert any("taste" in line and "+20.0%" in line for line in lines)


def test_one_group_is_held_against_all_random_ones():
    lines = printed([row("one", 0.2), row("random:4:0", 0.4), row("random:2:0", 0.4)])
    assert any("one" in line and "-50.0% (of 2, 4 groups)" in line for line in lines)


def test_a_trial_with_other_settings_or_moves_is_no_candidate():
    moved = row("random:4:0", 0.9, **{"moves": 1, "move.1": "T001", "move.1.joins": "T002"})
    lines = printed([row("one", 0.2), row("random:4:0", 0.4), row("one", 0.8, lr=0.5), moved])
    assert any("one" in line and "-50.0%" in line for line in lines)
    assert any("random:4:0, T001 to T002" in line and "0.9000" in line for line in lines)


def test_without_random_partitions_there_is_nothing_to_compare():
    assert not any("all else alike" in line for line in printed([row("one", 0.2)]))


NORTH_AND_SOUTH = Partition("taste:2", ("north", "south"), (0, 1, 0, 1))
DISCOVERIES = np.array(
    [
        [10, 0, 5, 0],
        [0, 40, 5, 0],
        [30, 0, 5, 0],
        [0, 60, 5, 0],
    ]
)
"""Of four territories and titles: north discovers title 0, south title 1, all title 2, nobody title 3."""


def lake_of_four() -> Any:
    titles = {"name": pa.chunked_array([["A", None, "C", "D"]]), "title_id": pa.chunked_array([["a", "b", "c", "d"]])}
    return SimpleNamespace(titles=titles, territory_names=lambda: ["NO", "ES", "SE", "IT"])


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]  # pyright: ignore


def test_a_group_is_shown_with_its_own_territories_largest_first_and_what_it_discovers_most():
    evidence = Evidence(np.stack([np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])] * 2), np.ones((2, 4)))
    table = partition_table(lake_of_four(), NORTH_AND_SOUTH, DISCOVERIES, np.array([1, 20, 300, 4000]), evidence)
    assert table.title == "Partition taste:2: 2 groups"
    assert cells(table) == [
        ["north", "SE, NO", "301", "50 (31%)", "+1.00 / +0.00", "A"],
        ["south", "IT, ES", "4,020", "110 (69%)", "+1.00 / +0.00", "b"],
    ]


def test_without_evidence_there_is_no_cosine():
    table = partition_table(lake_of_four(), NORTH_AND_SOUTH, DISCOVERIES, np.ones(4), None)
    assert [row[4] for row in cells(table)] == ["-", "-"]


def test_cosines_inside_and_outside_of_a_group_worked_by_hand():
    cosines = np.array([[1.0, 0.5, -0.2], [0.5, 1.0, 0.4], [-0.2, 0.4, 1.0]])
    assert in_and_out(cosines, np.array([True, True, False])) == ("+0.50", "+0.10")
    assert in_and_out(cosines, np.array([False, False, True])) == ("-", "+0.10")


@pytest.mark.parametrize(
    ("discoveries", "lifted"),
    [
        ([[90, 10], [10, 90]], [0]),
        ([[12, 10], [10, 12]], []),  # less than two standard deviations
        ([[90, 10], [0, 90]], []),  # title 0 is of one territory alone: that tells nothing of tastes
    ],
)
def test_a_title_is_named_where_a_group_discovers_it_clearly_above_its_share(discoveries, lifted):
    assert most_lifted(np.array(discoveries), np.array([True, False])) == lifted

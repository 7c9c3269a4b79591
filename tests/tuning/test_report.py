"""Tables of a search: candidates are compared alike, and a moved or otherwise tuned trial is none of them."""

import io

from rich.console import Console

from tuning.report import search_tables
from tuning.results import DONE, SearchResult, TrialRow
from tuning.search import Goal, Prepared
from tuning.space import GROUPS, Space

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

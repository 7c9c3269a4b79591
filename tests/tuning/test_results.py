"""Figures, document and tables of a search."""

import pytest

from mtrec_ray.streams.groups import Groups
from mtrec_ray.tuning.config import SearchConfig
from mtrec_ray.tuning.results import DONE, STOPPED, SearchResult, TrialRow
from mtrec_ray.tuning.search import PreparedSearch
from mtrec_ray.tuning.space import GROUPS, GroupsFiles
from tests.processes import printed
from tests.tuning.conftest import specs_of

METRIC, LR = "pr_auc/weighted", "optim.lr"
NUM_GROUPS = {"one": 1, "taste:4": 4, "taste": 4, "taste:2": 2, "random:2:0": 2, "random:4:0": 4, "random:4:1": 4}


def row(partition: str, value: float, lr: float = 0.1, **moves) -> TrialRow:
    params = {GROUPS: partition, LR: lr, "moves": 0} | moves
    return TrialRow(f"{partition} {value}", DONE, params, {METRIC: {"value": value}})


def result_of(rows: list[TrialRow], **changes) -> SearchResult:
    first = [{GROUPS: r.params[GROUPS], LR: 0.1, "moves": 0} for r in rows if GROUPS in r.params]
    groups = {name: Groups(names=[str(g) for g in range(count)], of_territory=[]) for name, count in NUM_GROUPS.items()}
    specs = specs_of(groups_files=GroupsFiles("folder", [], groups))
    best = max(rows, key=lambda r: r.value(METRIC))
    config = SearchConfig(name="x", searches="/searches", space={})
    return SearchResult(
        PreparedSearch(config, specs, {METRIC: "max"}, first), rows, best, ["a note"], [best], **changes
    )


def lines_of(rows: list[TrialRow], **changes) -> list[str]:
    return printed(result_of(rows, **changes).tables()).splitlines()


RANDOM = [row("random:4:0", 0.4), row("random:4:1", 0.6), row("random:2:0", 0.3)]
MOVED = row("random:4:0", 0.9, **{"moves": 1, "move.1": "T001", "move.1.joins": "T002"})


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("taste:4", 0.6), row("taste:2", 0.3), *RANDOM], {"taste:4": "+20.0%", "taste:2": "+0.0%"}),
        ([row("taste", 0.6), row("random:4:0", 0.5), row("random:2:0", 0.3)], {"taste": "+20.0%"}),
        ([row("one", 0.2), row("random:4:0", 0.4), row("random:2:0", 0.4)], {"one": "-50.0%"}),
        ([row("one", 0.2), row("random:4:0", 0.4), row("one", 0.8, lr=0.5), MOVED], {"one": "-50.0%"}),
    ],
    ids=["as many groups", "a found number of groups", "all random ones", "only usual settings without moves"],
)
def test_partitions_are_compared_with_random_ones(rows, expected):
    lines = lines_of(rows)
    assert all(any(name in line and gain in line for line in lines) for name, gain in expected.items())


def test_a_moved_partition_is_listed_with_its_moves_and_compared_with_random_ones_only():
    assert any("random:4:0, T001 to T002" in line and "0.9000" in line for line in lines_of([row("one", 0.2), MOVED]))
    assert not any("all else equal" in line for line in lines_of([row("one", 0.2)]))


BOUNDS = {"value": 0.5, "low": 0.4, "high": 0.6}
BOUNDED = TrialRow("t2", DONE, {LR: 0.1}, {METRIC: BOUNDS, "auc/age_low": {"value": 0.7}})
ROWS = [TrialRow("t1", STOPPED, {LR: 0.2}, {METRIC: {"value": 0.3}}), BOUNDED]
FRESH = [{METRIC: {"value": value}} for value in (0.45, 0.65)]


def test_metrics_are_tidy_and_an_attribute_may_end_in_low():
    metrics = result_of(ROWS).metrics
    assert metrics.columns.tolist() == ["trial", "metric", "value", "low", "high"]
    assert metrics.fillna(-1).to_numpy().tolist() == [
        ["t1", METRIC, 0.3, -1, -1],
        ["t2", METRIC, 0.5, 0.4, 0.6],
        ["t2", "auc/age_low", 0.7, -1, -1],
    ]


def test_the_document_is_nested():
    assert result_of(ROWS, fresh=FRESH).document() == {
        "version": 1,
        "search": "/searches/x",
        "goals": {METRIC: "max"},
        "best_config": "/searches/x/best-config.yaml",
        "best": {"trial": "t2", "params": {LR: 0.1}, "metrics": {METRIC: BOUNDS, "auc/age_low": {"value": 0.7}}},
        "fresh_seeds": {METRIC: [0.45, 0.65]},
        "pareto_front": ["t2"],
        "num_trials": {"done": 1, "stopped early": 1, "failed": 0},
        "failures": {},
        "notes": ["a note"],
    }


def test_the_table_lists_bounds_and_fresh_seeds():
    lines = lines_of(ROWS, fresh=FRESH)
    for words in ("0.5000 (0.4000 to 0.6000)", "0.3000", "0.4500, 0.6500"):
        assert any(words in line for line in lines)

"""Output of commands: progress on stderr; names on stdout as they are."""

import sys
from unittest.mock import Mock

import pytest
from rich.table import Table

from mtrec_ray import console
from mtrec_ray.console import facts_table, print_result, progress_bars


class Clock:
    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(console, "time", Clock())
    return console.time


@pytest.fixture
def lines(capsys, clock):
    """Progress lines printed since the last call, without their time of day."""

    def read() -> list[str]:
        return [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]

    return read


@pytest.mark.parametrize("name", ["[REC]", "[/b]", "[bold]Dune", ":cat:", "list[dict[str, Any]]"])
def test_names_are_printed_without_markup(capsys, name):
    table = Table(title=f"Lake {name}", caption=name)
    table.add_column(name, min_width=40)
    table.add_row(name)
    print_result({}, [table], as_json=False)
    assert capsys.readouterr().out.count(name) == 4  # title, head, cell, caption


def test_facts_are_shown_by_their_type(capsys):
    facts = {"steps": 12345, "val/ndcg": 0.123456789, "kind": "mtl", "whole": True, "loss": None}
    print_result({}, [facts_table("Run", facts)], as_json=False)
    shown = [line.split("│")[2].strip() for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert shown == ["12,345", "0.12346", "mtl", "True", "None"]


def test_json_has_null_for_nan(capsys):
    print_result({"a": [1.5, float("nan"), (float("inf"),)]}, [], as_json=True)
    assert capsys.readouterr().out == '{"a": [1.5, null, [null]]}\n'


def test_without_a_terminal_a_stage_prints_start_end_and_a_line_every_30_s(clock, lines):
    with progress_bars() as progress:
        for second in range(101):
            clock.now_s = second
            progress("training steps", 1000 + 20 * second, 3000, f"loss {second}")
    assert lines() == [
        "training steps: 1,000 of 3,000 (33%), loss 0",
        "training steps: 1,600 of 3,000 (53%), 20 per s, loss 30, 0:01:10 left",
        "training steps: 2,200 of 3,000 (73%), 20 per s, loss 60, 0:00:40 left",
        "training steps: 2,800 of 3,000 (93%), 20 per s, loss 90, 0:00:10 left",
        "training steps: 3,000 of 3,000 (100%), 20 per s, loss 100",
    ]


def test_the_interval_of_lines_can_be_changed(clock, lines, monkeypatch):
    monkeypatch.setattr(console, "LINE_EVERY_S", 1.0)
    with progress_bars() as progress:
        for second in (0, 2, 2.5, 4):
            clock.now_s = second
            progress("counting", int(second), 10)
    assert len(lines()) == 3


def test_each_stage_has_its_own_lines_and_may_start_again(clock, lines):
    with progress_bars() as progress:
        for stage, done in (("a", 0), ("b", 1), ("a", 2), ("a", 2), ("a", 0), ("a", 1), ("a", 2)):
            clock.now_s += 1
            progress(stage, done, 2)
    assert [line.split(" of")[0] for line in lines()] == ["a: 0", "b: 1", "a: 2", "a: 0", "a: 2"]


def test_a_stage_of_one_unit_is_one_line(lines):
    with progress_bars() as progress:
        progress("counting", 1, 1)
    assert lines() == ["counting: 1 of 1 (100%)"]


def test_a_stage_of_unknown_length_has_no_percentage(clock, lines):
    with progress_bars() as progress:
        progress("downloading", 0, 0)
        clock.now_s = 40
        progress("downloading", 100, 0)
    assert lines() == ["downloading: 0", "downloading: 100, 2.50 per s"]


def test_on_a_terminal_bars_are_drawn(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console, "Console", Mock(return_value=console.Console(stderr=True, width=100)))
    with progress_bars() as progress:
        progress("training steps", 1, 2)
        progress("training steps", 2, 2, "loss 0.1234")
    printed = capsys.readouterr().err
    assert "training steps" in printed
    assert "2/2" in printed
    assert "loss 0.1234" in printed

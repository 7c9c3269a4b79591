"""XMarket: held-out positives, titles to rank, offers, and the validation split."""

from pathlib import Path

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import make_source
from mtrec_ray.sources.xmarket import TEST_DAY, WINDOW_START

HEADER = "userId\titemId\trating\n"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Market a: three users, a test day with candidates; market b: one user, none."""
    for market in ("a", "b"):
        (tmp_path / market).mkdir()
    pairs = [("a1", "p1"), ("a1", "p2"), ("a1", "p3"), ("a2", "p1"), ("a3", "p2")]
    (tmp_path / "a/train.tsv").write_text(HEADER + "".join(f"{u}\t{t}\t1.0\n" for u, t in pairs))
    (tmp_path / "a/valid_qrel.tsv").write_text(HEADER + "a1\tp4\t1\n")
    (tmp_path / "a/valid_run.tsv").write_text("a1\tp4,p5,p1\na1\tp2\n")
    (tmp_path / "b/train.tsv").write_text(HEADER + "b1\tp1\t1.0\nb1\tp9\t1.0\n")
    return tmp_path


def _rows(source, table: str = "events") -> list[dict]:
    return [row for part in source.parts(table) for row in part().to_pylist()]


def test_published_positives_are_the_day_after(raw):
    source = make_source("xmarket", {}, str(raw))
    held_out = [row for row in _rows(source) if row["timestamp"] == TEST_DAY]
    assert held_out == [{"user_id": "a1", "title_id": "p4", "timestamp": TEST_DAY}]
    assert {row["timestamp"] for row in _rows(source)} == {WINDOW_START, TEST_DAY}
    assert _rows(source, "candidates") == [
        {"user_id": "a1", "title_ids": titles} for titles in (["p4", "p5", "p1"], ["p2"])
    ]
    assert source.facts.trained_users_are_tested
    assert not source.facts.calendar.ordered
    assert "markets without a test day: b" in source.facts.notes
    assert [(file.table, file.path, file.rows) for file in source.facts.raw_files] == [
        ("events", "a/train.tsv", 5),
        ("events", "a/valid_qrel.tsv", 1),
        ("candidates", "a/valid_run.tsv", 2),
        ("events", "b/train.tsv", 2),
    ]


def test_titles_are_offered_where_they_occur(raw):
    offered = {row["title_id"]: row["territories"] for row in make_source("xmarket", {}, str(raw)).titles().to_pylist()}
    assert offered == {"p1": ["a", "b"], "p2": ["a"], "p3": ["a"], "p4": ["a"], "p5": ["a"], "p9": ["b"]}


def test_validation_never_reads_the_test(raw):
    (raw / "a/valid_qrel.tsv").write_bytes(b"\xff")
    (raw / "a/valid_run.tsv").write_bytes(b"\xff")
    source = make_source("xmarket", {"holdout": "validation"}, str(raw))
    held_out = [row for row in _rows(source) if row["timestamp"] == TEST_DAY]
    assert [row["user_id"] for row in held_out] == ["a1"]
    assert len(_rows(source)) == 7
    assert not source.parts("candidates")
    assert {row["title_id"] for row in source.titles().to_pylist()} == {"p1", "p2", "p3", "p9"}
    with pytest.raises(UserError, match="not utf-8 text"):
        _ = make_source("xmarket", {}, str(raw)).facts


def test_events_without_an_id_reach_validation(raw):
    (raw / "b/train.tsv").write_text(HEADER + 'b1\tp1\t1.0\n\tp9\t1.0\n"b1"\tnan\t1.0\n')
    source = make_source("xmarket", {}, str(raw))
    events = [(row["user_id"], row["title_id"]) for row in _rows(source)]
    assert events[-3:] == [("b1", "p1"), (None, "p9"), ("b1", None)]
    assert [row["user_id"] for row in _rows(source, "users")] == ["a1", "a2", "a3", "b1"]
    assert None not in source.titles()["title_id"].to_pylist()


def test_validation_choice_follows_the_seed(raw):
    chosen = set()
    for seed in range(20):
        source = make_source("xmarket", {"holdout": "validation", "seed": seed}, str(raw))
        chosen |= {row["title_id"] for row in _rows(source) if row["timestamp"] == TEST_DAY}
    assert chosen == {"p1", "p2", "p3"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("user\titem\trating\n", "column 'userId' is missing"),
        (HEADER, "nothing after the header"),
        (HEADER + "a1\tp1\t1.0\na1\tp", "line 3: 2 fields instead of 3 .* truncated"),
        (HEADER + "a1\tp1\tx\n", "line 2: rating is 'x'"),
    ],
)
def test_damaged_file_error_names_file_and_line(raw, content, message):
    (raw / "a/train.tsv").write_text(content)
    with pytest.raises(UserError, match=rf"train\.tsv.*{message}"):
        _ = make_source("xmarket", {}, str(raw)).facts


def test_folder_without_markets_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has no market"):
        make_source("xmarket", {}, str(tmp_path))

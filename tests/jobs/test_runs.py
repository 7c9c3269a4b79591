"""Runs are listed and shown from their files alone, whatever state these are in."""

import json

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.files import write_file, write_json
from mtrec_ray.jobs.runs import ListRunsConfig, ShowRunConfig, list_runs, show_run, sparkline
from mtrec_ray.tracking.metrics_file import METRICS_FILE, encode
from tests.processes import printed, python


def write_run(folder, *rows: dict, pack: str = "", **fields) -> None:
    document = {"format_version": 2, "kind": "backbone", "status": "training", "lake_hash": "1a2b3c4d5e6f"}
    document["config"] = {"name": "old", "lake": "lakes/a", "seed": 3, "optim": {"lr": 1e-5, "num_negatives": 512}}
    write_json(f"{folder}/run.json", document | fields)
    part = f"{folder}/packs/{pack}" if pack else str(folder)
    lines = [{"step": 0, "seconds": 1.0, "time": "2026-02-03T04:05:06.789+00:00"} | row for row in rows]
    if lines:
        write_file(f"{part}/{METRICS_FILE}", b"".join(map(encode, lines)))


@pytest.fixture
def runs(tmp_path):
    """A finished and a killed backbone, eliminators in two packs."""
    validated = [(10, 0.2), (20, 0.4), (30, 0.3)]
    rows = [{"step": step, "val/ndcg": ndcg, "train/loss": 1 / step} for step, ndcg in validated]
    write_run(tmp_path / "done", *rows, status="done", num_steps=30)
    write_run(tmp_path / "killed", {"step": 5, "train/loss": 0.7}, num_steps=30)
    fields = {"kind": "eliminators", "config": {"backbone": "runs/done", "seed": 1}, "backbone_hash": "ffff0000aa"}
    fields |= {"packs": {"a": [["age"]], "b": [["gender"]]}, "num_steps": 8}
    write_run(tmp_path / "hidden", {"step": 8, "val/ndcg/age": 0.1}, pack="a", **fields)
    write_run(tmp_path / "hidden", {"step": 4, "val/ndcg/gender": 0.3}, pack="b", **fields)
    return tmp_path


def listed(folder) -> dict[str, dict]:
    return {run["name"]: run for run in list_runs(ListRunsConfig(runs=str(folder))).document()["runs"]}


def test_list_has_state_input_and_metrics_of_each_run(runs):
    found = listed(runs)
    assert list(found) == ["done", "hidden", "killed"]
    assert found["done"] == {
        "name": "done",
        "kind": "backbone",
        "status": "done",
        "step": 30,
        "num_steps": 30,
        "last_metric": "2026-02-03T04:05:06.789+00:00",
        "from": "lake a (1a2b3c4d)",
        "seed": 3,
        "figures": {"val/ndcg": 0.3, "train/loss": 1 / 30},
    }
    assert (found["killed"]["status"], found["killed"]["step"]) == ("unfinished", 5)
    summed = found["hidden"]  # over packs
    assert (summed["step"], summed["num_steps"], summed["from"]) == (12, 16, "backbone done (ffff0000)")


def test_list_prints_a_row_for_each_run(runs):
    text = printed(list_runs(ListRunsConfig(runs=str(runs))).tables())
    assert "5 of 30" in text
    assert "lake a (1a2b3c4d)" in text
    assert "backbone done (ffff0000)" in text
    assert "val/ndcg 0.1000-0.3000" in text
    assert "2026-02-03 04:05" in text


def test_metrics_are_tidy(runs):
    listed_metrics = list_runs(ListRunsConfig(runs=str(runs))).metrics
    assert list(listed_metrics.columns) == ["run", "metric", "step", "value"]
    assert len(listed_metrics) == 5
    shown = show_run(ShowRunConfig(run="done", runs=str(runs))).metrics
    assert shown[shown.metric == "val/ndcg"].value.tolist() == [0.2, 0.4, 0.3]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "run.json"),
        ("", "damaged"),
        ("[]", "dictionary"),
        ("{}", "kind: Field required"),
        ('{"kind": "backbone", "status": "done", "config": {}, "packs": 3}', "packs"),
        ('{"kind": 1, "status": "done", "config": {}}', "kind"),
    ],
)
def test_foreign_and_damaged_folders_are_listed_with_the_reason(tmp_path, content, why):
    (tmp_path / "odd").mkdir()
    (tmp_path / "file").write_text("")
    if content is not None:
        (tmp_path / "odd/run.json").write_text(content)
    found = list_runs(ListRunsConfig(runs=str(tmp_path)))
    assert found.runs == []
    (line,) = found.skipped
    assert "odd" in line
    assert why in line
    assert "\n" not in line


@pytest.mark.parametrize("fields", [{"kind": "other/kind"}, {"kind": "."}, {"config": {}}, {"format_version": 99}])
def test_runs_of_other_versions_are_shown(tmp_path, fields):
    write_run(tmp_path / "run", {"step": 1, "val/ndcg": None, "train/loss": "x"}, **fields)
    text = printed(show_run(ShowRunConfig(run=f"{tmp_path}/run")).tables())
    assert ("unfinished" in text, "Validation" in text) == (True, False)
    assert list_runs(ListRunsConfig(runs=str(tmp_path))).tables()


def test_a_run_without_metrics_is_listed(tmp_path):
    write_run(tmp_path / "run")
    assert listed(tmp_path)["run"]["last_metric"] is None
    assert "unfinished" in printed(list_runs(ListRunsConfig(runs=str(tmp_path))).tables())


def test_show_has_changed_settings_validations_and_losses(runs):
    view = show_run(ShowRunConfig(run="done", runs=str(runs)))
    document = view.document()
    assert document["settings"] == {"name": "old", "lake": "lakes/a", "seed": 3, "optim.lr": 1e-5}
    best = {"metric": "val/ndcg", "last": 0.3, "step": 30, "best": 0.4, "best_step": 20}
    assert document["validations"] == [best]
    text = printed(view.tables())
    assert "Validation" in text
    assert "0.1000 █▃▁ 0.0333" in text
    assert "1e-05" in text


def test_a_run_is_found_by_name_and_by_place(runs):
    by_name, by_place = ShowRunConfig(run="killed", runs=str(runs)), ShowRunConfig(run=f"{runs}/killed")
    by_uri = ShowRunConfig(run=f"file://{runs}/killed")
    assert {show_run(config).name for config in (by_name, by_place, by_uri)} == {"killed"}


@pytest.mark.parametrize(
    "job", [lambda uri: list_runs(ListRunsConfig(runs=uri)), lambda uri: show_run(ShowRunConfig(run=uri))]
)
def test_a_missing_place_is_named(tmp_path, job):
    with pytest.raises(UserError, match="nowhere"):
        job(f"{tmp_path}/nowhere")


def test_sparkline_has_at_most_60_blocks():
    assert sparkline([1.0, 1.0]) == "▁▁"
    line = sparkline([float(value) for value in range(1000)])
    assert (len(line), line[0], line[-1]) == (60, "▁", "█")


def test_the_command_prints_json_and_starts_no_ray(runs):
    program = (
        "import sys; from mtrec_ray.__main__ import main\ntry: main()\nfinally: import ray; print(ray.is_initialized())"
    )
    document, started = python(program, "runs", "show", "done", "--runs", str(runs), "--json").splitlines()
    assert (json.loads(document)["name"], started) == ("done", "False")

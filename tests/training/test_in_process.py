"""Runs without Ray Train: killed and resumed, also by the other way of training."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import cluster_resources, map_tasks, tasks_in_process
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import MAX_BUCKETS, LocalReader
from mtrec_ray.training import in_process
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.fit import train_backbone, train_propensity
from mtrec_ray.training.in_process import RAY_TRAIN
from mtrec_ray.training.weights import CHECKPOINT, load_checkpoint, save_checkpoint
from tests.training.conftest import run_config
from tests.training.one_worker import OneWorker, backbone_config, eliminators_config
from tests.tuning.conftest import build_here

HERE = {"workers": 0, "checkpoint_every_s": 0}


class Killed(Exception):
    """The process ended."""


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("in_process") / "lake"
    return build_here(folder, 3, users=160, territories=4, titles=40, events_per_user=30.0)


@pytest.fixture(scope="module")
def straight(lake, tmp_path_factory) -> BackboneRecord:
    return train_backbone(backbone_config(lake, tmp_path_factory.mktemp("straight"), runner=HERE))


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test's cluster may run; here nothing may use it."""
    for name in ("init", "put", "remote", "get", "wait"):
        monkeypatch.setattr(ray, name, lambda *_, name=name, **__: pytest.fail(f"ray.{name} was called"))


def weights(record: Any) -> dict[str, bytes]:
    found = (path for path in Path(record.uri).rglob("*.safetensors") if path.name != CHECKPOINT)
    return {str(path.relative_to(record.uri)): path.read_bytes() for path in found}


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """End the run after so many checkpoints were written."""
    written = []

    def save(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        written.append(1)
        if len(written) == number:
            raise Killed

    monkeypatch.setattr(in_process, "save_checkpoint", save)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_weights(lake, straight, monkeypatch, tmp_path, number):
    config = backbone_config(lake, tmp_path, runner=HERE)
    kill_at(monkeypatch, number)
    with pytest.raises(Killed):
        train_backbone(config)
    kill_at(monkeypatch, 0)
    resumed = train_backbone(config)
    assert resumed.figures == straight.figures
    assert weights(resumed) == weights(straight)


def test_it_ends_as_with_ray_train(lake, straight, monkeypatch, tmp_path):
    OneWorker(monkeypatch, tmp_path / "checkpoints")
    on_ray = train_backbone(backbone_config(lake, tmp_path / "runs"))
    assert (on_ray.figures, weights(on_ray)) == (straight.figures, weights(straight))


def test_a_run_of_ray_train_continues_in_process(lake, straight, monkeypatch, tmp_path):
    """From the last checkpoint that Ray Train's own list names; a later folder was not complete."""
    kill_at(monkeypatch, 2)
    with pytest.raises(Killed):
        train_backbone(backbone_config(lake, tmp_path, runner=HERE))
    folder = tmp_path / "backbone"
    (folder / "checkpoint_1").mkdir()
    shutil.move(folder / CHECKPOINT, folder / "checkpoint_1" / CHECKPOINT)
    (folder / "checkpoint_2").mkdir()
    (folder / RAY_TRAIN).write_text(json.dumps({"latest_checkpoint_result": {"checkpoint_dir_name": "checkpoint_1"}}))
    found, saved = in_process.newest_state(str(folder)), load_checkpoint(str(folder / "checkpoint_1"))
    assert found is not None
    assert saved is not None
    assert 0 < found.plain["next_step"] == saved.plain["next_step"] < straight.num_steps
    kill_at(monkeypatch, 0)
    resumed = train_backbone(backbone_config(lake, tmp_path, runner=HERE))
    assert weights(resumed) == weights(straight)


def test_a_run_in_process_continues_on_ray_train(lake, straight, monkeypatch, tmp_path):
    kill_at(monkeypatch, 2)
    with pytest.raises(Killed):
        train_backbone(backbone_config(lake, tmp_path / "runs", runner=HERE))
    worker = OneWorker(monkeypatch, tmp_path / "checkpoints")
    resumed = train_backbone(backbone_config(lake, tmp_path / "runs"))
    assert weights(resumed) == weights(straight)
    of_whole_run = OneWorker(monkeypatch, tmp_path / "all")
    train_backbone(backbone_config(lake, tmp_path / "whole"))
    assert worker.reports == of_whole_run.reports - 2


def test_a_checkpoint_without_a_state_starts_at_the_beginning(tmp_path):
    (tmp_path / RAY_TRAIN).write_text(json.dumps({"latest_checkpoint_result": None}))
    assert in_process.newest_state(str(tmp_path)) is None


def test_packs_train_one_after_the_other(straight, tmp_path):
    shown = []
    config = eliminators_config(straight, tmp_path, runner=HERE, pack_size=1)
    record = train_eliminators(config, lambda stage, *_: shown.append(stage))
    assert list(dict.fromkeys(stage for stage in shown if stage.startswith("pack"))) == [
        "pack000 (gender)",
        "pack001 (gender+age)",
    ]
    assert record.status == "done"


def test_propensity_trains_on_two_days(planted_lake, tmp_path):
    record = train_propensity(run_config(planted_lake, str(tmp_path), "here", runner=HERE, optim={"epochs": 1}))
    assert list(record.figures) == ["day_0", "day_1"]


def test_a_gpu_that_is_not_there_is_refused(lake, tmp_path):
    config = backbone_config(lake, tmp_path, runner=HERE | {"use_gpu": True})
    with pytest.raises(UserError, match=r"^runner\.use_gpu: torch finds no GPU in this machine: leave --gpu out"):
        train_backbone(config)


class TestTasks:
    def test_within_tasks_in_process_they_run_here_in_order(self):
        with tasks_in_process():
            found = list(map_tasks(lambda item, shift: item + shift + len(sys.argv[:0]), [1, 2], 10))
            assert cluster_resources() == {"CPU": 1.0}
        assert found == [(1, 11), (2, 12)]

    def test_a_local_reader_reads_a_bucket_once_and_keeps_a_limited_number(self):
        reader, read, plan = LocalReader(), list[int](), {"plan": 1}

        def bucket(index: int, plan: dict[str, int]) -> int:
            read.append(index)
            return index * plan["plan"]

        indices = [0, 1, 0, 1]
        assert [reader.bucket(bucket, index, plan) for index in indices] == indices
        assert read == [0, 1]
        assert reader.bucket(bucket, 1, {"plan": 3}) == 3
        for index in range(MAX_BUCKETS + 1):
            reader.bucket(bucket, index, plan)
        reader.bucket(bucket, 0, plan)
        assert read[-1] == 0

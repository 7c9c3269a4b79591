"""Propensity runs on a Ray cluster: what they learn, killed and resumed, one worker and two."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mtrec_ray.config import dump_yaml, validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.config import EvaluateConfig
from mtrec_ray.jobs.evaluate import evaluate_propensity
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training import fit
from mtrec_ray.training.fit import train_propensity
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot, new_propensity_run
from mtrec_ray.training.weights import CHECKPOINT
from tests.training.conftest import run_config
from tests.training.one_worker import OneWorker

TWO_WORKERS = {"workers": 2, "cpus_per_worker": 0.5, "checkpoint_every_s": 0.2}
"""With checkpoints so often that a short run can be killed between two."""


def snapshots(record_or_folder) -> dict[str, dict[str, torch.Tensor]]:
    folder = Path(getattr(record_or_folder, "uri", record_or_folder)) / "snapshots"
    return {day.name: safetensors.torch.load_file(day / "model.safetensors") for day in sorted(folder.iterdir())}


def assert_same_weights(one, other, rtol: float = 0.0, atol: float = 0.0) -> None:
    first, second = snapshots(one), snapshots(other)
    assert list(first) == list(second) == ["day_0", "day_1"]
    for day, weights in first.items():
        for name, value in weights.items():
            torch.testing.assert_close(second[day][name], value, rtol=rtol, atol=atol, msg=f"{day} {name}")


def wait_for_checkpoint(folder: str, timeout_s: float = 300) -> None:
    """Until the run has committed another checkpoint but has not ended."""
    known = set(Path(folder).glob("checkpoint_*/*"))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(p.name == CHECKPOINT for p in set(Path(folder).glob("checkpoint_*/*")) - known):
            return
        time.sleep(0.05)
    raise TimeoutError(f"no checkpoint in {folder} after {timeout_s} s")


def worker_pids() -> list[int]:
    """Ray Train workers of this process's own cluster."""
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()  # pyright: ignore
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                raylet = Path("/proc", parent, "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue  # the process has ended
            if "RayTrainWorker" in command and session in raylet:
                found.append(int(entry.name))
    return found


def test_run_has_a_snapshot_of_each_period(straight):
    assert straight.status == "done"
    assert list(snapshots(straight)) == ["day_0", "day_1"]
    assert straight.figures["day_1"]["train/loss"] < 0.48  # a constant prediction with 4 negatives a positive: 0.50


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
class TestOnRay:
    def test_mtl_beats_the_baseline_in_every_group(self, straight, planted_lake, runs, tmp_path):
        """Each group has a taste of its own, and group blocks learn it."""
        with pytest.MonkeyPatch.context() as patch:
            OneWorker(patch, tmp_path)
            baseline = train_propensity(run_config(planted_lake, runs, "baseline", kind="baseline"))
        settings = {"runs": [baseline.uri, straight.uri], "num_bootstrap": 50, "references": False}
        report = evaluate_propensity(validate_config(EvaluateConfig, settings)).report
        gains = report.intervals("pr_auc", "straight", over="baseline")
        territories = Lake.open(planted_lake).manifest.territories
        for region in {territory.region for territory in territories}:
            assert np.nanmean([gains[t.name].value for t in territories if t.region == region]) > 0, region
        assert gains["all"].low > 10

    def test_two_workers_with_killed_driver_and_killed_workers_equal_one(self, planted_lake, runs, tmp_path):
        short = {"optim": {"epochs": 1}}
        with pytest.MonkeyPatch.context() as patch:
            OneWorker(patch, tmp_path)
            one = train_propensity(run_config(planted_lake, runs, "one", **short))
        config = run_config(planted_lake, runs, "killed", runner=TWO_WORKERS, **short)
        (tmp_path / "config.yaml").write_text(dump_yaml(config))
        command = [sys.executable, "-m", "mtrec_ray", "train", "propensity", "--config", str(tmp_path / "config.yaml")]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        driver = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            wait_for_checkpoint(f"{runs}/killed")
        finally:
            driver.kill()
            driver.wait()
        assert PropensityRecord.load(f"{runs}/killed").status == "training"
        killed, resumes = [], [True]

        def kill() -> None:
            while not worker_pids() and resumes:  # the dead driver's worker may write another checkpoint
                time.sleep(0.05)
            wait_for_checkpoint(f"{runs}/killed")
            for pid in worker_pids():
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

        thread = threading.Thread(target=kill)
        thread.start()
        record = train_propensity(config)
        resumes.clear()
        thread.join()
        assert killed, "the run ended before it could be disturbed"
        assert_same_weights(one, record, rtol=2e-2, atol=2e-3)  # sums over two workers round otherwise


def test_snapshots_hold_the_prior_of_the_days_after_them(straight):
    prior = straight.prior()
    for period, weights in enumerate(snapshots(straight).values()):
        np.testing.assert_array_equal(weights["title_prior"], prior.after(period).astype(np.float32))
        np.testing.assert_array_equal(weights["user_prior"], prior.users)
        assert weights["seen_prior"] == np.float32(prior.seen)
    assert not np.array_equal(prior.after(0), prior.after(1))
    assert prior.after(0).std() > 0.1


def test_lake_without_an_order_of_time_has_no_prior(planted_lake, tmp_path, monkeypatch):
    lake = Lake.open(planted_lake)
    calendar = lake.manifest.calendar.model_copy(update={"ordered": False})
    unordered = replace(lake, manifest=lake.manifest.model_copy(update={"calendar": calendar}))
    monkeypatch.setattr(PropensityRecord, "open_lake", lambda self: unordered)
    OneWorker(monkeypatch, tmp_path / "checkpoints")
    record = new_propensity_run(run_config(planted_lake, str(tmp_path), "unordered"), unordered, calendar)
    assert record.model.prior_shape is record.prior() is None
    record.make_plan(None)
    assert not (tmp_path / "unordered" / "prior.safetensors").exists()


def test_killed_run_resumes_to_the_same_weights(straight, planted_lake, runs, monkeypatch, tmp_path):
    worker = OneWorker(monkeypatch, tmp_path, 1, 4)
    again = train_propensity(run_config(planted_lake, runs, "again", runner={"checkpoint_every_s": 0.5}))
    assert worker.starts == 3
    assert again.figures == straight.figures
    assert_same_weights(straight, again)


@pytest.fixture(scope="module")
def literal(planted_lake, runs, tmp_path_factory) -> PropensityRecord:
    """Two epochs of paper A literally, on groups of four regions or parts of them."""
    document = {"lake": planted_lake, "runs": runs, "name": "literal", "preset": "paper", "optim": {"epochs": 2}}
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, tmp_path_factory.mktemp("literal"))
        return train_propensity(validate_config(PropensityConfig, document))


def test_preset_paper_trains_the_literal_model_in_four_groups(literal):
    model = literal.model
    assert (model.paper, model.d, model.group_block, model.num_groups) == (True, 512, "dense", 4)
    assert (model.aligned_width, model.initial_bias, literal.learning_rates) == (0, 0.0, (1e-3, 1e-3, 1e-3))
    assert set(literal.groups.of_territory) == {0, 1, 2, 3}
    assert literal.status == "done"
    assert np.isfinite(literal.figures["day_0"]["train/loss"])
    assert PropensityRecord.load(literal.uri) == literal
    trained = load_snapshot(literal, 0)
    assert trained.bias is None
    users = trained.user_vectors(torch.randn(3, 32), torch.tensor([0, 1, 3]))
    assert (trained.logits(users, trained.title_vectors(torch.randn(5, 32))) >= 0).all()


def test_a_territory_input_that_tells_nothing_apart_is_refused(planted_lake, runs):
    lake = Lake.open(planted_lake)
    same = [territory.model_copy(update={"region": "EARTH"}) for territory in lake.manifest.territories]
    one = replace(lake, manifest=lake.manifest.model_copy(update={"territories": same}))
    config = run_config(planted_lake, runs, "input", kind="baseline", model={"territory_input": "region"})
    with pytest.raises(UserError, match=r"^model.territory_input = region has no effect on a lake of one region: drop"):
        new_propensity_run(config, one, one.manifest.calendar)
    record = new_propensity_run(config, lake, lake.manifest.calendar)
    assert record.model.one_hot_of_territory == (1, 3, 2, 0, 0, 2, 3, 1)


def test_finished_run_is_not_trained_again(straight, planted_lake, runs, monkeypatch):
    monkeypatch.setattr("mtrec_ray.training.fit.fit", None)
    again = train_propensity(run_config(planted_lake, runs, "straight"))
    assert again == PropensityRecord.load(straight.uri)


def test_same_name_with_other_settings_is_refused(straight, planted_lake, runs):
    with pytest.raises(UserError, match=r"optim\.lr = 0.002 \(now 0.001\)"):
        train_propensity(run_config(planted_lake, runs, "straight", optim={"lr": 1e-3, "epochs": 6}))


def test_changed_lake_is_refused(straight, planted_lake, runs, tmp_path):
    text = Path(planted_lake, "lake.json").read_text()
    try:
        Path(planted_lake, "lake.json").write_text(re.sub('"sha256": ?"', r"\g<0>0", text, count=1))
        with pytest.raises(UserError, match="another state of its lake"):
            train_propensity(run_config(planted_lake, runs, "straight"))
    finally:
        Path(planted_lake, "lake.json").write_text(text)


@pytest.fixture
def three_cpus(monkeypatch):
    monkeypatch.setattr(fit, "cluster_resources", lambda: {"CPU": 3.0})


@pytest.mark.usefixtures("three_cpus")
def test_more_workers_than_cpus_are_refused(planted_lake, runs):
    with pytest.raises(UserError, match="logical CPUs"):
        train_propensity(run_config(planted_lake, runs, "greedy", runner={"workers": 4}))


def test_unwritable_folder_is_refused(planted_lake, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"cannot write to .*file"):
        train_propensity(run_config(planted_lake, str(tmp_path / "file"), "nowhere"))


@pytest.mark.usefixtures("three_cpus")
@pytest.mark.parametrize(("groups", "warned"), [("one", True), ("regions", False)])
def test_mtl_run_of_one_group_gives_a_warning(planted_lake, runs, caplog, groups, warned):
    changes = {"kind": "mtl", "model": {"groups": groups}, "runner": {"workers": 4}}
    with pytest.raises(UserError, match="logical CPUs"):  # the warning comes first
        train_propensity(run_config(planted_lake, runs, "single", **changes))
    warning = "model.groups = 'one' is one group: all territories use the same block"
    assert [message for message in caplog.messages if "is one group" in message] == [warning] * warned

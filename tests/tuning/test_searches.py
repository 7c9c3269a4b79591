"""Searches on a cluster: result files, killed drivers and trials, several workers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import yaml

from mtrec_ray.config import load_config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import make_groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning import collect
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.propensity_search import search_propensity
from mtrec_ray.tuning.results import SearchResult
from tests.tuning.conftest import build_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

METRIC = "pr_auc/weighted"
SETTINGS: dict[str, Any] = {
    "base": {"model": {"d": 32}, "optim": {"epochs": 2, "batch_pairs": 2048, "lanes": 4}},
    "space": {
        "model.groups": {"partitions": ["one", "taste:4"], "random": 1, "moves": 1},
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    },
    "trials": 4,
    "validations": 2,
    "confirm": 1,
}
ONE_PARTITION = {
    "space": SETTINGS["space"] | {"model.groups": {"partitions": ["taste:4"], "random": 1, "moves": 0}},
    "confirm": 0,
}


def search_config(lake: str, folder: Path, name: str, **changes) -> PropensitySearchConfig:
    return PropensitySearchConfig.model_validate(
        SETTINGS | {"lake": lake, "name": name, "searches": str(folder)} | changes
    )


@pytest.fixture(scope="module")
def shuffled_lake(tmp_path_factory) -> Lake:
    """Planted taste groups that the regions do not show."""
    folder = tmp_path_factory.mktemp("shuffled") / "lake"
    return build_here(
        folder, num_buckets=4, users=3000, territories=12, titles=80, user_width=32, title_width=32,
        taste_groups="shuffled",
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(ray_cluster, shuffled_lake, tmp_path_factory) -> SearchResult:
    return search_propensity(search_config(shuffled_lake.uri, tmp_path_factory.mktemp("searches"), "whole"))


class TestResultFiles:
    def test_every_partition_was_trained_to_its_end(self, searched):
        done = {row.params["model.groups"] for row in searched.rows if row.status == "done" and not row.params["moves"]}
        assert {"one", "taste:4", "random:4:0"} <= done
        assert len(searched.rows) == 4
        assert all(row.figures["steps_s"]["value"] > 0 for row in searched.rows)

    def test_best_config_is_accepted_by_train(self, searched, shuffled_lake):
        config = load_config(PropensityConfig, f"{searched.uri}/best-config.yaml", [])
        assert config.lake == shuffled_lake.uri
        assert config.optim.lr == pytest.approx(searched.best.params["optim.lr"])
        assert config.sample.validation_fraction == 0  # the final training may use the users that chose it
        groups = make_groups(str(config.model.groups), shuffled_lake.manifest)
        assert len(groups.of_territory) == 12

    def test_no_checkpoint_is_left(self, searched):
        assert not list(Path(searched.uri, "tune").glob("*/checkpoint_*"))

    def test_the_best_configuration_was_trained_with_fresh_seeds(self, searched):
        assert len(searched.fresh) == 1
        assert searched.fresh_values(METRIC)[0] > 0


def test_resume_of_a_finished_search_trains_nothing(searched, shuffled_lake, monkeypatch):
    monkeypatch.setattr(collect, "_train_to_end", lambda *_: pytest.fail("trained again"))
    folder = Path(searched.uri).parent
    detour = folder / ".." / folder.name  # the same folder
    again = search_propensity(search_config(shuffled_lake.uri, detour, "whole", trials_at_once=1), resume=True)
    assert again.document() == searched.document()


def test_two_workers_equal_one(ray_cluster, shuffled_lake, tmp_path, searched):
    groups = {"partitions": ["taste:4"], "random": 0, "moves": 0}
    workers = {"workers": 2, "cpus_per_worker": 0.5, "trials": 1, "space": SETTINGS["space"] | {"model.groups": groups}}
    found = search_propensity(search_config(shuffled_lake.uri, tmp_path, "two", **ONE_PARTITION | workers))
    one = {row.params["model.groups"]: row.value(METRIC) for row in searched.rows if not row.params["moves"]}
    (row,) = found.rows
    assert row.value(METRIC) == pytest.approx(one["taste:4"], rel=0.02)


def test_a_trial_whose_process_is_killed_is_restarted(ray_cluster, shuffled_lake, tmp_path):
    killed = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if list((tmp_path / "hurt" / "tune").glob("*/checkpoint_*")):
                for process in psutil.Process().children(recursive=True):
                    if "TrialProcess" in " ".join(process.cmdline()):
                        process.send_signal(signal.SIGKILL)
                        killed.append(process.pid)
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=kill_one)
    thread.start()
    settings = ONE_PARTITION | {"trials": 2, "trials_at_once": 1, "validations": 4}
    result = search_propensity(search_config(shuffled_lake.uri, tmp_path, "hurt", **settings))
    thread.join()
    assert killed
    assert [row.status for row in result.rows].count("failed") == 0
    assert len(result.rows) == 2


def test_resume_of_an_interrupted_and_then_killed_search_repeats_no_finished_trial(
    ray_cluster, shuffled_lake, tmp_path
):
    config, tune = tmp_path / "search.yaml", tmp_path / "k" / "tune"
    space = ONE_PARTITION["space"]
    settings = {"space": space, "validations": 4, "trials": 3, "confirm": 0}
    config.write_text(yaml.safe_dump(SETTINGS | settings))
    command = [sys.executable, "-m", "mtrec_ray", "search", "propensity", "--lake", shuffled_lake.uri, "--name", "k"]
    command += ["--searches", str(tmp_path), "--config", str(config), "--trials-at-once", "1", "--json"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    before: dict[Path, str] = {}
    for num_finished, ended_by in enumerate((signal.SIGINT, signal.SIGKILL), 1):
        driver = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        finished = wait_for_validations(tune, 4, num_finished)
        wait_for_validations(tune, 2, len(finished) + 1)  # so the state on disk has the ended and the started trial
        output = output_of_ended(driver, ended_by)
        if ended_by == signal.SIGINT:
            assert (driver.returncode, json.loads(output)["exit_code"]) == (130, 130)
            command += ["--resume", "--trials-at-once", "2"]
        before |= {path: path.read_text() for path in finished if path not in before}
    for checkpoint in tune.glob("*/checkpoint_*"):  # as when the driver dies before its state names the newer one
        shutil.rmtree(checkpoint)
    (tune / "tuner.pkl").write_bytes(b"")  # as when it dies while Tune copies its state
    settings |= {"trials_at_once": 2}
    resumed = search_propensity(search_config(shuffled_lake.uri, tmp_path, "k", **settings), resume=True)
    counts = resumed.document()["num_trials"]
    assert counts["done"] + counts["stopped early"] == 3
    for path, text in before.items():
        assert path.read_text() == text
    trials: Any = pd.read_csv(tmp_path / "k" / "trials.csv")
    first = trials[(trials["optim.lr"] - 1e-3).abs() < 1e-9]  # the usual one: the searcher remembers its queue
    assert set(first["model.groups"]) == {"taste:4", "random:4:0"}


def output_of_ended(driver: subprocess.Popen, ended_by: signal.Signals, patience_s: float = 25) -> bytes:
    """Ends a driver and returns its output; a lost interrupt is repeated."""
    for _ in range(3):
        os.killpg(driver.pid, ended_by)  # a terminal's ctrl-c reaches the whole group too
        try:
            return driver.communicate(timeout=patience_s)[0]
        except subprocess.TimeoutExpired:
            continue
    raise TimeoutError(f"the search survived {ended_by.name}")


def wait_for_validations(folder: Path, validations: int, count: int, timeout_s: float = 240) -> list[Path]:
    """Result files of `count` trials with so many validations."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = [path for path in folder.glob("*/result.json") if len(path.read_text().splitlines()) >= validations]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise TimeoutError(f"{count} trials had no {validations} validations within {timeout_s} s")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"metric": "auc"}, "'auc' is not reported"),
            ({"trials_at_once": 7}, "trials_at_once = 7 .* needs 7 logical CPUs, the cluster has 3"),
            ({"workers": 4, "cpus_per_worker": 2}, "needs 8 logical CPUs"),
        ],
    )
    def test_settings_that_do_not_fit_are_refused_and_leave_no_file(
        self, ray_cluster, shuffled_lake, tmp_path, changes, problem
    ):
        with pytest.raises(UserError, match=problem):
            search_propensity(search_config(shuffled_lake.uri, tmp_path, "no", **changes))
        assert not list(tmp_path.iterdir())

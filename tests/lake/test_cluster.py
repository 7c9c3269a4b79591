"""Tasks of a job: results by item, bounded parallelism, unwrapped errors."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from mtrec_ray.errors import TryAgain, UserError
from mtrec_ray.lake.cluster import joins_cluster, map_tasks, need_ray, ray_session, workers_heed_interrupts
from mtrec_ray.lake.environment import LONGEST_SOCKET, check_cluster_address

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_each_item_has_its_result_and_progress():
    calls = []
    tasks = map_tasks(lambda n, m: n * m, range(7), 3, stage="times 3", progress=lambda *state: calls.append(state))
    assert dict(tasks) == {n: 3 * n for n in range(7)}
    assert calls == [("times 3", done, 7) for done in range(1, 8)]
    assert list(map_tasks(lambda n: n, [])) == []


def test_user_and_disk_errors_are_unwrapped():
    def fail(what: str) -> None:
        raise UserError("fix this") if what == "user" else OSError(errno.ENOSPC, "full", "file")

    with pytest.raises(UserError) as mistake:
        list(map_tasks(fail, ["user"]))
    assert (type(mistake.value), str(mistake.value)) == (UserError, "fix this")
    with pytest.raises(OSError, match="full") as full:
        list(map_tasks(fail, ["disk"]))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, "file")


def test_error_ends_all_tasks(tmp_path: Path):
    def work(n: int) -> None:
        if n == 0:
            while len(list(tmp_path.glob("* started"))) < 2:
                time.sleep(0.05)
            raise UserError("stop")
        (tmp_path / f"{n} started").touch()
        try:
            for _ in range(1200):  # a task is interrupted between two instructions, not in one
                time.sleep(0.1)
            (tmp_path / f"{n} ended").touch()
        finally:
            (tmp_path / f"{n} cleaned").touch()

    with pytest.raises(UserError, match="stop"):
        list(map_tasks(work, range(3)))
    assert len(list(tmp_path.glob("* cleaned"))) == 2  # before map_tasks raised
    assert not list(tmp_path.glob("* ended"))


def test_task_whose_worker_is_killed_again_and_again_is_one_line():
    message = r"^a process of Ray was killed or crashed, .*: start the same command again$"
    with pytest.raises(TryAgain, match=message), ray_session():
        list(map_tasks(lambda _: os.kill(os.getpid(), signal.SIGKILL), [0]))


def test_running_cluster_is_joined_and_its_sockets_are_as_long_as_expected(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
    check_cluster_address()
    assert joins_cluster()
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert not joins_cluster()
    from ray._private import worker

    node: Any = worker._global_node
    below = node.plasma_store_socket_name.removeprefix(node.temp_dir)
    assert len("/ray" + below) <= len(LONGEST_SOCKET.format(os.getpid()))


def test_children_heed_interrupts_that_this_process_ignores():
    asked = [sys.executable, "-c", "import signal; print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with workers_heed_interrupts():
            inside = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert (inside.strip(), signal.getsignal(signal.SIGINT)) == ("False", signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGINT, before)


def test_ray_starts_when_first_needed_and_stops_with_its_session(monkeypatch):
    running: list[int] = []
    num_cpus_given: list[int] = []

    def init(*_: object, num_cpus: int, **__: object) -> None:
        running.append(1)
        num_cpus_given.append(num_cpus)

    monkeypatch.setattr(ray, "is_initialized", lambda: bool(running))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", running.clear)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(num_cpus=6):
        assert not running
        need_ray()
        need_ray()
        assert (running, num_cpus_given) == ([1], [7])
        with ray_session(num_cpus=1):
            need_ray()
        assert (running, num_cpus_given) == ([1], [7])
    assert not running
    with ray_session():
        pass
    assert num_cpus_given == [7]
    with ray_session():
        with ray_session(keep=True):
            need_ray()
        assert running
    assert not running
    with ray_session(keep=True):
        need_ray()
    with ray_session():
        pass
    assert running

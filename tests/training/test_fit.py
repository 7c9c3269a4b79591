"""What the driver of a run does around Ray Train, which is simulated here."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.lake.cluster import ray_session
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.trainers.trainer import Diverged
from mtrec_ray.training import fit as fit_module
from mtrec_ray.training import loop
from mtrec_ray.training.fit import check_resources, fit, in_background


class Trainer:
    """Ray's, which takes SIGINT for itself where it runs in the main thread."""

    def __init__(self, loop: Any, *, train_loop_config: dict[str, Any], **_: Any) -> None:
        self.work = train_loop_config["record"]

    def fit(self) -> None:
        self.work()


@pytest.fixture
def play(monkeypatch):
    monkeypatch.setattr(fit_module, "TorchTrainer", Trainer)
    told = list[str]()
    actor = SimpleNamespace(get_mistake=SimpleNamespace(remote=lambda: "".join(told)))
    monkeypatch.setattr(fit_module.ray, "get", lambda answer: answer)
    monkeypatch.setattr(fit_module, "ProgressActor", SimpleNamespace(remote=lambda: actor))
    monkeypatch.setattr(fit_module, "need_ray", lambda: None)
    record = SimpleNamespace(config=SimpleNamespace(runner=RunnerConfig()), folder=lambda pack: "runs/name", steps=3)

    def play(work: Callable[[], None]) -> None:
        record.model_dump_json = lambda: work  # what the simulated training does
        fit(record, None)  # pyright: ignore[reportArgumentType]

    play.told = told
    return play


def test_a_mistake_that_a_worker_found_is_raised(play):
    with pytest.raises(UserError, match=r"^training diverged$"):
        play(lambda: play.told.append("training diverged"))


def test_ray_train_runs_outside_the_main_thread(play):
    """Which thus keeps ctrl-c for the command."""
    threads = []
    play(lambda: threads.append(threading.current_thread()))
    assert threads != [threading.main_thread()]


def test_ctrl_c_delivered_to_another_thread_interrupts(play):
    gave_up = []

    def loop() -> None:
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(10)
        gave_up.append(True)

    with pytest.raises(KeyboardInterrupt):
        play(loop)
    assert not gave_up


def test_errors_of_the_run_are_raised_unchanged(play):
    def loop() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        play(loop)


@pytest.mark.parametrize(("error", "raised"), [(Diverged("diverged"), False), (UserError("a changed lake"), True)])
def test_a_mistake_ends_both_workers_and_is_not_repeated(monkeypatch, error, raised):
    """Both find that training diverges, and end; one alone finds another mistake, and Ray Train ends its peer."""
    started, told = [], list[str]()

    def train(settings: dict[str, Any]) -> None:
        started.append(settings)
        raise error

    monkeypatch.setattr(loop, "train_or_resume", train)
    monkeypatch.setattr(loop.ray, "get", lambda answer: answer)
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: SimpleNamespace(get_world_size=lambda: 2))
    answers = {"put_mistake": told.append, "get_mistake": lambda: "".join(told)}
    actor = SimpleNamespace(**{name: SimpleNamespace(remote=answer) for name, answer in answers.items()})
    with pytest.raises(UserError) if raised else nullcontext():
        loop.train_loop_per_worker({"actor": actor})
    loop.train_loop_per_worker({"actor": actor})  # as Ray Train starts the workers again
    assert (len(started), told) == (1, [str(error)])


def test_no_progress_is_asked_for_after_the_session(monkeypatch):
    monkeypatch.setattr(fit_module.ray, "is_initialized", lambda: False)
    fit_module._report(None, 3, lambda *_: pytest.fail("progress without a session"))


def test_a_session_ends_between_two_questions_for_progress(monkeypatch):
    happened, asked, up = [], threading.Event(), []

    def get(*_: Any, **__: Any) -> tuple[int, str]:
        asked.set()
        time.sleep(0.3)
        happened.append("answered")
        return 1, ""

    def shutdown() -> None:
        happened.append("ended")
        up.clear()

    def ask() -> None:
        while up:
            fit_module._report(actor, 3, lambda *_: None)

    for name, simulated in (("is_initialized", lambda: bool(up)), ("get", get), ("shutdown", shutdown)):
        monkeypatch.setattr(fit_module.ray, name, simulated)
    actor = SimpleNamespace(get=SimpleNamespace(remote=lambda: None))
    with ray_session():
        up.append(True)
        thread = threading.Thread(target=ask)  # as the thread of a pack, which an interrupt does not end
        thread.start()
        assert asked.wait(30)
    thread.join()
    assert happened == ["answered"] * (len(happened) - 1) + ["ended"]
    assert len(happened) > 1


def test_background_work_that_exits_ends_the_future():
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        in_background(leave).result(timeout=30)


@pytest.mark.parametrize(
    ("jobs", "message"),
    [
        (1, r"^runner\.workers = 2 needs 5 logical CPUs, the cluster has 4: lower runner\.workers or"),
        (2, r"^jobs_at_once = 2, runner\.workers = 2 needs 9 logical CPUs, .*: lower jobs_at_once, runner\.workers or"),
    ],
)
def test_jobs_that_can_never_start_are_refused_or_warned_of(monkeypatch, caplog, jobs, message):
    monkeypatch.setattr(fit_module, "cluster_resources", lambda: {"CPU": 4.0})
    runner = RunnerConfig(workers=2, cpus_per_worker=2)
    monkeypatch.setattr(fit_module, "joins_cluster", lambda: False)
    with pytest.raises(UserError, match=message):
        check_resources(runner, jobs)
    monkeypatch.setattr(fit_module, "joins_cluster", lambda: True)
    check_resources(runner, jobs)
    assert caplog.messages[0].endswith("unless it can grow")
    check_resources(RunnerConfig(workers=1, cpus_per_worker=1), jobs)
    assert len(caplog.messages) == 1

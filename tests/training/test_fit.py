"""What the driver of a run does around Ray Train, which is played here."""

import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mtrec_ray.lake.cluster import ray_session
from mtrec_ray.trainers.runner_config import RunnerConfig
from mtrec_ray.training import fit as fit_module
from mtrec_ray.training.fit import fit, in_background


class Trainer:
    """Ray's, which takes SIGINT for itself where it runs in the main thread."""

    def __init__(self, loop: Any, *, train_loop_config: dict[str, Any], **_: Any) -> None:
        self.work = train_loop_config["record"]

    def fit(self) -> None:
        self.work()


@pytest.fixture
def play(monkeypatch):
    monkeypatch.setattr(fit_module, "TorchTrainer", Trainer)
    monkeypatch.setattr(fit_module, "ProgressActor", SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(fit_module, "need_ray", lambda: None)
    record = SimpleNamespace(config=SimpleNamespace(runner=RunnerConfig()), folder=lambda pack: "runs/name", steps=3)

    def play(work: Callable[[], None]) -> None:
        record.model_dump_json = lambda: work  # what the simulated training does
        fit(record, None)  # pyright: ignore[reportArgumentType]

    return play


def test_ray_train_runs_outside_the_main_thread(play):
    """Which thus keeps ctrl-c for the command."""
    threads = []
    play(lambda: threads.append(threading.current_thread()))
    assert threads != [threading.main_thread()]


def test_ctrl_c_is_heard_where_another_thread_was_given_it(play):
    gave_up = []

    def loop() -> None:
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        time.sleep(10)
        gave_up.append(True)

    with pytest.raises(KeyboardInterrupt):
        play(loop)
    assert not gave_up


def test_what_ends_the_run_is_raised_as_it_was(play):
    def loop() -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        play(loop)


@pytest.mark.parametrize("there_is_ray", [True, False])
def test_a_progress_bar_ends_without_a_word_where_ray_has_ended(monkeypatch, there_is_ray):
    told, ended = [], threading.Event()

    def is_initialized() -> bool:
        ended.set()
        return there_is_ray

    def get() -> None:
        raise AttributeError("no core worker")

    monkeypatch.setattr(fit_module, "POLL_S", 0.01)
    monkeypatch.setattr(fit_module.ray, "is_initialized", is_initialized)
    monkeypatch.setattr(threading, "excepthook", lambda error: told.append(error.exc_type))
    board = SimpleNamespace(get=SimpleNamespace(remote=get))
    with fit_module._watch(board, 3, lambda *_: None):
        assert ended.wait(30)
    assert told == ([AttributeError] if there_is_ray else [])


def test_a_session_ends_between_two_questions_of_a_progress_bar(monkeypatch):
    happened, asked, up = [], threading.Event(), []

    def get(*_: Any, **__: Any) -> tuple[int, str]:
        asked.set()
        time.sleep(0.3)
        happened.append("answered")
        return 1, ""

    def shutdown() -> None:
        happened.append("ended")
        up.clear()

    monkeypatch.setattr(fit_module, "POLL_S", 0.01)
    for name, played in (("is_initialized", lambda: bool(up)), ("get", get), ("shutdown", shutdown)):
        monkeypatch.setattr(fit_module.ray, name, played)
    board = SimpleNamespace(get=SimpleNamespace(remote=lambda: None))
    with ray_session():
        up.append(True)
        watch = fit_module._watch(board, 3, lambda *_: None)
        watch.__enter__()  # as in the thread of a pack, which an interrupt does not end
        assert asked.wait(30)
    watch.__exit__(None, None, None)
    assert happened == ["answered"] * (len(happened) - 1) + ["ended"]
    assert len(happened) > 1


def test_an_exit_in_the_background_is_not_waited_for_in_vain():
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        in_background(leave).result(timeout=30)

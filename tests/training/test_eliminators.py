"""The driver of packs, with simulated training: order, retries, interrupts, warnings."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import IO, Any

import pytest
from ray.exceptions import RayTaskError
from ray.train import WorkerGroupError

from mtrec_ray.errors import UserError
from mtrec_ray.streams.crops import SequencePlan
from mtrec_ray.streams.sequences import SequenceConfig
from mtrec_ray.training import eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord

PLAN = SequencePlan(
    lake_hash="",
    sequences=SequenceConfig(audit_fraction=0.25),
    length=20,
    split="train",
    users=90,
    positions=900,
    crops_per_bucket=[90],
    value_counts=[[40, 50], [35, 37]],
    min_sampling_hash=0.0,
)
DRIVER = """
import json, os, signal, sys, threading, time
from types import SimpleNamespace

import click

from mtrec_ray.__main__ import main
from mtrec_ray.training import eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord

started, may_fail = [], threading.Event()

def train_pack(record, pack, progress):
    started.append(pack)
    sys.stdout.write(f"started {pack} {os.getpid()}\\n")  # in one piece: two threads write
    sys.stdout.flush()
    if argument == "another thread" and pack == "pack001":
        time.sleep(0.5)  # until the main thread waits
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    may_fail.wait()
    raise RuntimeError("Ray's session is over")

eliminators._train_pack = train_pack
eliminators.jobs_that_fit = lambda runner: 2
packs = {f"pack{number:03d}": [("gender",)] for number in range(3)}
config = SimpleNamespace(runner=SimpleNamespace(workers=1), jobs_at_once=None)
record = SimpleNamespace(packs=packs, config=config, done_uri=lambda pack: "/nowhere/done.json")

@click.command()
@click.option("--json", is_flag=True)
def train(json):
    eliminators.train_packs(record, None)

for argument in map(str.strip, sys.stdin):  # a fork of each, as the imports take longest
    if not (child := os.fork()):
        break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print("ended", code, flush=True)
else:
    sys.exit()

signal.alarm(100)
try:
    sys.argv = ["mtrec", "--json"]
    main(train)
finally:
    if argument == "watch them fail":
        may_fail.set()
        time.sleep(0.5)
    print(json.dumps(started), flush=True)
"""


@pytest.fixture(scope="module")
def driver() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", DRIVER]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, text=True, bufsize=1, **pipes) as driver:
        yield driver


@pytest.mark.parametrize("argument", ["leave them", "another thread", "watch them fail"])
def test_interrupt_ends_the_command_while_packs_run_and_no_pack_is_retried(driver, argument):
    driver.stdin.write(f"{argument}\n")
    started, pids = zip(*(driver.stdout.readline().removeprefix("started ").split() for _ in range(2)), strict=True)
    assert set(started) == {"pack000", "pack001"}
    if argument != "another thread":
        os.kill(int(pids[0]), signal.SIGINT)
    *errors, document, packs, code = iter_until_end(driver.stdout)
    assert "resumes from what is saved" in "".join(errors)
    assert (code, json.loads(document)["exit_code"]) == ("ended 130\n", 130)
    assert sorted(json.loads(packs)) == ["pack000", "pack001"]


def iter_until_end(lines: IO[str]) -> Iterator[str]:
    for line in lines:
        yield line
        if line.startswith("ended "):
            return


@pytest.fixture
def train(monkeypatch):
    """Train four packs, some of which fail; returns the packs started and the error raised."""

    def train(errors: dict[str, Exception], at_once: int = 1) -> tuple[list[str], Exception | None]:
        started = []

        def train_pack(record: Any, pack: str, progress: Any) -> None:
            started.append(pack)
            if pack in errors:
                raise errors[pack]

        monkeypatch.setattr(eliminators, "_train_pack", train_pack)
        monkeypatch.setattr(eliminators, "jobs_that_fit", lambda runner: 3)
        config = SimpleNamespace(runner=SimpleNamespace(workers=1), jobs_at_once=at_once)
        record: Any = SimpleNamespace(packs=dict.fromkeys("abcd"), config=config, done_uri=lambda pack: "/nowhere")
        try:
            eliminators.train_packs(record, None)
        except Exception as error:
            return started, error
        return started, None

    return train


def test_every_pack_is_trained_once(train):
    assert train({}) == (list("abcd"), None)
    started, error = train({}, at_once=3)
    assert (sorted(started), error) == (list("abcd"), None)


def test_failed_pack_is_retried_before_the_others(train):
    started, error = train({"b": RuntimeError("no room")})
    assert "".join(started) == "abbcd"
    assert isinstance(error, eliminators.PacksFailed)


@pytest.mark.parametrize("raised_in", ["this process", "a task", "a worker"])
def test_user_error_is_not_retried(train, raised_in):
    mistake = UserError("lake 'x' was changed: choose another name")
    wrapped = {
        "this process": mistake,
        "a task": RayTaskError("read", "Traceback: at length", mistake).as_instanceof_cause(),
        "a worker": WorkerGroupError("Traceback: at length", {1: mistake}),
    }
    started, error = train({"b": wrapped[raised_in]})
    assert started == ["a", "b"]
    assert isinstance(error, UserError)
    assert str(error) == str(mistake)


def test_attribute_with_few_audit_users_gives_a_warning(caplog):
    """With a quarter in the audit split, 90 users of the train split mean 30 audited, 72 mean 24."""
    attributes = {"gender": ["f", "m"], "age": ["18", "25"]}
    record: Any = SimpleNamespace(attributes=attributes, combinations=[("gender", "age")])
    EliminatorsRecord.check_values(record, PLAN)
    (warning,) = caplog.messages
    assert warning.startswith("attribute age: about 24 users of the audit split have a known value")

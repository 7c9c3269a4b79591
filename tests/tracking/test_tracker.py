"""Tracking: figures are on disk at once, survive kills and resumes, never stop training."""

import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

from mtrec_ray.errors import UserError
from mtrec_ray.tracking import config, metrics_file, tracker
from mtrec_ray.tracking.config import TrackingConfig, check_tracking
from mtrec_ray.tracking.metrics_file import METRICS_FILE, read_metrics
from mtrec_ray.tracking.tracker import TENSORBOARD, Tracker

NOBODY = "http://127.0.0.1:9"


def track(uri, resume_step: int = 0, mlflow_uri: str | None = None, params: dict | None = None) -> Tracker:
    settings = TrackingConfig(mlflow_uri=mlflow_uri)
    return Tracker(str(uri), settings, run_name="run", params=params or {"seed": 1}, resume_step=resume_step)


def log_steps(run: Tracker, *steps: int) -> None:
    for step in steps:
        run.log(step, {"train/loss": 1 / step})


def steps_of(uri) -> list[int]:
    return [row["step"] for row in read_metrics(str(uri))]


def events_of(folder: Path) -> list[Event]:
    """TFRecord: length, its CRC, content, its CRC."""
    events = []
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Folder behind `s3://`, as no local file system."""
    store = pafs.SubTreeFileSystem(str(tmp_path / "store"), pafs.LocalFileSystem())
    (tmp_path / "store").mkdir()
    resolve = lambda uri: (store, uri.removeprefix("s3://"))  # noqa: E731
    monkeypatch.setattr(tracker, "resolve", resolve)
    monkeypatch.setattr("mtrec_ray.files.resolve", resolve)
    return tmp_path / "store"


def test_a_line_is_json_with_step_seconds_time_and_figures(tmp_path):
    with track(tmp_path) as run:
        run.log(10, {"train/loss": 0.5, "train/lr": 1e-3})
        run.log(10, {"val/ndcg@10": float("nan"), "val/auc": float("inf")})
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in lines)
    assert read_metrics(str(tmp_path)) == [first, second]
    assert set(first) == {"step", "seconds", "time", "train/loss", "train/lr"}
    assert (first["step"], first["train/loss"], second["val/ndcg@10"], second["val/auc"]) == (10, 0.5, None, None)
    assert first["time"].endswith("+00:00")


def test_an_empty_folder_has_no_metrics_and_damaged_lines_are_skipped(tmp_path):
    assert read_metrics(str(tmp_path)) == []
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "train/loss": 2}\nnull\n{"step": "a"}\n{"step": 2, "train/lo')
    assert steps_of(tmp_path) == [1]


def test_a_killed_process_leaves_what_it_logged(tmp_path):
    program = (
        "import sys, time; from tests.tracking.test_tracker import track, log_steps\n"
        f"run = track({str(tmp_path)!r}); log_steps(run, 1, 2, 3); print('logged', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "logged\n"
        process.send_signal(signal.SIGKILL)
    assert steps_of(tmp_path) == [1, 2, 3]


def test_a_resumed_run_has_each_step_once(tmp_path):
    with track(tmp_path) as run:
        log_steps(run, 10, 20, 30, 40)
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"step": 50, "tra')
    with track(tmp_path, resume_step=25) as run:
        log_steps(run, 30, 40)
    assert steps_of(tmp_path) == [10, 20, 30, 40]
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS_FILE, TENSORBOARD]


def test_a_run_that_starts_again_drops_all_lines(tmp_path):
    for _ in range(2):
        with track(tmp_path) as run:
            run.log(0, {"val/ndcg@10": 0.1})
            log_steps(run, 1)
    assert steps_of(tmp_path) == [0, 1]


def test_seconds_continue_after_a_resume(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"step": 5, "seconds": 100.5, "time": "x"}\n')
    with track(tmp_path, resume_step=5) as run:
        log_steps(run, 6)
    assert 100.5 <= read_metrics(str(tmp_path))[-1]["seconds"] < 160


def test_tensorboard_has_the_figures_and_purges_on_resume(tmp_path):
    with track(tmp_path) as run:
        log_steps(run, 1, 2)
    with track(tmp_path, resume_step=1) as run:
        run.log(2, {"val/ndcg@10": 0.25})
    events = events_of(tmp_path / TENSORBOARD)
    values = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert values == [(1, "train/loss", 1.0), (2, "train/loss", 0.5), (2, "val/ndcg@10", 0.25)]
    assert [event.step for event in events if event.HasField("session_log")] == [0, 2]


def test_training_continues_without_a_reachable_mlflow_server(tmp_path, caplog):
    pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    started = time.monotonic()
    with track(tmp_path, mlflow_uri=NOBODY) as run:
        log_steps(run, *range(1, 101))
        assert time.monotonic() - started < 2  # the first request needs longer to fail
    assert time.monotonic() - started < tracker.CLOSE_TIMEOUT_S + 5
    assert len(steps_of(tmp_path)) == 100
    assert [NOBODY in record.getMessage() for record in caplog.records if record.name.startswith("mtrec")] == [True]


@pytest.fixture
def mlflow_server(tmp_path, monkeypatch):
    """URI and client of a SQLite store."""
    mlflow = pytest.importorskip("mlflow", reason="needs the extra `mlflow`")
    monkeypatch.setattr(tracker, "CLOSE_TIMEOUT_S", 240)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    return uri, mlflow.MlflowClient(uri)


def test_mlflow_has_parameters_and_figures_of_a_resumed_run_once(tmp_path, mlflow_server):
    server, client = mlflow_server
    params = {"section": {f"key_{number}": number for number in range(120)}}
    with suppress(InterruptedError), track(tmp_path / "run", mlflow_uri=server, params=params) as run:
        log_steps(run, 1, 2)
        raise InterruptedError
    (failed,) = client.search_runs(["1"])
    assert failed.info.status == "FAILED"
    with track(tmp_path / "run", resume_step=2, mlflow_uri=server, params={"other": 1}) as run:
        run.log(3, {"val/ndcg@10": 0.5})
    (found,) = client.search_runs(["1"])
    assert (found.info.run_id, found.info.status, found.info.run_name) == (failed.info.run_id, "FINISHED", "run")
    assert found.data.params == {f"section.key_{number}": str(number) for number in range(120)}
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "train/loss")] == [(1, 1), (2, 0.5)]
    assert found.data.metrics["val/ndcg_10"] == 0.5


def test_a_run_that_starts_again_is_a_new_mlflow_run(tmp_path, mlflow_server):
    server, client = mlflow_server
    for _ in range(2):
        track(tmp_path / "run", mlflow_uri=server).close()
    assert len(client.search_runs(["1"])) == 2


def test_mlflow_that_is_not_installed_is_an_error_before_training(monkeypatch):
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
    check_tracking(TrackingConfig())
    with pytest.raises(UserError, match=r"sqlite:////.*/a\.db.*pip install 'mtrec_ray\[mlflow\]'"):
        check_tracking(TrackingConfig(mlflow_uri="sqlite:///a.db"))


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("sqlite:///a.db", f"sqlite:///{os.getcwd()}/a.db"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
        ("mlruns", f"{os.getcwd()}/mlruns"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        (None, None),
    ],
)
def test_relative_mlflow_uris_become_absolute(given, resolved):
    assert TrackingConfig(mlflow_uri=given).mlflow_uri == resolved


def test_a_folder_that_cannot_be_written_is_one_warning_for_each_target(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with track(tmp_path / "file") as run:
        log_steps(run, 1, 2, 3)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 2  # JSONL, TensorBoard


def test_lines_after_a_full_disk_can_be_read(tmp_path, monkeypatch, caplog):
    class FullDisk:
        name, room = "disk", 9

        def __init__(self, *_, **__):
            self.file = open(tmp_path / METRICS_FILE, "ab", buffering=0)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, lines):
            return self.file.write(lines[: self.room])

    with track(tmp_path) as run:
        log_steps(run, 1)
        monkeypatch.setattr(tracker, "open", FullDisk, raising=False)
        log_steps(run, 2, 3)
        monkeypatch.delattr(tracker, "open")
        log_steps(run, 4)
    assert steps_of(tmp_path) == [1, 4]
    assert [record.getMessage() for record in caplog.records if "disk full" in record.getMessage()]


def test_figures_that_are_no_numbers_are_a_warning(tmp_path, caplog):
    with track(tmp_path) as run:
        run.log(1, {"train/loss": "high"})  # pyright: ignore[reportArgumentType]
        log_steps(run, 2)
    assert steps_of(tmp_path) == [2]
    assert "training continues" in caplog.text


def test_a_target_that_recovers_gets_all_rows(caplog):
    class Flaky:
        failures, rows, closed = 1, [], False

        def write(self, rows):
            if self.failures:
                self.failures -= 1
                raise OSError("away")
            self.rows += rows

        def close(self, failed):
            self.closed = True

    flaky = Flaky()
    thread = tracker.Background("Flaky", lambda: flaky)
    for row in range(5):
        thread.put(row)
    thread.close(failed=False)
    assert (flaky.rows, flaky.closed) == ([0, 1, 2, 3, 4], True)
    assert caplog.text.count("Flaky: tracking failed, training continues: away") == 1


def test_a_target_that_hangs_delays_neither_training_nor_the_end_for_long(monkeypatch):
    monkeypatch.setattr(tracker, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(tracker, "MAX_WAITING", 3)
    started = time.monotonic()
    thread = tracker.Background("Hanging", lambda: time.sleep(30))  # pyright: ignore[reportArgumentType]
    for row in range(100):
        thread.put(row)
    thread.close(failed=False)
    assert time.monotonic() - started < 5
    assert len(thread._rows) <= 3


def test_a_run_on_object_storage_is_copied_at_the_end_and_resumed(bucket):
    with track("s3://runs/a") as run:
        log_steps(run, 1, 2, 3)
    assert steps_of("s3://runs/a") == [1, 2, 3]
    with track("s3://runs/a", resume_step=2) as run:
        log_steps(run, 3, 4)
    assert steps_of("s3://runs/a") == [1, 2, 3, 4]
    assert sum(bool(event.summary.value) for event in events_of(bucket / "runs/a" / TENSORBOARD)) == 5
    assert not os.path.exists(os.path.dirname(run._file))


def test_flush_copies_at_once(bucket):
    with track("s3://runs/a") as run:
        log_steps(run, 1)
        assert not (bucket / "runs/a" / METRICS_FILE).exists()
        run.flush()
        deadline = time.monotonic() + 20
        while not (bucket / "runs/a" / METRICS_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert steps_of("s3://runs/a")[0] == 1


def test_object_storage_that_cannot_be_read_keeps_its_earlier_figures(bucket, monkeypatch, caplog):
    with track("s3://runs/a") as run:
        log_steps(run, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(tracker, "keep_until", lambda uri, step: metrics_file.json.loads("away"))
        with track("s3://runs/a", resume_step=2) as run:
            log_steps(run, 3)
    assert steps_of("s3://runs/a") == [1, 2]
    assert "training continues" in caplog.text

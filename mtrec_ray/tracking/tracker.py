"""Writes the figures that rank 0 of a training run reports."""

import logging
import os
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow.fs as pafs
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from mtrec_ray.files import absolute, resolve
from mtrec_ray.identity import flatten
from mtrec_ray.tracking.config import TrackingConfig
from mtrec_ray.tracking.metrics_file import METRICS_FILE, encode, keep_until

TENSORBOARD = "tensorboard"
MAX_WAITING = 10_000  # rows that wait for a target; beyond that the oldest are dropped
RETRY_S = 5.0  # pause after an error
COPY_EVERY_S = 30.0
CLOSE_TIMEOUT_S = 30.0  # longest wait for a target at the end of training

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """Figures of one step."""

    step: int
    time_s: float
    figures: dict[str, float]


class Tracker(AbstractContextManager["Tracker"]):
    """Writes figures to metrics.jsonl, TensorBoard and MLflow; never raises or waits.

    metrics.jsonl grows line by line, so a killed run leaves all that it measured; the others follow in threads. A run
    on object storage writes to a temporary folder that is copied every 30 s and at each `flush`.

    Args:
        uri: the run's folder.
        config: section `tracking` of the run's settings.
        run_name, params: name and parameters (settings) of the MLflow run.
        resume_step: step of the checkpoint that training resumes from; figures of later steps are dropped, so log the
            figures of a step before its checkpoint.
    """

    def __init__(
        self, uri: str, config: TrackingConfig, *, run_name: str, params: dict[str, Any], resume_step: int = 0
    ) -> None:
        self._warned, self._line_start, self._earlier_s = False, b"", 0.0
        self._temporary, self._copy = None, None
        filesystem, path = resolve(uri)
        folder = path
        if not isinstance(filesystem, pafs.LocalFileSystem):
            self._temporary = tempfile.TemporaryDirectory(prefix="mtrec-tracking-")
            folder = self._temporary.name
        self._file = os.path.join(folder, METRICS_FILE)
        try:
            os.makedirs(folder, exist_ok=True)
            kept = keep_until(uri, resume_step)
            self._earlier_s = float(kept[-1]["seconds"]) if kept else 0.0
            if self._temporary:
                self._append(b"".join(map(encode, kept)))
                self._copy = Background(uri, lambda: FolderCopy(folder, filesystem, path))
        except Exception as error:
            self._warn(error)
        self._start_s = time.monotonic()
        events, purge_step = os.path.join(folder, TENSORBOARD), resume_step + 1 if resume_step else 0
        self._sinks = [Background("TensorBoard", lambda: TensorBoard(events, purge_step))]
        if server := config.mlflow_uri:
            mlflow = lambda: MLflow(server, absolute(uri), run_name, params, resume_step > 0)  # noqa: E731
            self._sinks.append(Background(f"MLflow at {server}", mlflow))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures, by full name (train/loss, val/ndcg@10), of a step of the whole run."""
        try:
            row = Row(int(step), time.time(), {name: float(value) for name, value in figures.items()})
            seconds = round(self._earlier_s + time.monotonic() - self._start_s, 3)
            when = datetime.fromtimestamp(row.time_s, UTC).isoformat(timespec="milliseconds")
            for sink in self._sinks:
                sink.put(row)
            self._append(encode({"step": row.step, "seconds": seconds, "time": when} | row.figures))
        except Exception as error:
            self._warn(error)
        if self._copy:
            self._copy.put(False)

    def flush(self) -> None:
        """Ask for a copy to object storage now, without waiting for it."""
        if self._copy:
            self._copy.put(True)

    def close(self, failed: bool = False) -> None:
        """Finish all targets, object storage last; waits at most `CLOSE_TIMEOUT_S` for each."""
        for sink in [*self._sinks, *([self._copy] if self._copy else [])]:
            sink.close(failed)
        self._sinks, self._copy = [], None
        if self._temporary:
            self._temporary.cleanup()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _append(self, lines: bytes) -> None:
        """Open, append, close: other machines of a shared file system then see the lines."""
        lines, self._line_start = self._line_start + lines, b"\n"  # after a line that failed midway
        with open(self._file, "ab", buffering=0) as file:
            if file.write(lines) < len(lines):
                raise OSError(f"disk full: {self._file}")
        self._line_start = b""

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            logger.warning("%s: tracking failed, training continues: %s", self._file, error)
        self._warned = True


class Background:
    """Passes rows to a sink in a thread; after an error, warned of once, it tries again."""

    def __init__(self, name: str, open_sink: Callable[[], Any]) -> None:
        self._name, self._open_sink, self._failed = name, open_sink, False
        self._rows: deque[Any] = deque(maxlen=MAX_WAITING)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, row: Any) -> None:
        self._rows.append(row)
        self._wake.set()

    def close(self, failed: bool) -> None:
        self._failed = failed
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        sink, warned, closing = None, False, False
        while not closing:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            rows = [self._rows.popleft() for _ in range(len(self._rows))]
            try:
                sink = sink or self._open_sink()
                sink.write(rows)
                if closing:
                    sink.close(self._failed)
            except Exception as error:
                if not warned:
                    logger.warning("%s: tracking failed, training continues: %s", self._name, error)
                closing, warned = closing and warned, True  # the first error is tried again in any case
                self._rows.extendleft(reversed(rows))
                self._wake.set()
                self._closing.wait(RETRY_S)


class TensorBoard:
    """One event a row; `SummaryWriter` would block training after a full disk."""

    def __init__(self, folder: str, purge_step: int) -> None:
        os.makedirs(folder, exist_ok=True)
        self._writer = EventsWriter(os.path.join(folder, "events"), f".{uuid.uuid4().hex[:8]}")
        start = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            values = [Summary.Value(tag=name, simple_value=value) for name, value in row.figures.items()]
            self._writer.write_event(Event(wall_time=row.time_s, step=row.step, summary=Summary(value=values)))
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class MLflow:
    """One MLflow run for each run: a tag with the run's URI finds it on resume."""

    def __init__(self, server: str, run_uri: str, run_name: str, params: dict[str, Any], resume: bool) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        from mlflow import MlflowClient  # optional, and slow to import
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(server), Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "mtrec_ray")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        same, newest_first = f"tags.`mtrec_ray.run` = '{run_uri}'", ["attributes.start_time DESC"]
        if resume and (found := self._client.search_runs([number], same, order_by=newest_first)):
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(number, run_name=run_name, tags={"mtrec_ray.run": run_uri}).info.run_id
        texts = [Param(_allowed(key), str(value)[:6000]) for key, value in flatten(params).items()]
        for first in range(0, len(texts), 100):  # the most that MLflow takes at once
            self._client.log_batch(self._id, params=texts[first : first + 100])

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            time_ms = int(1000 * row.time_s)
            metrics = [self._metric(_allowed(name), value, time_ms, row.step) for name, value in row.figures.items()]
            self._client.log_batch(self._id, metrics=metrics)

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class FolderCopy:
    """Copies a folder to object storage every `COPY_EVERY_S`, or at once for a row `True`."""

    def __init__(self, folder: str, filesystem: pafs.FileSystem, path: str) -> None:
        self._folder, self._filesystem, self._path = folder, filesystem, path
        self._next_s = time.monotonic() + COPY_EVERY_S

    def write(self, rows: list[bool]) -> None:
        if any(rows) or time.monotonic() >= self._next_s:
            pafs.copy_files(self._folder, self._path, pafs.LocalFileSystem(), self._filesystem)
            self._next_s = time.monotonic() + COPY_EVERY_S

    def close(self, failed: bool) -> None:
        self.write([True])


def _allowed(name: str) -> str:
    """MLflow takes fewer characters: `val/ndcg@10` -> `val/ndcg_10`."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)

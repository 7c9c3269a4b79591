"""Targets of a tracker besides metrics.jsonl: TensorBoard, MLflow, object storage."""

import os
import time
import uuid
from typing import Any, NamedTuple

import pyarrow.fs as pafs
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

from mtrec_ray.identity import flatten

COPY_EVERY_S = 30.0


class Row(NamedTuple):
    """Figures of one step."""

    step: int
    time_s: float
    figures: dict[str, float]


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

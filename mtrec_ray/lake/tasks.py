"""Independent tasks over Ray Data: each gets its number and returns plain data; rows never pass through the driver."""

import json
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import DataContext, TaskPoolStrategy

from mtrec_ray.errors import UserError

Progress = Callable[[str, int, int], None]
"""(stage, tasks done, tasks in all)."""


def run_tasks(
    stage: str, work: Callable[[int], Any], count: int, readers: int | None = None, progress: Progress | None = None
) -> list[Any]:
    """Results of `work(0)` to `work(count - 1)`, in this order, by at most `readers` tasks at a time (None = all CPUs).

    Raises:
        UserError, OSError: the first one that a task raised, as it was; other errors as Ray's.
    """
    results: list[Any] = [None] * count
    with _quiet_data():
        rows = ray.data.range(count, override_num_blocks=max(count, 1)).map_batches(
            partial(_run_batch, work), batch_size=1, batch_format="pyarrow", compute=TaskPoolStrategy(readers)
        )
        for done, row in enumerate(rows.iter_rows(), start=1):
            if row["error"] is not None:
                raise _error_of(json.loads(row["error"]))
            results[row["index"]] = json.loads(row["result"])
            if progress:
                progress(stage, done, count)
    return results


def _run_batch(work: Callable[[int], Any], batch: pa.Table) -> pa.Table:
    rows = [_run_one(work, index) for index in batch["id"].to_pylist()]
    schema = pa.schema({"index": pa.int64(), "result": pa.string(), "error": pa.string()}.items())
    return pa.Table.from_pylist(rows, schema)


def _run_one(work: Callable[[int], Any], index: int) -> dict:
    try:
        return {"index": index, "result": json.dumps(work(index)), "error": None}
    except UserError as error:
        return {"index": index, "result": None, "error": json.dumps({"message": str(error)})}
    except OSError as error:
        fields = {"errno": error.errno, "message": error.strerror or str(error), "path": error.filename}
        return {"index": index, "result": None, "error": json.dumps(fields, default=str)}


def _error_of(fields: dict) -> Exception:
    if "errno" not in fields:
        return UserError(fields["message"])
    return OSError(fields["errno"], fields["message"], fields["path"])


class _quiet_data:
    """Ray Data without progress bars and notices, for the time of a `with`."""

    def __enter__(self) -> None:
        self.context = DataContext.get_current()
        self.bars = self.context.enable_progress_bars
        self.context.enable_progress_bars = False
        self.logger = logging.getLogger("ray.data")
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.context.enable_progress_bars = self.bars
        self.logger.setLevel(self.level)

"""Rows of a schedule in the order of its steps, read by the cluster or by this process."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from mtrec_ray.lake.cluster import map_in_process, map_tasks
from mtrec_ray.streams.schedule import Schedule, Segment

Result = TypeVar("Result")
MAX_BUCKETS = 32  # that a local reader keeps in memory
ReadSegment = Callable[..., pa.Table]
"""(segment, **shared) -> rows of one segment in slot order, with columns `lane` and `step` (int32)."""


class Reader:
    """Reads a lake on the cluster: a Ray task a bucket, streams by Ray Data."""

    map = staticmethod(map_tasks)

    def stream(
        self, read_segment: ReadSegment, segments: list[Segment], num_blocks: int, **shared: Any
    ) -> Iterator[pa.Table]:
        """Blocks of rows in the order of the segments, read by `num_blocks` tasks."""
        import ray

        if not segments:
            return
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        items = ray.data.from_items([asdict(s) for s in segments], override_num_blocks=min(num_blocks, len(segments)))
        dataset = items.map_batches(
            _read_items,  # pyright: ignore[reportArgumentType]  (the stub lacks fn_kwargs)
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"read_segment": read_segment, "shared": shared},
        )
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)

    def bucket(self, read: Callable[..., Result], *arguments: Any) -> Result:
        """`read(*arguments)`, which a reader may cache."""
        return read(*arguments)


class LocalReader(Reader):
    """Reads in this process, one after another: short runs start at once."""

    map = staticmethod(map_in_process)

    def __init__(self) -> None:
        self._read: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}  # last used last

    def stream(
        self, read_segment: ReadSegment, segments: list[Segment], num_blocks: int, **shared: Any
    ) -> Iterator[pa.Table]:
        for segment in segments:
            yield read_segment(segment, reader=self, **shared)

    def bucket(self, read: Callable[..., Result], *arguments: Any) -> Result:
        """`read(*arguments)`; the last `MAX_BUCKETS` are kept for the next epoch."""
        key = (read, *(of if isinstance(of, int | str) else id(of) for of in arguments))
        found = self._read.pop(key, None) or (arguments, read(*arguments))  # with arguments, so that ids stay theirs
        self._read = dict([*self._read.items(), (key, found)][-MAX_BUCKETS:])
        return found[1]


CLUSTER = Reader()


def _read_items(items: pa.Table, read_segment: ReadSegment, shared: dict[str, Any]) -> pa.Table:
    return pa.concat_tables([read_segment(Segment(**item), **shared) for item in items.to_pylist()])


def worker_steps(
    read_segment: ReadSegment,
    schedule: Schedule,
    rank: int,
    num_workers: int,
    from_step: int,
    reader: Reader,
    slots_per_block: int = 1,
    **shared: Any,
) -> Iterator[tuple[int, list[pa.Table]]]:
    """(global step, one worker's rows) of every step from `from_step` to the end."""
    segments = schedule.segments(rank, num_workers, from_step)
    num_blocks = max(1, sum(segment.stop - segment.start for segment in segments) // slots_per_block)
    blocks = reader.stream(read_segment, segments, num_blocks, from_step=from_step, seed=schedule.seed, **shared)
    return rows_by_step(blocks, {segment.lane for segment in segments}, range(from_step, schedule.num_steps))


def rows_by_step(blocks: Iterable[pa.Table], lanes: set[int], steps: range) -> Iterator[tuple[int, list[pa.Table]]]:
    """Exactly one (step, its rows) per step, steps without rows included.

    A step is complete when every one of the `lanes` that have rows has delivered one of a later step, or the stream
    has ended; about one block per lane waits in memory.
    """
    waiting: dict[int, list[pa.Table]] = defaultdict(list)
    last_seen = dict.fromkeys(lanes, -1)
    next_step = steps.start
    for block in blocks:
        lane, step = block["lane"].to_numpy(), block["step"].to_numpy()
        starts = np.flatnonzero((np.diff(lane, prepend=-1) != 0) | (np.diff(step, prepend=-1) != 0))
        for start, stop in pairwise([*starts.tolist(), len(block)]):
            waiting[int(step[start])].append(block.slice(start, stop - start))
            last_seen[int(lane[start])] = int(step[start])
        while last_seen and next_step < min(last_seen.values()):
            yield next_step, waiting.pop(next_step, [])
            next_step += 1
    for step in range(next_step, steps.stop):
        yield step, waiting.pop(step, [])

"""Which slot of which bucket belongs to which training step, decided before the first row is read.

A **slot** is one row of the stream, such as a sampled user (in the window: one cross-fitting fold of it). In each epoch
the buckets are put in a seeded order and their slots in a row. This row is cut into `lanes` equal stretches, and step b
takes the b-th piece of every lane: a global batch is a mix of `lanes` buckets, each a random sample of the users, with
no shuffle anywhere. Workers share the lanes, so the batch of a step does not depend on their number, every worker has
equally many steps, every slot comes once an epoch, and a position in the stream is one number: the global step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mtrec_ray.hashing import mix


@dataclass(frozen=True)
class Segment:
    """Consecutive slots of one bucket in one epoch that belong to one lane."""

    period: int
    epoch: int
    bucket: int
    lane: int
    start: int
    """First slot, counted in the bucket's order of this epoch."""
    stop: int
    first_position: int
    """Position within the lane of slot `start`."""
    lane_length: int
    first_step: int
    """Global step at which the epoch begins."""
    num_steps: int
    """Steps of the epoch."""

    def steps(self, slots: np.ndarray) -> np.ndarray:
        """Global step of each slot of the bucket; slot p of n in a lane: floor(((p + 1) * steps - 1) / n)."""
        position = slots - self.start + self.first_position
        return self.first_step + ((position + 1) * self.num_steps - 1) // self.lane_length

    @property
    def begins(self) -> int:
        return int(self.steps(np.array(self.start)))

    @property
    def ends(self) -> int:
        return int(self.steps(np.array(self.stop - 1)))


@dataclass(frozen=True)
class Schedule:
    """Steps of every epoch of every period."""

    slots_per_bucket: tuple[tuple[int, ...], ...]
    """Slots of each bucket, for each period."""
    steps_per_epoch: tuple[int, ...]
    """Steps of an epoch of each period."""
    epochs: tuple[int, ...]
    """Epochs of each period."""
    seed: int
    lanes: int

    @property
    def num_steps(self) -> int:
        return self.period_ends()[-1]

    def period_ends(self) -> list[int]:
        """Global step after the last step of each period."""
        return np.cumsum(
            [epochs * steps for epochs, steps in zip(self.epochs, self.steps_per_epoch, strict=True)]
        ).tolist()

    def epoch_ends(self) -> frozenset[int]:
        """Global step after the last step of each epoch."""
        steps = [n for n, epochs in zip(self.steps_per_epoch, self.epochs, strict=True) for _ in range(epochs)]
        return frozenset(np.cumsum(steps).tolist())

    def period_progress(self, step: int) -> float:
        """Share in [0, 1) of its period's steps that come before this global step."""
        begin = 0
        for end in self.period_ends():
            if step < end:
                return (step - begin) / (end - begin)
            begin = end
        raise ValueError(f"step {step} is not before {begin}, the end of the schedule")

    def segments(self, lanes: set[int], from_step: int = 0) -> list[Segment]:
        """Segments of some lanes from a global step on, ordered by the step at which they begin."""
        chosen = [s for s in self._all_segments() if s.lane in lanes and s.ends >= from_step]
        return sorted(chosen, key=lambda s: (s.first_step, s.begins, s.lane))

    def _all_segments(self) -> Iterator[Segment]:
        first_step = 0
        for period, epochs in enumerate(self.epochs):
            for epoch in range(epochs):
                yield from self._epoch_segments(period, epoch, first_step)
                first_step += self.steps_per_epoch[period]

    def _epoch_segments(self, period: int, epoch: int, first_step: int) -> Iterator[Segment]:
        slots = np.array(self.slots_per_bucket[period])
        order = np.argsort(
            mix(np.arange(len(slots), dtype=np.uint64), "bucket order", self.seed, period, epoch),
            kind="stable",
        )
        ends = np.cumsum(slots[order])
        cuts = [int(ends[-1]) * lane // self.lanes for lane in range(self.lanes + 1)]
        for lane in range(self.lanes):
            for bucket, end in zip(order.tolist(), ends.tolist(), strict=True):
                bucket_start = end - int(slots[bucket])
                start, stop = max(cuts[lane], bucket_start), min(cuts[lane + 1], end)
                if start < stop:
                    yield Segment(
                        period=period,
                        epoch=epoch,
                        bucket=bucket,
                        lane=lane,
                        start=start - bucket_start,
                        stop=stop - bucket_start,
                        first_position=start - cuts[lane],
                        lane_length=cuts[lane + 1] - cuts[lane],
                        first_step=first_step,
                        num_steps=self.steps_per_epoch[period],
                    )


def lanes_of_worker(rank: int, num_workers: int, lanes: int) -> set[int]:
    """The lanes that a worker reads."""
    return set(range(rank, lanes, num_workers))

"""Which row of a training stream is in which batch, decided before any data is read.

* **period**: the training window or one evaluation day; a run trains on one after the other, for some epochs each
* **slot**: the place of one row in an epoch: a crop of a history, or a sampled user with its labelled pairs; in the
  training window, a user has a slot for each fold of the lake's embeddings: that row has the pairs of the fold, and the
  user vector that was computed without them
* **step**: one global batch and the optimizer's step on it, counted over all epochs and periods

An epoch puts the buckets in a seeded order and their slots in one line, cut into `lanes` equal parts. Step b takes the
b-th piece of every lane, so a global batch mixes `lanes` buckets, each a random sample of the users, without a shuffle.
Workers divide the lanes among themselves: the global batch does not depend on their number, every worker has equally
many steps, every slot comes once an epoch, and the position in a stream is one number, the global step.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtrec_ray.hashing import mix


@dataclass(frozen=True)
class Segment:
    """Consecutive slots of one bucket in one epoch that belong to one lane."""

    period: int
    epoch: int
    bucket: int
    lane: int
    start: int  # first slot, in the bucket's order of this epoch
    stop: int
    first_position: int  # position within the lane of slot `start`
    lane_length: int
    first_step: int  # global step at which the epoch starts
    epoch_steps: int  # steps of the epoch

    def steps(self, slots: Any) -> Any:
        """Global step of slots, or of one: of slot p of n floor(((p + 1) * steps - 1) / n)."""
        position = slots - self.start + self.first_position
        return self.first_step + ((position + 1) * self.epoch_steps - 1) // self.lane_length

    def slots_and_steps(self, from_step: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots of this global step or later ones, and the step of each."""
        slots = np.arange(self.start, self.stop)
        steps = self.steps(slots)
        return slots[steps >= from_step], steps[steps >= from_step]


@dataclass(frozen=True)
class Schedule:
    """Steps of every epoch of every period."""

    slots_per_bucket: tuple[tuple[int, ...], ...]  # slots of each bucket, for each period
    steps_per_epoch: tuple[int, ...]  # steps of an epoch of each period
    epochs: tuple[int, ...]  # epochs of each period
    seed: int
    lanes: int

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.period_ends()[-1]

    def period_ends(self) -> list[int]:
        """Global step after the last step of each period."""
        steps = [epochs * steps for epochs, steps in zip(self.epochs, self.steps_per_epoch, strict=True)]
        return np.cumsum(steps).tolist()

    def epoch_ends(self) -> frozenset[int]:
        """Global step after the last step of each epoch."""
        steps = [n for n, epochs in zip(self.steps_per_epoch, self.epochs, strict=True) for _ in range(epochs)]
        return frozenset(np.cumsum(steps).tolist())

    def period_progress(self, step: int) -> float:
        """Fraction in [0, 1) of its period's steps that come before this global step."""
        ends = [0, *self.period_ends()]
        period = bisect_right(ends, step)
        return (step - ends[period - 1]) / (ends[period] - ends[period - 1])

    def segments(self, rank: int, num_workers: int, from_step: int = 0) -> list[Segment]:
        """Segments of a worker's lanes from a global step on, by their first step."""
        lanes, found, first_step = range(rank, self.lanes, num_workers), [], 0
        for period, epochs in enumerate(self.epochs):
            for epoch in range(epochs):
                found += self._epoch_segments(period, epoch, first_step, lanes)
                first_step += self.steps_per_epoch[period]
        left = [segment for segment in found if segment.steps(segment.stop - 1) >= from_step]
        return sorted(left, key=lambda segment: (segment.first_step, segment.steps(segment.start), segment.lane))

    def _epoch_segments(self, period: int, epoch: int, first_step: int, lanes: range) -> Iterator[Segment]:
        slots = np.array(self.slots_per_bucket[period])
        draws = mix(np.arange(len(slots), dtype=np.uint64), "bucket order", self.seed, period, epoch)
        order = np.argsort(draws, kind="stable")
        ends = np.cumsum(slots[order])
        cuts = [int(ends[-1]) * lane // self.lanes for lane in range(self.lanes + 1)]
        for lane in lanes:
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
                        epoch_steps=self.steps_per_epoch[period],
                    )

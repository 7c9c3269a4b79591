"""The training loop of every model, and the state that resumes it. No Ray, no files."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.models.training_state import Part, collect_state, restore_state
from mtrec_ray.process import prepare_process
from mtrec_ray.trainers.workers import Workers

CHECK_CLOCK_EVERY = 10  # steps between two readings of the checkpoint clock, which all workers take together

Batch = TypeVar("Batch")
Device = torch.device | str


@dataclass(frozen=True)
class TrainerState:
    """All that a trainer needs to resume to the same result."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]  # the next step, the losses so far, the best validation


@dataclass(frozen=True)
class Weights:
    """Finished weights and the figures they reached, for one file of the run's folder."""

    tensors: dict[str, Tensor]
    figures: dict[str, Any]


@dataclass
class RunningMean:
    """Mean of losses in float64, without waiting for the device at each step."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, value: Tensor) -> None:
        self.total, self.count = self.total + value.double(), self.count + 1

    def mean(self) -> float:
        return float(self.total) / max(1, self.count)


@dataclass
class Meter:
    """Loss and times since the figures were last taken."""

    loss: RunningMean = field(default_factory=RunningMean)
    examples: int = 0
    data_wait_s: float = 0.0
    step_s: float = 0.0

    def take(self) -> dict[str, float]:
        """The figures so far; all counts restart at zero."""
        elapsed = self.data_wait_s + self.step_s
        figures = {
            "train/loss": self.loss.mean(),
            "train/examples_per_s": self.examples / elapsed if elapsed else 0.0,
            "train/data_wait_s": self.data_wait_s,
            "train/step_s": self.step_s,
        }
        self.__init__()
        return figures


class Trainer(ABC, Generic[Batch]):
    """Trains one model, batch by batch; every worker makes the same calls in the same order.

    After some steps, its milestones, and the last one it validates, or finishes weights, and saves its state.
    """

    saved: ClassVar[tuple[str, ...]] = ("next_step", "started", "stopped")
    """Attributes of plain data that a resumed trainer needs."""

    def __init__(
        self, num_steps: int, milestones: Iterable[int], cpus: float, device: Device, workers: Workers | None
    ) -> None:
        prepare_process(cpus)
        self.milestones = {*milestones, num_steps}
        self.num_steps, self.device, self.workers = num_steps, torch.device(device), workers or Workers()
        self.next_step = 0
        self.started = self.stopped = False
        self.mean_loss, self.meter = RunningMean(), Meter()
        self.outputs: dict[str, Weights] = {}

    def tensors(self, *arrays: np.ndarray) -> list[Tensor]:
        """Arrays on the trainer's device."""
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    @abstractmethod
    def train_step(self, batch: Batch) -> Tensor:
        """Train on this worker's part of a global batch; returns the global loss, a scalar."""

    @abstractmethod
    def num_examples(self, batch: Batch) -> int:
        """Pairs or positions of this worker's part of a batch."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Learning rate of the last step."""

    @abstractmethod
    def reach_milestone(self) -> dict[str, float]:
        """Validate, keep the best, put finished weights in `outputs`; returns flat figures."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The tensors that training changes, by name of the part, each with its optimizer."""

    def start(self) -> bool:
        """Prepare before the first step of a new run; True if that is worth a checkpoint."""
        return False

    def run(
        self,
        batches: Iterator[Batch],
        *,
        until: int | None = None,
        on_step: Callable[[], None] | None = None,
        on_milestone: Callable[[dict[str, float]], None] | None = None,
        on_checkpoint: Callable[[], None] | None = None,
        checkpoint_every_s: float = float("inf"),
    ) -> None:
        """Train up to a global step, or to the end.

        Args:
            batches: one per global step, starting at `next_step`; a later call may continue the same iterator.
            until: global step to stop before; None: the end of the run.
            on_step: called after each step.
            on_milestone: called with the figures of each milestone, those of validation named `val/...`.
            on_checkpoint: called when the state should be saved: at milestones and when the clock says so.
            checkpoint_every_s: seconds between two checkpoints by the clock.
        """
        save = on_checkpoint or (lambda: None)
        if not self.started:
            self.started = True
            if self.start():
                save()
        end, last_saved = self.num_steps if until is None else min(until, self.num_steps), time.monotonic()
        while self.next_step < end and not self.stopped:
            self._timed_step(batches)
            if on_step:
                on_step()
            if self.next_step in self.milestones:
                figures = self.reach_milestone()
                if on_milestone:
                    on_milestone(figures)
            elif (
                self.next_step % CHECK_CLOCK_EVERY
                or on_checkpoint is None
                or not self.workers.agree(time.monotonic() - last_saved >= checkpoint_every_s, self.device)
            ):
                continue
            save()
            last_saved = time.monotonic()

    def take_outputs(self) -> dict[str, Weights]:
        """File name in the run's folder -> weights finished since the last call."""
        outputs, self.outputs = self.outputs, {}
        return outputs

    def state_dict(self) -> TrainerState:
        """The state between two steps."""
        plain = {name: getattr(self, name) for name in self.saved}
        plain |= {"loss_total": float(self.mean_loss.total), "loss_count": self.mean_loss.count}
        return TrainerState(collect_state(self.parts()), plain)

    def load_state_dict(self, state: TrainerState) -> None:
        """Resume from what `state_dict` returned, on any device."""
        for name in self.saved:
            setattr(self, name, state.plain[name])
        self.mean_loss = RunningMean(state.plain["loss_total"], state.plain["loss_count"])
        restore_state(self.parts(), state.tensors)

    def _timed_step(self, batches: Iterator[Batch]) -> None:
        start = time.monotonic()
        batch = next(batches)
        read = time.monotonic()
        loss = self.train_step(batch)
        self.next_step += 1
        self.mean_loss.add(loss)
        self.meter.loss.add(loss)
        self.meter.data_wait_s += read - start
        self.meter.step_s += time.monotonic() - read
        self.meter.examples += self.num_examples(batch) * self.workers.size

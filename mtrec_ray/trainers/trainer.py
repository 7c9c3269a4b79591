"""The training loop of every model, and the state that resumes it. No Ray, no files."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from mtrec_ray.errors import UserError
from mtrec_ray.hashing import mix
from mtrec_ray.models.training_state import Part, collect_state, restore_state
from mtrec_ray.process import prepare_process
from mtrec_ray.workers import Workers

CHECK_CLOCK_EVERY = 10  # steps between two readings of the checkpoint clock, which all workers take together

Batch = TypeVar("Batch", bound=Any)
Weights = tuple[dict[str, Tensor], dict[str, Any]]  # finished tensors for one file, and the figures they reached


class Diverged(UserError):
    """A loss, weight or score is NaN or infinite; every worker finds it at the same step."""


@dataclass(frozen=True)
class TrainerState:
    """All that a trainer needs to resume to the same result."""

    tensors: dict[str, Tensor]
    plain: dict[str, Any]  # the next step, the losses so far, the best validation


@dataclass
class Meter:
    """Loss, examples and times of some steps."""

    loss_total: Tensor | float = 0.0  # in float64; adding does not wait for the device
    steps: int = 0
    examples: int = 0
    data_wait_s: float = 0.0
    step_s: float = 0.0

    def add(self, loss: Tensor, examples: int, data_wait_s: float, step_s: float) -> None:
        self.loss_total, self.steps = self.loss_total + loss.double(), self.steps + 1
        self.examples += examples
        self.data_wait_s += data_wait_s
        self.step_s += step_s

    def mean_loss(self) -> float:
        return float(self.loss_total) / max(1, self.steps)

    def take(self) -> dict[str, float]:
        """The figures so far; all counts restart at zero."""
        elapsed = self.data_wait_s + self.step_s
        figures = {
            "train/loss": self.mean_loss(),
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
    optimizer: torch.optim.Optimizer  # whose first group's learning rate is logged

    def __init__(self, num_steps: int, milestones: Iterable[int], cpus: float, workers: Workers | None) -> None:
        prepare_process(cpus)
        self.milestones = {*milestones, num_steps}
        self.num_steps, self.workers = num_steps, workers or Workers()
        self.device = torch.device(self.workers.device)
        self.next_step = 0
        self.started = self.stopped = False
        self.meter = Meter()  # since the figures were last logged
        self.recent = Meter()  # since the last validation, or of a period
        self.outputs: dict[str, Weights] = {}
        self._unchecked: list[Tensor] = []  # losses of the steps since `check_losses`

    def tensors(self, *arrays: np.ndarray) -> list[Tensor]:
        """Arrays on the trainer's device."""
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    @abstractmethod
    def train_step(self, batch: Batch) -> Tensor:
        """Train on this worker's part of a global batch; returns the global loss, a scalar."""

    @abstractmethod
    def reach_milestone(self) -> dict[str, float]:
        """Validate, keep the best, put finished weights in `outputs`; returns flat figures."""

    @abstractmethod
    def rates(self) -> dict[str, float]:
        """The settings to lower where training diverges, with their values."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The tensors that training changes, by name of the part, each with its optimizer."""

    def start(self) -> bool:
        """Prepare before the first step of a new run; True if that is worth a checkpoint."""
        return False

    def run(
        self,
        batches: Iterator[Batch],  # one per global step from `next_step` on; a later call may continue it
        *,
        until: int | None = None,  # global step to stop before; None: the end of the run
        on_step: Callable[[], None] | None = None,
        on_milestone: Callable[[dict[str, float]], None] | None = None,  # figures of validation are named `val/...`
        on_checkpoint: Callable[[], None] | None = None,  # saves the state: at milestones, and by the clock
        checkpoint_every_s: float = float("inf"),
    ) -> None:
        """Train up to a global step, or to the end; Diverged before NaN weights are kept."""
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
            if self.next_step in self.milestones or self.next_step % CHECK_CLOCK_EVERY == 0:
                self.check_losses()
            if self.next_step in self.milestones:
                self.check_weights()
                figures = self.reach_milestone()
                if on_milestone:
                    on_milestone(figures)
            elif (
                self.next_step % CHECK_CLOCK_EVERY
                or on_checkpoint is None
                or not self.workers.agree(time.monotonic() - last_saved >= checkpoint_every_s)
            ):
                continue
            self.check_weights()
            save()
            last_saved = time.monotonic()

    def check_losses(self) -> None:
        """Diverged where a loss since the last check is NaN or infinite; waits for the device."""
        losses, self._unchecked = self._unchecked, []
        finite = torch.stack(losses).isfinite().tolist() if losses else []
        if not all(finite):
            first = finite.index(False)
            raise self.diverged(f"loss is {float(losses[first]):g}", self.next_step - len(losses) + 1 + first)

    def check_weights(self) -> None:
        """Diverged where a number of the state, or the square of a weight, is NaN or infinite."""
        tensors = [tensor for _, of_part, _ in self.parts() for tensor in of_part.values()]
        weights = [tensor.norm() for tensor in tensors if tensor.is_floating_point()]
        state = [tensor for tensor in collect_state(self.parts()).values() if tensor.is_floating_point()]
        if not torch.stack([tensor.isfinite().all().to(self.device) for tensor in (*weights, *state)]).all():
            raise self.diverged("weights overflow")

    def diverged(self, found: str, step: int | None = None) -> Diverged:
        """The error to raise; `step` is by default the last one."""
        settings = " or ".join(f"{key} ({value:g})".replace("e+", "e") for key, value in self.rates().items())
        place = f"at step {step or self.next_step}"
        return Diverged(f"training diverged: {found} {place}: lower {settings}, under another name")

    def take_outputs(self) -> dict[str, Weights]:
        """File name in the run's folder -> weights finished since the last call."""
        outputs, self.outputs = self.outputs, {}
        return outputs

    def state_dict(self) -> TrainerState:
        """The state between two steps."""
        plain = {name: getattr(self, name) for name in self.saved}
        plain |= {"loss_total": float(self.recent.loss_total), "loss_count": self.recent.steps}
        return TrainerState(collect_state(self.parts()), plain)

    def load_state_dict(self, state: TrainerState) -> None:
        """Resume from what `state_dict` returned, on any device."""
        for name in self.saved:
            setattr(self, name, state.plain[name])
        self.recent = Meter(state.plain["loss_total"], state.plain["loss_count"])
        restore_state(self.parts(), state.tensors)

    def _timed_step(self, batches: Iterator[Batch]) -> None:
        start = time.monotonic()
        batch = next(batches)
        read = time.monotonic()
        loss = self.train_step(batch)
        self._unchecked.append(loss.detach())
        self.next_step += 1
        examples, step_s = batch.num_examples * self.workers.size, time.monotonic() - read
        for meter in (self.meter, self.recent):
            meter.add(loss, examples, read - start, step_s)


def seed_step(seed: int, *step_and_rank: int) -> None:
    """Seed torch for a step, on all workers or one: a resumed run repeats its draws."""
    torch.manual_seed(int(mix(np.array([seed], dtype=np.uint64), "step", *step_and_rank)[0]) >> 1)

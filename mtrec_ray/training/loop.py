"""What each Ray Train worker does for any of the three models."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from mtrec_ray.files import join
from mtrec_ray.tracking.tracker import Tracker
from mtrec_ray.trainers.trainer import CHECK_CLOCK_EVERY, Trainer
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training.checkpoint import load_checkpoint, save_checkpoint
from mtrec_ray.training.weights import save_weights

LOG_POINTS = 200
"""Lines of training figures in `metrics.jsonl`, evenly over a run's steps."""


@dataclass(frozen=True)
class Training:
    """A trainer, its batches, and the folder that its results go to."""

    trainer: Trainer[Any]
    batches: Callable[[int], Iterator[Any]]
    """From a global step on."""
    uri: str
    """Folder of the run, or of a pack within it."""
    name: str
    config: Any
    """Settings of the job; has `runner` and `tracking`."""


MakeTraining = Callable[[dict[str, Any], Workers, torch.device], Training]
"""(plain data, this worker, its device) -> the training of this worker."""


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """The whole run of one worker, resumed from the last checkpoint if there is one.

    Args:
        settings: `make` (MakeTraining), `arguments` (its plain data), `progress` (ProgressActor handle).
    """
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size())
    training: Training = settings["make"](settings["arguments"], workers, ray.train.torch.get_device())
    trainer, config = training.trainer, training.config
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load_state_dict(load_checkpoint(Path(folder)))
    reporter = Reporter(training, settings["progress"])
    try:
        trainer.run(
            training.batches(trainer.num_steps if trainer.stopped else trainer.next_step),
            on_step=reporter.step,
            on_validate=reporter.validated,
            on_checkpoint=reporter.checkpoint,
            checkpoint_every_s=config.runner.checkpoint_every_s,
        )
    finally:
        reporter.close()


class Reporter:
    """Passes a trainer's steps, figures and state on; rank 0 alone writes."""

    def __init__(self, training: Training, progress: Any) -> None:
        self.training, self.trainer, self.progress = training, training.trainer, progress
        self.first = training.trainer.workers.rank == 0
        self.log_every = max(1, self.trainer.num_steps // LOG_POINTS)
        self.tracker: Tracker | None = None
        if self.first:
            params = training.config.model_dump(mode="json")
            self.tracker = Tracker(
                training.uri,
                training.config.tracking,
                run_name=training.name,
                params=params,
                resume_step=self.trainer.next_step,
            )

    def step(self) -> None:
        """After each step: figures and the progress bar, now and then."""
        step = self.trainer.next_step
        if self.tracker and step % self.log_every == 0:
            self.tracker.log(step, self.trainer.meter.take() | {"train/lr": self.trainer.learning_rate()})
        if self.first and (step % CHECK_CLOCK_EVERY == 0 or step == self.trainer.num_steps):
            mean = self.trainer.mean_loss
            self.progress.put.remote(step, f"loss {mean.mean():.4g}" if mean.count else "")

    def validated(self, figures: dict[str, float]) -> None:
        """Log a milestone's validation figures, then write the weights that are finished."""
        validation = {name: value for name, value in figures.items() if name.startswith("val/")}
        if self.tracker and validation:
            self.tracker.log(self.trainer.next_step, validation, kind="validation")
        for file, weights in self.trainer.take_outputs().items():
            if self.first:
                save_weights(join(self.training.uri, file), weights.tensors, weights.figures)

    def checkpoint(self) -> None:
        """Report rank 0's state to Ray Train; every worker takes part, it is a barrier."""
        metrics = {"step": self.trainer.next_step}
        if not self.first:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.trainer.state_dict(), self.training.config)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if self.tracker:
            self.tracker.flush()

    def close(self) -> None:
        """Finish the tracking; training that ended early has failed."""
        if self.tracker:
            done = self.trainer.stopped or self.trainer.next_step == self.trainer.num_steps
            self.tracker.close(failed=not done)

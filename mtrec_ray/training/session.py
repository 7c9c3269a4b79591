"""One worker's training, from the newest checkpoint to the end, on Ray Train or not."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from mtrec_ray.files import join
from mtrec_ray.tracking.tracker import Tracker
from mtrec_ray.trainers.trainer import CHECK_CLOCK_EVERY, Trainer, TrainerState
from mtrec_ray.training.record import Record
from mtrec_ray.training.weights import save_weights
from mtrec_ray.workers import Workers

LOG_POINTS = 200  # lines of training figures in `metrics.jsonl`, evenly over a run's steps

ShowStep = Callable[[int, str], None]
"""Takes the global step and a note for the progress bar."""
SaveState = Callable[[TrainerState | None, int], None]
"""Saves rank 0's state at a global step; other workers pass None: a barrier."""


def train_from(
    state: TrainerState | None, record: Record, pack: str, workers: Workers, show: ShowStep, save: SaveState
) -> None:
    """Train to the end; raises Diverged on all workers, another UserError maybe on one alone."""
    trainer, batches = record.training(workers, pack)
    if state is not None:
        trainer.load_state_dict(state)
    reporter = Reporter(record, pack, trainer, show, save)
    with reporter.tracker or nullcontext():
        trainer.run(
            batches(trainer.num_steps if trainer.stopped else trainer.next_step),
            on_step=reporter.step,
            on_milestone=reporter.milestone,
            on_checkpoint=reporter.checkpoint,
            checkpoint_every_s=record.config.runner.checkpoint_every_s,
        )


class Reporter:
    """Passes a trainer's steps, figures and state on; only rank 0 has a tracker and writes."""

    def __init__(self, record: Record, pack: str, trainer: Trainer[Any], show: ShowStep, save: SaveState) -> None:
        self.config, self.uri = record.config, record.folder(pack)
        self.trainer, self.show, self.save = trainer, show, save
        self.log_every = max(1, trainer.num_steps // LOG_POINTS)
        self.tracker: Tracker | None = None
        if trainer.workers.rank == 0:
            self.tracker = Tracker(
                self.uri,
                self.config.tracking,
                run_name=f"{self.config.name} {pack}".strip(),
                params=self.config.model_dump(mode="json"),
                resume_step=trainer.next_step,
            )

    def step(self) -> None:
        """After each step: figures and the progress bar, now and then."""
        if not self.tracker:
            return
        trainer, step = self.trainer, self.trainer.next_step
        if step % self.log_every == 0:
            self.tracker.log(step, trainer.meter.take() | {"train/lr": trainer.optimizer.param_groups[0]["lr"]})
        if step % CHECK_CLOCK_EVERY == 0 or step == trainer.num_steps:
            self.show(step, f"loss {trainer.recent.mean_loss():.4g}" if trainer.recent.steps else "")

    def milestone(self, figures: dict[str, float]) -> None:
        """Log validation figures, then write the weights that are finished."""
        outputs = self.trainer.take_outputs()
        if not self.tracker:
            return
        if validation := {name: value for name, value in figures.items() if name.startswith("val/")}:
            self.tracker.log(self.trainer.next_step, validation)
        for file, weights in outputs.items():
            save_weights(join(self.uri, file), *weights)

    def checkpoint(self) -> None:
        """Save rank 0's state; every worker takes part."""
        self.save(self.trainer.state_dict() if self.tracker else None, self.trainer.next_step)
        if self.tracker:
            self.tracker.flush()

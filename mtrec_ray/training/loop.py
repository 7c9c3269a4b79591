"""What each Ray Train worker does for any of the three models."""

import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from mtrec_ray.errors import UserError
from mtrec_ray.files import join
from mtrec_ray.tracking.tracker import Tracker
from mtrec_ray.trainers.trainer import CHECK_CLOCK_EVERY, Diverged, Trainer
from mtrec_ray.training.record import Record
from mtrec_ray.training.weights import load_checkpoint, save_checkpoint, save_weights
from mtrec_ray.workers import Workers

LOG_POINTS = 200  # lines of training figures in `metrics.jsonl`, evenly over a run's steps


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """The entire run of one worker, resumed from the last checkpoint if there is one.

    `settings`: `run` (Record class), `record` (its JSON), `pack` (of eliminators), `actor` (a ProgressActor, which
    keeps a user's mistake: Ray Train would start the workers again).
    """
    actor, size = settings["actor"], ray.train.get_context().get_world_size()
    if ray.get(actor.get_mistake.remote()):
        return
    try:
        train_or_resume(settings)
    except UserError as error:
        ray.get(actor.put_mistake.remote(str(error)))
        if size > 1 and not isinstance(error, Diverged):
            raise  # ends the other workers, which wait for this one


def train_or_resume(settings: dict[str, Any]) -> None:
    """Train to the end; raises Diverged on all workers, another UserError maybe on one alone."""
    record: Record = settings["run"].model_validate_json(settings["record"])
    context = ray.train.get_context()
    workers = Workers(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    trainer, batches = record.training(workers, settings["pack"])
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trainer.load_state_dict(load_checkpoint(Path(folder)))
    reporter = Reporter(record, settings["pack"], trainer, settings["actor"])
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

    def __init__(self, record: Record, pack: str, trainer: Trainer[Any], actor: Any) -> None:
        self.config, self.uri = record.config, record.folder(pack)
        self.trainer, self.actor = trainer, actor
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
            self.actor.put.remote(step, f"loss {trainer.recent.mean_loss():.4g}" if trainer.recent.steps else "")

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
        """Report rank 0's state to Ray Train; every worker takes part, it is a barrier."""
        metrics = {"step": self.trainer.next_step}
        if not self.tracker:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(Path(folder), self.trainer.state_dict(), self.config)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self.tracker.flush()

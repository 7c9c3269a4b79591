"""How Ray Tune drives a trial: in its own process, which the next trial reuses, or as a nested Ray Train run."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from tuning.data import Remembered
from tuning.trial import Plan, Trial, make_trial

MakePlan = Callable[[dict[str, Any]], Plan]
"""A trial's drawn parameters -> its plan."""


class InProcess(tune.Trainable):
    """One trial with one worker: no worker group to start, and the process serves trial after trial."""

    def setup(self, config: dict[str, Any], make_plan: MakePlan | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert make_plan is not None, "given by tune.with_parameters"
        self.make_plan, self.remembered = make_plan, Remembered()
        self.trial: Trial = make_trial(make_plan(config), self.remembered)

    def step(self) -> dict[str, Any]:
        metrics = self.trial.advance()
        return {**metrics, "done": self.trial.looks_done == self.trial.num_looks}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.trial.save(Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.trial.load(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.trial = make_trial(self.make_plan(new_config), self.remembered)
        return True


def nested(config: dict[str, Any], make_plan: MakePlan, workers: int, cpus_per_worker: float, folder: str) -> None:
    """One trial with several workers: a Ray Train run below `folder` whose reports go on to Tune."""
    trainer = TorchTrainer(
        nested_loop_per_worker,
        train_loop_config={"plan": make_plan(config)},
        scaling_config=ray.train.ScalingConfig(num_workers=workers, resources_per_worker={"CPU": cpus_per_worker}),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=folder,
            callbacks=[TuneReportCallback()],
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def nested_loop_per_worker(settings: dict[str, Any]) -> None:
    """The whole trial of one worker, from the last look if there is a checkpoint."""
    context = ray.train.get_context()
    rank = context.get_world_rank()
    trial = make_trial(settings["plan"], Remembered(), rank, context.get_world_size())
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            trial.load(Path(folder))
    while trial.looks_done < trial.num_looks:
        metrics = trial.advance()
        if rank != 0:
            ray.train.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            trial.save(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

"""What each data-parallel worker of a propensity run does, one function per level."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce
from mtrec_ray.config import dump_yaml
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.process import prepare_process
from mtrec_ray.steps.batch import make_pair_batch
from mtrec_ray.steps.precision import use_fast_matmul
from mtrec_ray.steps.propensity import train_step
from mtrec_ray.streams.plan import PairPlan
from mtrec_ray.streams.reader import StepRows, training_batches
from mtrec_ray.trainers.workers import (
    CHECK_CLOCK_EVERY,
    Clock,
    RunningMean,
    all_reduce,
)
from mtrec_ray.training.checkpoint import Position, load_checkpoint, save_checkpoint
from mtrec_ray.training.propensity_run import PropensityRecord, save_snapshot, schedule_of
from mtrec_ray.training.record import load_plan


@dataclass
class Trainee:
    """Model, optimizer and the constant tensors of one worker."""

    model: TwoTower
    optimizer: torch.optim.Optimizer
    catalogue: Tensor
    """(titles, title_width) float16 on the device."""
    group_of_territory: np.ndarray
    """(territories,) int64."""
    all_reduce: AllReduce | None
    compute_dtype: torch.dtype | None
    decay: str
    """`OptimConfig.decay` of the learning rates."""

    def step(self, rows: StepRows, progress: float) -> Tensor:
        """Train on one worker's share of a global batch; returns the global loss.

        Args:
            rows: of this worker.
            progress: in [0, 1), the share of the period that is over.
        """
        share = 1.0 - progress if self.decay == "linear" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["first_lr"] * share
        batch = make_pair_batch(
            rows.embedding,
            self.group_of_territory[rows.territory],
            rows.offsets,
            rows.title_index,
            rows.label,
            self.catalogue,
            num_groups=self.model.config.num_groups,
            device=self.catalogue.device,
        )
        return train_step(
            self.model, self.optimizer, batch, all_reduce=self.all_reduce, compute_dtype=self.compute_dtype
        )


def train_loop_per_worker(settings: dict[str, Any]) -> None:
    """The whole run of one worker, from the last checkpoint if there is one.

    Args:
        settings: plain data: `record` (PropensityRecord as JSON text), `board` (actor handle).
    """
    # Rebuild
    record = PropensityRecord.model_validate_json(settings["record"])
    config, context = record.config, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    lake, plan = record.open_lake(), load_plan(record.uri, PairPlan)
    schedule = schedule_of(record, plan)
    trainee = make_trainee(record, lake, ray.train.torch.get_device(), world_size)
    step, mean_loss = _restore(trainee)
    if step == schedule.num_steps:  # only the driver's last words were lost
        _report(trainee, record, step, mean_loss, rank)

    # Train
    save_due = Clock(config.runner.checkpoint_every_s, world_size, trainee.catalogue.device)
    period_ends = schedule.period_ends()
    for rows in training_batches(lake, plan, schedule, rank, world_size, from_step=step):
        if rows.step in period_ends:
            mean_loss = RunningMean()
        mean_loss.add(trainee.step(rows, schedule.period_progress(rows.step)))
        step = rows.step + 1
        if rank == 0 and step % CHECK_CLOCK_EVERY == 0:
            settings["board"].put.remote(step)
        if step in period_ends:
            if rank == 0:
                save_snapshot(record.uri, plan.periods[period_ends.index(step)].day, trainee.model)
            _report(trainee, record, step, mean_loss, rank)
        elif save_due(step):
            _report(trainee, record, step, mean_loss, rank)
    if rank == 0:
        settings["board"].put.remote(step)


def make_trainee(record: PropensityRecord, lake: Lake, device: torch.device, world_size: int) -> Trainee:
    """Model and optimizer before the first step; the seed alone decides the weights."""
    config = record.config
    prepare_process(config.runner.cpus_per_worker)
    torch.manual_seed(config.seed)
    use_fast_matmul()
    model = TwoTower(record.two_tower_config())
    model.init_weights(torch.Generator().manual_seed(config.seed))
    model.to(device).train()
    use_bfloat16 = config.optim.compute_dtype == "bfloat16" or (
        config.optim.compute_dtype == "auto" and device.type == "cuda"
    )
    return Trainee(
        model=model,
        optimizer=make_optimizer(model, record.learning_rates, config.optim.weight_decay),
        catalogue=torch.from_numpy(lake.title_embeddings().copy()).to(device),
        group_of_territory=np.array(record.groups.of_territory, dtype=np.int64),
        all_reduce=all_reduce if world_size > 1 else None,
        compute_dtype=torch.bfloat16 if use_bfloat16 else None,
        decay=config.optim.decay,
    )


def make_optimizer(model: TwoTower, rates: tuple[float, float, float], weight_decay: float) -> torch.optim.Optimizer:
    """Adam (paper A, 4.2), the group block with learning rates of its own."""
    block = model.block_parameters()
    parts = (
        model.tower_parameters(),
        [parameter for parameter in block if parameter.dim() > 2],  # (G, d, d) matrices
        [parameter for parameter in block if parameter.dim() == 2],  # (G, d) vectors
    )
    groups = [{"params": part, "first_lr": rate} for part, rate in zip(parts, rates, strict=True) if part]
    return torch.optim.Adam(groups, lr=rates[0], weight_decay=weight_decay, fused=True)


def _restore(trainee: Trainee) -> tuple[int, RunningMean]:
    """Global step to go on with, and the loss of its period so far."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, RunningMean()
    with checkpoint.as_directory() as folder:
        position = load_checkpoint(Path(folder), trainee.model, trainee.optimizer)
    return position.next_step, RunningMean(position.loss_sum, position.loss_count)


def _report(trainee: Trainee, record: PropensityRecord, step: int, mean_loss: RunningMean, rank: int) -> None:
    """A checkpoint from rank 0; every worker takes part, `ray.train.report` is a barrier."""
    metrics = {"step": step, "train/loss": mean_loss.mean()}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        position = Position(step, float(mean_loss.total), mean_loss.count)
        save_checkpoint(Path(folder), trainee.model, trainee.optimizer, position, dump_yaml(record.config))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

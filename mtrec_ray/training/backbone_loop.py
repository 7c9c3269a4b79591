"""What each data-parallel worker of a backbone's run does, one function per level."""

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import safetensors.torch
import torch
from torch import Tensor

from mtrec_ray.all_reduce import AllReduce
from mtrec_ray.config import dump_yaml
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.files import join
from mtrec_ray.models.running_average import RunningAverage
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.process import prepare_process
from mtrec_ray.steps.pretraining import positions_of, pretraining_step
from mtrec_ray.streams.crops import SequenceBatch, SequencePlan, sequence_batches
from mtrec_ray.streams.held_out import HeldOutUsers, read_held_out
from mtrec_ray.streams.sequences import VALIDATION_EVENT
from mtrec_ray.trainers.accuracy import held_out_metrics, vectors_in_chunks
from mtrec_ray.trainers.workers import (
    CHECK_CLOCK_EVERY,
    Clock,
    RunningMean,
    all_reduce,
    mean_over_workers,
    seed_step,
)
from mtrec_ray.training.backbone_run import WEIGHTS, BackboneRecord, schedule_of
from mtrec_ray.training.checkpoint import load_state, save_state
from mtrec_ray.training.record import load_plan
from mtrec_ray.training.weights import save_weights


@dataclass
class Progress:
    """Where a run stands."""

    next_step: int = 0
    best: float = -1.0
    """Best validation NDCG@10 so far, of the weights in `backbone.safetensors`."""
    best_epoch: int = 0
    stopped: bool = False
    """Early stopping has ended the run."""
    loss_total: float = 0.0
    """Of the steps since the last look."""
    loss_count: int = 0


@dataclass
class BackboneTrainee:
    """Model, its running mean, optimizer."""

    model: SequentialBackbone
    average: RunningAverage[SequentialBackbone]
    """What is validated and kept."""
    optimizer: torch.optim.Optimizer
    record: BackboneRecord
    all_reduce: AllReduce | None

    def step(self, batch: SequenceBatch, rank: int) -> Tensor:
        """Train on one worker's share of a global batch; returns the global loss."""
        optim, device = self.record.config.optim, self.model.positions.device
        seed_step(self.record.config.seed, batch.step)
        negatives = torch.randint(self.record.num_titles, (optim.num_negatives,)).to(device)
        seed_step(self.record.config.seed, batch.step, rank)
        history, targets = (torch.from_numpy(a).to(device) for a in (batch.history, batch.targets))
        positions = positions_of(self.model, history, targets, optim.mask_share)
        loss = pretraining_step(self.model, self.optimizer, positions, negatives, self.all_reduce)
        self.average.update(self.model)
        return loss

    def validate(self, users: HeldOutUsers) -> NextTitleMetrics:
        """Figures of the running mean on the validation event."""
        history = torch.from_numpy(users.history).to(self.model.positions.device)
        vectors = vectors_in_chunks(self.average.module.user_vectors, history)
        return held_out_metrics(users, vectors, self.average.module.title_vectors())


def backbone_loop_per_worker(settings: dict[str, Any]) -> None:
    """The whole run of one worker, from the last checkpoint if there is one.

    Args:
        settings: plain data: `record` (BackboneRecord as JSON text), `board` (actor handle).
    """
    # Rebuild
    record = BackboneRecord.model_validate_json(settings["record"])
    optim, context = record.config.optim, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    lake, plan = record.open_lake(), load_plan(record.uri, SequencePlan)
    schedule = schedule_of(record, plan)
    trainee = make_trainee(record, ray.train.torch.get_device(), world_size)
    progress = _restore(trainee)
    buckets = range(rank, lake.manifest.num_buckets, world_size)
    fraction = plan.validation_fraction_of(optim.validation_users)
    users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
    look_every = optim.evaluate_every * schedule.steps_per_epoch[0]

    # Train
    mean_loss = RunningMean(progress.loss_total, progress.loss_count)
    save_due = Clock(record.config.runner.checkpoint_every_s, world_size, trainee.model.positions.device)
    from_step = schedule.num_steps if progress.stopped else progress.next_step
    for batch in sequence_batches(lake, plan, schedule, rank, world_size, from_step):
        trainee.model.train()
        mean_loss.add(trainee.step(batch, rank))
        progress.next_step = batch.step + 1
        if rank == 0 and progress.next_step % CHECK_CLOCK_EVERY == 0:
            settings["board"].put.remote(progress.next_step)

        # Validate
        if progress.next_step % look_every == 0 or progress.next_step == schedule.num_steps:
            epoch = progress.next_step // schedule.steps_per_epoch[0]
            means = trainee.validate(users).means()
            figures = mean_over_workers(means, len(users), trainee.all_reduce, trainee.model.positions.device)
            figures = {f"val/{name}": value for name, value in figures.items()}
            figures |= {"train/loss": mean_loss.mean(), "epoch": float(epoch)}
            mean_loss = RunningMean()
            if figures["val/ndcg"] > progress.best:
                progress.best, progress.best_epoch = figures["val/ndcg"], epoch
                if rank == 0:
                    save_weights(join(record.uri, WEIGHTS), trainee.average.module.state_dict(), figures)
            elif epoch - progress.best_epoch >= optim.patience * optim.evaluate_every:
                progress.stopped = True
                break
            _report(trainee, progress, mean_loss, rank)
        elif save_due(progress.next_step):
            _report(trainee, progress, mean_loss, rank)
    _report(trainee, progress, mean_loss, rank)


def make_trainee(record: BackboneRecord, device: torch.device, world_size: int) -> BackboneTrainee:
    """Model and optimizer before the first step; the seed alone decides the weights."""
    config = record.config
    prepare_process(config.runner.cpus_per_worker)
    model = SequentialBackbone(record.sequential_config())
    model.init_weights(torch.Generator().manual_seed(config.seed))
    model.to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=True
    )
    return BackboneTrainee(
        model=model,
        average=RunningAverage(model, config.optim.averaging),
        optimizer=optimizer,
        record=record,
        all_reduce=all_reduce if world_size > 1 else None,
    )


def _restore(trainee: BackboneTrainee) -> Progress:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        load_state(Path(folder), trainee.model, trainee.optimizer)
        average = safetensors.torch.load_file(Path(folder) / "average.safetensors")
        trainee.average.module.load_state_dict(average)
        progress = Progress(**json.loads((Path(folder) / "progress.json").read_text()))
    trainee.average.steps = progress.next_step
    return progress


def _report(trainee: BackboneTrainee, progress: Progress, mean_loss: RunningMean, rank: int) -> None:
    """A checkpoint from rank 0; every worker takes part, `ray.train.report` is a barrier."""
    metrics = {"step": progress.next_step, "val/ndcg": progress.best}
    if rank != 0:
        ray.train.report(metrics)
        return
    progress.loss_total, progress.loss_count = float(mean_loss.total), mean_loss.count
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), trainee.model, trainee.optimizer)
        average = {name: tensor.contiguous() for name, tensor in trainee.average.module.state_dict().items()}
        safetensors.torch.save_file(average, Path(folder) / "average.safetensors")
        (Path(folder) / "progress.json").write_text(json.dumps(asdict(progress)))
        (Path(folder) / "config.yaml").write_text(dump_yaml(trainee.record.config))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

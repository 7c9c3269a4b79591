"""What each data-parallel worker of one pack of eliminators does, one function per level."""

import json
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import safetensors.torch

from mtrec_ray.config import dump_yaml
from mtrec_ray.streams.crops import SequencePlan, sequence_batches
from mtrec_ray.streams.held_out import read_held_out, read_prefixes
from mtrec_ray.streams.sequences import VALIDATION_EVENT
from mtrec_ray.trainers.workers import CHECK_CLOCK_EVERY, Clock
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, weights_uri
from mtrec_ray.training.pack_trainee import PREFIXES, PackTrainee, make_pack_trainee
from mtrec_ray.training.record import load_plan
from mtrec_ray.training.weights import save_weights


def pack_loop_per_worker(settings: dict[str, Any]) -> None:
    """The whole run of one worker of a pack, from the last checkpoint if there is one.

    Args:
        settings: plain data: `record` (EliminatorsRecord as JSON text), `pack` (its name), `board` (actor handle).
    """
    # Rebuild
    record, pack = EliminatorsRecord.model_validate_json(settings["record"]), settings["pack"]
    optim, context = record.config.optim, ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    source = record.source()
    backbone = load_backbone(source, record.backbone_hash)
    lake, plan = record.open_lake(source.config.lake), load_plan(record.uri, SequencePlan)
    schedule = plan.schedule(optim.epochs, optim.batch_crops, optim.lanes, record.config.seed)
    buckets = range(rank, lake.manifest.num_buckets, world_size)
    fraction = plan.validation_fraction_of(optim.validation_users)
    users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
    users = users.only(~users.audit_split)
    seen = read_prefixes(lake, plan.sequences, plan.length, buckets, fraction, PREFIXES)
    device = ray.train.torch.get_device()
    trainee = make_pack_trainee(record, pack, backbone, plan, device, users, rank, world_size)
    if not _restore(trainee):
        trainee.begin(seen, users, rank, world_size)
        _report(trainee, rank)
    look_every = optim.evaluate_every * schedule.steps_per_epoch[0]

    # Train and look
    save_due = Clock(record.config.runner.checkpoint_every_s, world_size, device)
    for batch in sequence_batches(lake, plan, schedule, rank, world_size, trainee.next_step):
        trainee.step(batch, rank)
        if rank == 0 and trainee.next_step % CHECK_CLOCK_EVERY == 0:
            settings["board"].put.remote(trainee.next_step)
        if trainee.next_step % look_every == 0 or trainee.next_step == schedule.num_steps:
            trainee.fit_transport(seen, rank, world_size)
            trainee.look(users)
            _report(trainee, rank)
        elif save_due(trainee.next_step):
            _report(trainee, rank)
    if rank == 0:
        save_weights(weights_uri(record, pack), trainee.kept, trainee.figures)
        settings["board"].put.remote(trainee.next_step)
    _report(trainee, rank)


def _restore(trainee: PackTrainee) -> bool:
    """Go on from the last checkpoint; False where there is none."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return False
    with checkpoint.as_directory() as folder:
        trainee.game.load_state(safetensors.torch.load_file(Path(folder) / "game.safetensors"))
        kept = safetensors.torch.load_file(Path(folder) / "kept.safetensors")
        trainee.kept = {name: tensor.to(trainee.device) for name, tensor in kept.items()}
        state = json.loads((Path(folder) / "progress.json").read_text())
    trainee.next_step = state["next_step"]
    trainee.figures |= state["figures"]
    trainee.game.average.steps = trainee.next_step
    return True


def _report(trainee: PackTrainee, rank: int) -> None:
    """A checkpoint from rank 0; every worker takes part, `ray.train.report` is a barrier."""
    metrics = {"step": trainee.next_step}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(trainee.game.state(), Path(folder) / "game.safetensors")
        safetensors.torch.save_file(
            {n: t.contiguous() for n, t in trainee.kept.items()}, Path(folder) / "kept.safetensors"
        )
        state = {"next_step": trainee.next_step, "figures": trainee.figures}
        (Path(folder) / "progress.json").write_text(json.dumps(state))
        (Path(folder) / "config.yaml").write_text(dump_yaml(trainee.record.config))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

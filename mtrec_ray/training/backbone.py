"""`mtrec train backbone`: the driver of one run, from settings to a frozen backbone.

1. open the lake, check the settings against it       (errors before any work)
2. the stored run of this name to resume, or a new one
3. `plan.json`: a counting pass over the histories; then `run.json`: from here on it is a run
4. `fit`: every worker runs `make_training`'s trainer, from the last checkpoint after a failure
5. `run.json` holds the best weights' figures and says done
"""

from functools import partial
from typing import Any

import torch

from mtrec_ray.console import ProgressCallback
from mtrec_ray.files import absolute, check_writable
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.crops import SequencePlan, make_sequence_plan, sequence_batches
from mtrec_ray.streams.held_out import read_held_out
from mtrec_ray.streams.sequences import VALIDATION_EVENT
from mtrec_ray.tracking.config import check_tracking
from mtrec_ray.trainers.backbone import BackboneData, BackboneTrainer
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.workers import Workers
from mtrec_ray.training.backbone_run import BackboneRecord, make_schedule, weights_uri
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.loop import Training
from mtrec_ray.training.record import load_plan, save_plan
from mtrec_ray.training.weights import load_figures


def train_backbone(config: BackboneConfig, progress: ProgressCallback | None = None) -> BackboneRecord:
    """Train one backbone to its end, resuming it if the same name was interrupted.

    Raises:
        UserError: settings that do not fit the lake, the cluster, or the run of the same name; or a
            place that cannot be written to.
    """
    config = config.model_copy(update={"lake": absolute(config.lake), "runs": absolute(config.runs)})
    lake = Lake.open(config.lake)
    record = new_backbone_run(config, lake).resume_or_new()
    if record.status == "done":
        return record.relocate_inputs(lake=config.lake)
    check_tracking(config.tracking)
    check_writable(config.runs)
    check_resources(config.runner)
    if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
        plan = make_sequence_plan(lake, config.sequences, config.model.history, "all", progress)
        plan.validation_fraction_of(config.optim.validation_users)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"num_steps": make_schedule(record, plan).num_steps})
        record.save()
    arguments = {"record": record.model_dump_json()}
    fit(make_training, arguments, config.runs, config.name, config.runner, record.num_steps, progress)
    return record.finish({"validation": load_figures(weights_uri(record))})


def new_backbone_run(config: BackboneConfig, lake: Lake) -> BackboneRecord:
    """The record of a run that has not started."""
    return BackboneRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        attributes=lake.manifest.attributes,
        num_titles=lake.titles.num_rows,
    )


def make_training(arguments: dict[str, Any], workers: Workers, device: torch.device) -> Training:
    """One worker's trainer and batches; `arguments` holds `record` (BackboneRecord as JSON)."""
    record = BackboneRecord.model_validate_json(arguments["record"])
    config, lake, plan = record.config, record.open_lake(), load_plan(record.uri, SequencePlan)
    schedule = make_schedule(record, plan)
    buckets = range(workers.rank, lake.manifest.num_buckets, workers.size)
    fraction = plan.validation_fraction_of(config.optim.validation_users)
    users = read_held_out(lake, plan.sequences, VALIDATION_EVENT, plan.length, buckets, fraction)
    data = BackboneData(record.num_titles, schedule, users)
    trainer = BackboneTrainer(config, data, device=device, workers=workers)
    batches = partial(sequence_batches, lake, plan, schedule, workers.rank, workers.size)
    return Training(trainer, batches, record.uri, config.name, config)

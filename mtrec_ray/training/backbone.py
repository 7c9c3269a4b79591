"""`mtrec train backbone`: the driver of one run, from settings to a frozen backbone.

1. open the lake, check the settings against it       (errors before any work)
2. the run of this name, to go on with, or a new one
3. `plan.json`: a counting pass over the histories; then `run.json`: from here on it is a run
4. `TorchTrainer.fit`: `backbone_loop_per_worker`, restarted from the last checkpoint after a failure
5. `run.json` says done and holds the best weights' figures
"""

from mtrec_ray.console import ProgressCallback
from mtrec_ray.errors import UserError
from mtrec_ray.files import absolute, check_writable, join
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.crops import make_sequence_plan
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.training.backbone_loop import backbone_loop_per_worker
from mtrec_ray.training.backbone_run import WEIGHTS, BackboneRecord, schedule_of
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.record import save_plan
from mtrec_ray.training.weights import load_figures


def train_backbone(config: BackboneConfig, progress: ProgressCallback | None = None) -> BackboneRecord:
    """Train one backbone to its end, going on from its last checkpoint if the same name was stopped.

    Raises:
        UserError: settings that do not fit the lake, the cluster, or the run of the same name; or a
            place that cannot be written to.
    """
    config = config.model_copy(update={"lake": absolute(config.lake), "runs": absolute(config.runs)})
    lake = Lake.open(config.lake)
    record = new_run(config, lake).resume_or_new()
    if record.status == "done":
        return record.relocate_inputs(lake=config.lake)
    check_writable(config.runs)
    check_resources(config.runner)
    if not record.num_steps:  # planned before it is recorded: what fails here leaves no run behind
        plan = make_sequence_plan(
            lake, config.sequences, config.model.history, train_split_only=False, progress=progress
        )
        plan.validation_fraction_of(config.optim.validation_users)
        save_plan(record.uri, plan)
        record = record.model_copy(update={"num_steps": schedule_of(record, plan).num_steps})
        record.save()
    settings = {"record": record.model_dump_json()}
    fit(backbone_loop_per_worker, settings, config.runs, config.name, config.runner, record.num_steps, progress)
    done = record.model_copy(update={"status": "done", "metrics": load_figures(join(record.uri, WEIGHTS))})
    done.save()
    return done


def new_run(config: BackboneConfig, lake: Lake) -> BackboneRecord:
    """The record of a run that has not begun; UserError where its settings do not fit."""
    if config.model.width % config.model.num_heads:
        raise UserError(
            f"model.width = {config.model.width} is not a multiple of model.num_heads = {config.model.num_heads}"
        )
    return BackboneRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        attributes=lake.manifest.attributes,
        num_titles=lake.titles.num_rows,
    )

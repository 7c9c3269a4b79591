"""`mtrec train backbone`: from settings to a frozen backbone."""

from mtrec_ray.console import ProgressCallback
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.fit import check_resources, fit
from mtrec_ray.training.weights import load_figures


def train_backbone(config: BackboneConfig, progress: ProgressCallback | None = None) -> BackboneRecord:
    """Train or resume one backbone to its end; raises what `Record.start` does."""
    record = new_backbone_run(config, Lake.open(config.lake))
    record = record.start(lambda: check_resources(config.runner), progress)
    if record.status == "done":
        return record
    fit(record, progress)
    return record.finish({"validation": load_figures(record.weights_uri())})


def new_backbone_run(config: BackboneConfig, lake: Lake) -> BackboneRecord:
    """The record of a run that has not started."""
    return BackboneRecord(
        status="training",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        attributes=lake.manifest.attributes,
        num_titles=lake.titles.num_rows,
    )

"""Finished runs with untrained weights, and an audit, written by hand."""

import json
from pathlib import Path
from typing import Any

import torch

from mtrec_ray.combinations import combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.files import write_file
from mtrec_ray.jobs.audit_report import AUDIT_FILE, AUDIT_VERSION
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.two_tower import TwoTower
from mtrec_ray.streams.crops import make_sequence_plan
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import make_plan
from mtrec_ray.trainers.adversarial import make_method
from mtrec_ray.trainers.backbone import WEIGHTS
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone, new_backbone_run
from mtrec_ray.training.eliminators import make_packs
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.propensity_run import new_propensity_run
from mtrec_ray.training.record import PLAN
from mtrec_ray.training.weights import save_weights
from tests.serving.bundles import leakage, metric


def write_run(lake: Lake, runs: Path, name: str, seed: int, **settings: Any) -> str:
    """A finished propensity run with the weights of its first step."""
    document = {"lake": lake.uri, "runs": str(runs), "name": name, "seed": seed, "model": {"d": 16}} | settings
    config = validate_config(PropensityConfig, document)
    calendar = config.window.resolve(lake.manifest.calendar)
    record = new_propensity_run(config, lake, calendar)
    plan, _ = make_plan(lake, config.sample, calendar)
    write_file(f"{record.uri}/{PLAN}", plan.model_dump_json().encode())
    model = TwoTower(record.model)
    model.init_weights(torch.Generator().manual_seed(seed))
    save_weights(record.weights_uris()["day_0"], model.state_dict(), {})
    record.model_copy(update={"num_steps": 1}).finish()
    return record.uri


def write_backbone(lake: Lake, runs: Path, **settings: Any) -> BackboneRecord:
    document = {"lake": lake.uri, "runs": str(runs), "name": "backbone", "model": {"width": 16}} | settings
    record = new_backbone_run(validate_config(BackboneConfig, document), lake)
    model = SequentialBackbone(record.sequential_config())
    model.init_weights(torch.Generator().manual_seed(record.config.seed))
    save_weights(f"{record.uri}/{WEIGHTS}", model.state_dict(), {})
    done = record.model_copy(update={"status": "done", "num_steps": 1})
    config, history = record.config.sequences, record.config.model.history
    plan = make_sequence_plan(lake, config, history, "all", reader=LocalReader())
    write_file(f"{record.uri}/{PLAN}", plan.model_dump_json().encode())
    done.save()
    return done


def write_eliminators(
    backbone: BackboneRecord, runs: Path, name: str = "eliminators", **settings: Any
) -> EliminatorsRecord:
    """A finished run of eliminators, filters or fine-tuned models."""
    document = {"backbone": backbone.uri, "runs": str(runs), "name": name, "combinations": "gender,age,gender+age"}
    config = validate_config(EliminatorsConfig, document | settings)
    record = EliminatorsRecord(
        status="done",
        config=config,
        lake_hash=backbone.lake_hash,
        backbone_hash=backbone.weights_hash(),
        attributes=backbone.attributes,
        packs=make_packs(config, backbone.attributes),
        num_steps=1,
    )
    for pack, chosen in record.packs.items():
        num_values = {name: len(values) for name, values in record.attributes.items()}
        method = make_method(config, num_values, load_backbone(backbone), chosen)
        save_weights(record.weights_uris()[pack], dict(method.own_parameters()), {})
    record.save()
    return record


def write_audit(record: EliminatorsRecord, folder: Path, auc: float = 0.5) -> str:
    """An audit of the run in which all combinations have the same metrics."""
    names = ["none", *map(combination_name, record.combinations)]
    combination = {
        "accuracy": {name: metric(0.5) for name in NextTitleMetrics.reported()},
        "leakage": {"vectors": {attribute: leakage(auc=auc) for attribute in record.attributes}},
    }
    document = {
        "version": AUDIT_VERSION,
        "weights_hash": record.weights_hash(),
        "combinations": dict.fromkeys(names, combination),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / AUDIT_FILE).write_text(json.dumps(document))
    return str(folder)

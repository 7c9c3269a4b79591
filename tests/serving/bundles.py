"""Small bundles with random weights, written without a lake."""

import hashlib
import io
import json
from dataclasses import asdict
from datetime import UTC, datetime
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch

from mtrec_ray.bundle.manifest import BundleFile, BundleManifest, manifest_hash
from mtrec_ray.columns import fixed_width_column
from mtrec_ray.combinations import NONE, Combination, combination_name
from mtrec_ray.models.eliminators import StackedEliminators
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.models.shapes import EliminatorConfig, SequentialConfig
from mtrec_ray.models.two_tower import TwoTower, TwoTowerConfig

NUM_TITLES, HISTORY, WIDTH, LAYERS, USER_WIDTH = 40, 6, 16, 2, 12
ATTRIBUTES = {"gender": ["F", "M"], "age": ["young", "middle", "old"]}
COMBINATIONS = [("gender",), ("age",), ("gender", "age")]
TERRITORIES = ["north", "south"]
TITLE_IDS = [f"t{index:02d}" for index in range(NUM_TITLES)]
SOUTH_ONLY = ["t05", "t06"]  # titles that are not offered in the north
OFFERED = {title: ["south"] for title in SOUTH_ONLY}


def leakage(balanced_accuracy: float = 0.5, auc: float = 0.5, permutations: int = 20) -> dict[str, Any]:
    null = {"null_low": 0.46, "chance": 0.5, "attacker": "logistic"}
    return {
        "num_users": 1416,
        "num_permutations": permutations,
        "leaks": False,
        "hidden": True,
        "balanced_accuracy": metric(balanced_accuracy) | null | {"null_high": 0.54},
        "auc": metric(auc) | null | {"null_high": 0.55},
        "micro_f1": metric(balanced_accuracy) | null | {"null_high": 0.54},
        "attackers": {},
    }


def metric(value: float, radius: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - radius, "high": value + radius}


def write_bundle(
    folder: Path,
    seed: int = 0,
    *,
    combinations: list[Combination] = COMBINATIONS,
    offered: dict[str, list[str]] = OFFERED,
    **changes: Any,
) -> Path:
    """Write a whole bundle.

    `offered` has the territories of titles that are not offered in all; `changes` are arguments of `metrics_of` or
    fields of the manifest.
    """
    files, configs = weights(seed, combinations)
    files[BundleFile.TITLES] = titles(offered)
    measured = {name: changes.pop(name) for name in signature(metrics_of).parameters.keys() & changes.keys()}
    document = {
        "version": f"v{seed}",
        "created_at": datetime.now(UTC),
        "lake_hash": "lake",
        "attributes": ATTRIBUTES,
        "territories": TERRITORIES,
        "combinations": combinations,
        **configs,
        **metrics_of(combinations, configs["propensity"], **measured),
        "config": {},
        "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    }
    manifest = BundleManifest.model_validate(document | changes)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write_manifest(folder, json.loads(manifest.model_dump_json()))
    return folder


def weights(seed: int, combinations: list[Combination]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Files of random models, and their configs in the manifest."""
    torch.manual_seed(seed)
    shape = SequentialConfig(
        num_titles=NUM_TITLES, history=HISTORY, width=WIDTH, num_layers=LAYERS, num_heads=2, dropout=0.0
    )
    backbone = SequentialBackbone(shape)
    backbone.init_weights(torch.Generator().manual_seed(seed))
    prompts = EliminatorConfig(num_prompts=3, adapter_width=4)
    sizes = {name: len(values) for name, values in ATTRIBUTES.items()}
    pack = StackedEliminators(prompts, sizes, combinations, WIDTH, LAYERS)
    pack.init_weights(seed)
    towers = TwoTowerConfig(USER_WIDTH, 8, d=16, num_groups=2, group_block="dense", one_hot_of_territory=(0, 1))
    model = TwoTower(towers)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for parameter in (*backbone.parameters(), *pack.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape))
        for parameter in model.group_block.parameters() if model.group_block else ():
            parameter.add_(torch.randn(parameter.shape))
    popular = np.full((2, 10), -1, dtype=np.int32)
    popular[0, :8], popular[1, :9] = range(10, 18), range(3, 12)
    tensors = {
        BundleFile.BACKBONE: backbone.state_dict(),
        BundleFile.ELIMINATORS: pack.state_dict(),
        BundleFile.POPULAR: {"popular": torch.from_numpy(popular)},
        BundleFile.PROPENSITY: model.state_dict(),
    }
    configs = {"backbone": shape.model_dump(), "eliminators": prompts.model_dump(), "propensity": asdict(towers)}
    return {name: safetensors.torch.save(content) for name, content in tensors.items()}, configs


def metrics_of(
    combinations: list[Combination],
    propensity: dict[str, Any],
    *,
    ndcg: float = 0.4,
    leak: float = 0.5,
    auc: float = 0.5,
    permutations: int = 20,
    pr_auc: float | None = 0.1,
    num_negatives: int | None = None,
    cohort: str = "held_out",
) -> dict[str, Any]:
    """The parts of a manifest that contain metrics."""
    names = [NONE, *map(combination_name, combinations)]
    return {
        "metrics": {name: {"ndcg@10": metric(ndcg, 0.01)} for name in names},
        "audit": {name: dict.fromkeys(ATTRIBUTES, leakage(leak, auc, permutations)) for name in names},
        "propensity": {
            "model": propensity,
            "group_of_territory": [0, 1],
            "pr_auc": {} if pr_auc is None else {"mean": metric(pr_auc, 0.0)},
            "protocol": None if pr_auc is None else {"num_negatives": num_negatives, "cohort": cohort},
        },
    }


def write_manifest(folder: Path, document: dict[str, Any]) -> None:
    """With its own hash."""
    document["files"][BundleFile.MANIFEST] = manifest_hash(document)
    (folder / BundleFile.MANIFEST).write_text(json.dumps(document))


def titles(offered: dict[str, list[str]]) -> bytes:
    """The titles table; title 07 has no name."""
    embedding = np.random.default_rng(0).standard_normal((NUM_TITLES, 8)).astype(np.float16)
    table = pa.table(
        {
            "title_id": TITLE_IDS,
            "name": [None if title == "t07" else f"Title {title[1:]}" for title in TITLE_IDS],
            "territories": pa.array([offered.get(title, []) for title in TITLE_IDS], pa.list_(pa.string())),
            "embedding": fixed_width_column(embedding),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()

"""Ray Train with one worker, simulated in this process, and settings of runs of a second."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.train
import ray.train.torch
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training import eliminators, fit
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.loop import train_loop_per_worker
from mtrec_ray.training.record import Record
from tests.trainers.conftest import shorten_transports


class Killed(Exception):
    """The worker's process ended."""


class OneWorker:
    """A worker that is killed after some of its reports, by number, and started again."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, *killed_at: int) -> None:
        self.folder, self.killed_at = folder, killed_at  # the folder is for checkpoints
        self.reports = self.starts = 0
        self.latest: Path | None = None
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        patch.setattr(ray.train, "get_context", lambda: context)
        patch.setattr(ray.train, "get_checkpoint", self.get_checkpoint)
        patch.setattr(ray.train, "report", self.report)
        patch.setattr(ray, "get", lambda answer: answer)
        patch.setattr(ray.train.torch, "get_device", lambda: torch.device("cpu"))
        for driver in (fit, eliminators):
            patch.setattr(driver, "fit", self.fit)
            patch.setattr(driver, "check_resources", lambda *_: None)
        patch.setattr(eliminators, "jobs_that_fit", lambda runner: 1)
        shorten_transports(patch)
        for module in ("record", "propensity_run"):
            patch.setattr(f"mtrec_ray.training.{module}.lake_reader", lambda runner: LocalReader())

    def report(self, metrics: dict[str, Any], checkpoint: ray.train.Checkpoint | None = None) -> None:
        self.reports += 1
        assert checkpoint is not None
        self.latest = self.folder / f"checkpoint{self.reports}"
        shutil.copytree(checkpoint.path, self.latest)
        if self.reports in self.killed_at:
            raise Killed

    def get_checkpoint(self) -> ray.train.Checkpoint | None:
        return self.latest and ray.train.Checkpoint.from_directory(self.latest)

    def fit(self, record: Record, progress: Any, pack: str = "") -> None:
        self.latest = None
        mistakes = list[str]()
        actor = SimpleNamespace(
            put=SimpleNamespace(remote=lambda step, note: None),
            put_mistake=SimpleNamespace(remote=mistakes.append),
            get_mistake=SimpleNamespace(remote=lambda: "".join(mistakes)),
        )
        settings = {"run": type(record), "record": record.model_dump_json(), "pack": pack, "actor": actor}
        while True:
            self.starts += 1
            try:
                train_loop_per_worker(settings)
                break
            except Killed:
                continue
        if mistakes:
            raise UserError(mistakes[0])


def backbone_config(lake: Lake, runs: Path, **settings: Any) -> BackboneConfig:
    document = {
        "lake": lake.uri,
        "runs": str(runs),
        "name": "backbone",
        "model": {"width": 16},
        "optim": {"epochs": 4, "evaluate_every": 2, "lanes": 2, "batch_crops": 16},
        "runner": {"checkpoint_every_s": 0},
    }
    return validate_config(BackboneConfig, document | settings)


def eliminators_config(source: BackboneRecord, runs: Path, epochs: int = 1, **settings: Any) -> EliminatorsConfig:
    optim = {"epochs": epochs, "lanes": 2, "batch_crops": 16, "min_ndcg_ratio": 0.5} | settings.pop("optim", {})
    document = {
        "backbone": source.uri,
        "runs": str(runs),
        "name": "eliminators",
        "combinations": "gender,gender+age",
        "optim": optim,
        "transport": {"passes": 4, "later_passes": 2},
        "runner": {"checkpoint_every_s": 0},
    }
    return validate_config(EliminatorsConfig, document | settings)

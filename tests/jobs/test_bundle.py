"""What a bundle is made of, and what is refused; runs and audit are written by hand, with untrained weights."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.config import validate_config
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.lake.build import BuildOptions, build_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.registry import make_source
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.run import RunRecord, load_snapshot
from tests.jobs.untrained import write_backbone, write_eliminators, write_run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 400, "territories": 4, "titles": 40, "user_width": 8, "title_width": 8, "num_evaluation_days": 2}


@pytest.fixture(scope="module")
def lake(ray_cluster, tmp_path_factory) -> Lake:
    uri = str(tmp_path_factory.mktemp("bundled") / "lake")
    build_lake(make_source("synthetic", SYNTHETIC), uri, BuildOptions(num_buckets=2))
    return Lake.open(uri)


@pytest.fixture(scope="module")
def eliminators(lake, tmp_path_factory) -> EliminatorsRecord:
    runs = tmp_path_factory.mktemp("runs")
    return write_eliminators(write_backbone(lake, runs), runs)


def bundle(run: EliminatorsRecord, out: Path, **settings: Any) -> Bundle:
    return make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(out)} | settings))


def test_a_propensity_run_is_bundled_from_where_it_lies(lake, eliminators, tmp_path):
    run = write_run(lake, tmp_path / "runs", "mtl", 0)
    wanted = load_snapshot(RunRecord.load(run), 0).state_dict()
    shutil.move(run, tmp_path / "elsewhere")
    write_run(lake, tmp_path / "runs", "mtl", 1)  # another, where it was
    found = bundle(eliminators, tmp_path / "bundle", propensity=str(tmp_path / "elsewhere")).propensity()
    assert found is not None
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())

"""What a bundle is made of, and what is refused; runs and audit are written by hand, with untrained weights."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import torch

from mtrec_ray import files
from mtrec_ray.bundle.manifest import BACKBONE, ELIMINATORS, MANIFEST, POPULAR, PROPENSITY, TITLES, Bundle
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.lake.build import BuildOptions, build_lake
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.registry import make_source
from mtrec_ray.streams.catalogue import Catalogue
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.run import RunRecord, load_snapshot
from tests.jobs.untrained import write_audit, write_backbone, write_eliminators, write_run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 400, "territories": 4, "titles": 40, "user_width": 8, "title_width": 8, "num_evaluation_days": 2}


@pytest.fixture(scope="module")
def lake(ray_cluster, tmp_path_factory) -> Lake:
    uri = str(tmp_path_factory.mktemp("bundled") / "lake")
    build_lake(make_source("synthetic", SYNTHETIC), uri, BuildOptions(num_buckets=2))
    return Lake.open(uri)


@pytest.fixture(scope="module")
def backbone(lake, tmp_path_factory) -> BackboneRecord:
    return write_backbone(lake, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def eliminators(backbone, tmp_path_factory) -> EliminatorsRecord:
    return write_eliminators(backbone, tmp_path_factory.mktemp("runs"))


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


def test_the_manifest_is_written_last(lake, eliminators, tmp_path, monkeypatch):
    written: list[str] = []

    def write(fs: pafs.FileSystem, path: str, data: bytes, really: Any = files.write_whole) -> None:
        written.append(Path(path).name)
        really(fs, path, data)

    run = write_run(lake, tmp_path, "mtl", 0)
    monkeypatch.setattr(files, "write_whole", write)
    bundle(eliminators, tmp_path / "bundle", propensity=run)
    assert sorted(written) == sorted([BACKBONE, ELIMINATORS, POPULAR, PROPENSITY, TITLES, MANIFEST])
    assert written[-1] == MANIFEST


def test_popular_titles_are_those_that_most_users_of_the_territory_watched(lake, eliminators, tmp_path):
    popular = bundle(eliminators, tmp_path / "bundle").popular().numpy()
    users, events = lake.read("users").to_pandas(), lake.read("events").to_pandas()
    watched = events[["user_id", "title_id"]].drop_duplicates().merge(users[["user_id", "territory"]], on="user_id")
    offered = Catalogue.of(lake, *lake.manifest.calendar.day_bounds(0)).offer_mask
    assert not offered.all()
    for territory, name in enumerate(lake.territory_names()):
        counts = watched[watched["territory"] == name]["title_id"].value_counts()
        num_users = counts.reindex(lake.titles["title_id"].to_pylist(), fill_value=0).to_numpy()
        found = popular[territory][popular[territory] >= 0]
        assert set(found) == set(np.flatnonzero(offered[territory]))
        assert (np.diff(num_users[found]) <= 0).all()
        assert num_users[found[0]] > num_users[found[-1]]


class TestRefusals:
    @pytest.fixture
    def refused(self, tmp_path):
        """Fails where a bundle is made, or where anything is left of one that is refused."""

        def make(message: str, run: EliminatorsRecord, **settings: Any) -> None:
            with pytest.raises(UserError, match=message):
                bundle(run, tmp_path / "refused", **settings)
            assert not (tmp_path / "refused").exists()

        return make

    def test_models_that_are_not_served(self, backbone, tmp_path, refused):
        refused("holds filter models: a bundle serves elim", write_eliminators(backbone, tmp_path, method="filter"))

    def test_an_unfinished_run(self, lake, backbone, eliminators, tmp_path, refused):
        record = write_eliminators(backbone, tmp_path).model_copy(update={"status": "training"})
        record.save()
        refused(r"eliminators' is not finished: start `mtrec train eliminators`", record)
        run = write_run(lake, tmp_path, "mtl", 0)
        RunRecord.load(run).model_copy(update={"status": "training"}).save()
        refused(r"mtl' is not finished: start `mtrec train propensity`", eliminators, propensity=run)

    def test_another_lake(self, lake, backbone, eliminators, tmp_path, refused):
        record = write_eliminators(backbone, tmp_path).model_copy(update={"lake_hash": "0" * 64})
        record.save()
        refused("was changed since the backbone was trained: train again", record)
        run = write_run(lake, tmp_path, "mtl", 0)
        RunRecord.load(run).model_copy(update={"lake_hash": "0" * 64}).save()
        refused("mtl' was trained on another lake than the backbone", eliminators, propensity=run)

    def test_an_audit_of_other_weights(self, backbone, eliminators, tmp_path, refused):
        audit = write_audit(write_eliminators(backbone, tmp_path, seed=1), tmp_path / "audit")
        refused(r"audit .* is of other weights than run .*: audit this run", eliminators, audit=audit)
        bundle(eliminators, tmp_path / "bundle", audit=write_audit(eliminators, tmp_path / "audit"))

    def test_no_audit_and_no_evaluation_where_they_are_looked_for(self, lake, eliminators, tmp_path, refused):
        refused(r"no audit at .*nowhere", eliminators, audit=str(tmp_path / "nowhere"))
        refused("evaluation is of a propensity run: give it with --propensity", eliminators, evaluation="nowhere")
        run = write_run(lake, tmp_path, "mtl", 0)
        refused(r"no evaluation at 'nowhere'", eliminators, propensity=run, evaluation="nowhere")

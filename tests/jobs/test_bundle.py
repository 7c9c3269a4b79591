"""What a bundle holds, and what is refused; runs and audit are written by hand, with untrained weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest
import torch

from mtrec_ray import files
from mtrec_ray.bundle.manifest import Bundle, BundleFile, BundleManifest, EvaluationProtocol
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import BundleConfig, EvaluateConfig
from mtrec_ray.jobs.evaluate import evaluate_propensity
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.training.eliminators_run import EliminatorsRecord
from mtrec_ray.training.propensity_run import PropensityRecord, load_snapshot
from tests.jobs.untrained import write_audit, write_backbone, write_eliminators, write_run
from tests.tuning.conftest import build_here

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 400, "territories": 4, "titles": 40, "user_width": 8, "title_width": 8, "num_evaluation_days": 2}


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return build_here(tmp_path_factory.mktemp("bundled") / "lake", 2, **SYNTHETIC)


@pytest.fixture(scope="module")
def backbone(lake, tmp_path_factory) -> BackboneRecord:
    return write_backbone(lake, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def eliminators(backbone, tmp_path_factory) -> EliminatorsRecord:
    return write_eliminators(backbone, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def runs(lake, tmp_path_factory) -> list[str]:
    """Two seeds of one variant, and of another whose name has the same prefix."""
    folder = tmp_path_factory.mktemp("propensity")
    wider = {"model": {"d": 24}}
    seeds = [write_run(lake, folder, f"mtl-s{seed}", seed) for seed in (0, 1)]
    return seeds + [write_run(lake, folder, f"mtl-wide-s{seed}", seed, **wider) for seed in (0, 1)]


def evaluate(runs: list[str], out: Path, **settings: Any) -> dict[str, Any]:
    """PR-AUC by variant and territory, average over days."""
    document = {"runs": runs, "num_bootstrap": 20, "num_titles": 0, "out": str(out)} | settings
    found = evaluate_propensity(validate_config(EvaluateConfig, document)).document()["territory_metrics"]["held_out"]
    return {
        variant: {name: of["pr_auc"] for name, of in by_day["average"].items()} for variant, by_day in found.items()
    }


def bundle(run: EliminatorsRecord, out: Path, **settings: Any) -> Bundle:
    return make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(out)} | settings)).bundle


def test_a_moved_propensity_run_is_bundled(lake, eliminators, tmp_path):
    run = write_run(lake, tmp_path / "runs", "mtl", 0)
    wanted = load_snapshot(PropensityRecord.load(run), 0).state_dict()
    shutil.move(run, tmp_path / "elsewhere")
    write_run(lake, tmp_path / "runs", "mtl", 1)  # another in its old folder
    found = bundle(eliminators, tmp_path / "bundle", propensity=str(tmp_path / "elsewhere")).propensity()
    assert found is not None
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())


def test_pr_auc_is_of_the_runs_variant_with_its_protocol(eliminators, runs, tmp_path):
    evaluated = evaluate(runs, tmp_path / "report", num_negatives=9)
    versions = set()
    for run, variant in zip(runs, ["mtl", "mtl", "mtl-wide", "mtl-wide"], strict=True):
        name = Path(run).name
        made = bundle(eliminators, tmp_path / name, propensity=run, evaluation=str(tmp_path / "report"))
        part = made.manifest.propensity
        assert part is not None
        for name in ("mean", "all"):
            assert part.pr_auc[name].model_dump() == evaluated[variant][name]
        assert "mean" in part.pr_auc
        assert part.protocol == EvaluationProtocol(num_negatives=9, cohort="held_out")
        versions.add(made.manifest.version)
    assert len(versions) == 4
    assert evaluated["mtl"]["mean"] != evaluated["mtl-wide"]["mean"]


def test_a_renamed_run_is_recognised_by_its_weights(eliminators, runs, tmp_path):
    evaluated = evaluate(runs[:1], tmp_path / "report", references=False)
    shutil.copytree(runs[0], tmp_path / "renamed")
    settings = {"propensity": str(tmp_path / "renamed"), "evaluation": str(tmp_path / "report")}
    part = bundle(eliminators, tmp_path / "bundle", **settings).manifest.propensity
    assert part is not None
    assert part.pr_auc["mean"].model_dump() == evaluated["mtl"]["mean"]
    assert part.protocol == EvaluationProtocol(num_negatives=None, cohort="held_out")


def test_a_manifest_holds_the_audit_of_each_combination(eliminators, tmp_path):
    audit = write_audit(eliminators, tmp_path / "audit", auc=0.25)
    made = bundle(eliminators, tmp_path / "bundle", audit=audit).manifest
    assert list(made.audit) == list(made.metrics) == ["none", "gender", "age", "gender+age"]
    for of in made.audit.values():
        assert {name: (found.auc.value, found.hidden) for name, found in of.items()} == dict.fromkeys(
            eliminators.attributes, (0.25, True)
        )


def test_a_bundle_carries_whether_rewatching_counts(lake, eliminators, tmp_path):
    backbone = write_backbone(lake, tmp_path / "runs", sequences={"exclude_seen": False})
    manifest = bundle(write_eliminators(backbone, tmp_path / "runs"), tmp_path / "again").manifest
    usual = bundle(eliminators, tmp_path / "usual").manifest
    assert (usual.exclude_seen, manifest.exclude_seen) == (True, False)
    assert usual.version != manifest.version


def test_a_result_shows_its_bundle(eliminators, tmp_path):
    audit = write_audit(eliminators, tmp_path / "audit")
    config = validate_config(BundleConfig, {"run": eliminators.uri, "audit": audit, "out": str(tmp_path / "bundle")})
    result = make_bundle(config)
    of_bundle = {"bundle": str(tmp_path / "bundle"), "bundle_version": result.bundle.manifest.version}
    holds = {"num_combinations": 3, "audited": True, "propensity": False}
    assert result.document() == {"version": 1} | of_bundle | holds
    ndcg = result.metrics.set_index(["combination", "metric"]).value["gender+age", "ndcg@10"]
    assert ndcg == result.bundle.manifest.metrics["gender+age"]["ndcg@10"].value
    assert len(result.tables()) == 1


def test_the_manifest_is_written_last(lake, eliminators, tmp_path, monkeypatch):
    written: list[str] = []

    def write(fs: pafs.FileSystem, path: str, data: bytes, really: Any = files.write_atomic) -> None:
        if Path(path).name != files.WRITABLE:
            written.append(Path(path).name)
        really(fs, path, data)

    run = write_run(lake, tmp_path, "mtl", 0)
    monkeypatch.setattr(files, "write_atomic", write)
    bundle(eliminators, tmp_path / "bundle", propensity=run)
    assert sorted(written) == sorted(BundleFile)
    assert written[-1] == BundleFile.MANIFEST


def test_a_folder_with_other_files_is_refused_and_unchanged(lake, eliminators):
    before = sorted(Path(lake.uri).iterdir())
    with pytest.raises(UserError, match=r"which is no part of a bundle: choose another --out"):
        bundle(eliminators, Path(lake.uri))
    assert sorted(Path(lake.uri).iterdir()) == before


def test_a_bundle_is_replaced_when_its_content_changes(eliminators, tmp_path, monkeypatch, caplog):
    def make(auc: float) -> BundleManifest:
        audit = write_audit(eliminators, tmp_path / "audit", auc)
        document = {"run": eliminators.uri, "audit": audit, "out": str(tmp_path / "bundle")}
        return make_bundle(validate_config(BundleConfig, document), replace=True).bundle.manifest

    first = make(0.5)
    assert make(0.5) == first
    assert not caplog.records
    second = make(0.25)
    assert second.version != first.version
    assert second.audit["age"]["gender"].auc.value == 0.25
    assert f"version {second.version} replaces {first.version}" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr("mtrec_ray.bundle.manifest.write_file", None)
        with pytest.raises(TypeError):
            make(0.5)
    with pytest.raises(UserError, match=r"no bundle at .*manifest\.json is missing"):
        Bundle.open(str(tmp_path / "bundle"))
    assert make(0.5).version == first.version


def test_popular_titles_are_ordered_by_users_of_the_territory(lake, eliminators, tmp_path):
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
        """Checks that a bundle is refused and leaves no files."""

        def make(message: str, run: EliminatorsRecord, **settings: Any) -> None:
            with pytest.raises(UserError, match=message):
                bundle(run, tmp_path / "refused", **settings)
            assert not (tmp_path / "refused").exists()

        return make

    def test_other_methods_than_eliminators_are_refused(self, backbone, tmp_path, refused):
        refused("holds filter models: a bundle serves elim", write_eliminators(backbone, tmp_path, method="filter"))

    def test_unfinished_runs_and_another_lake_are_refused(self, lake, backbone, eliminators, tmp_path, refused):
        record, run = write_eliminators(backbone, tmp_path), PropensityRecord.load(write_run(lake, tmp_path, "mtl", 0))
        unfinished = [f"{name}' is not finished: start `mtrec train" for name in ("eliminators", "mtl")]
        other = ["has changed since run 'eliminators' was", "mtl' was trained on another lake than the backbone"]
        for update, messages in (({"status": "training"}, unfinished), ({"lake_hash": "0" * 64}, other)):
            changed, of_run = record.model_copy(update=update), run.model_copy(update=update)
            changed.save()
            refused(messages[0], changed)
            of_run.save()
            refused(messages[1], eliminators, propensity=run.uri)

    def test_an_audit_of_other_weights_is_refused(self, backbone, eliminators, tmp_path, refused):
        audit = write_audit(write_eliminators(backbone, tmp_path, seed=1), tmp_path / "audit")
        refused(r"audit .* is of other weights than run .*: audit this run", eliminators, audit=audit)
        bundle(eliminators, tmp_path / "bundle", audit=write_audit(eliminators, tmp_path / "audit"))

    def test_missing_audit_and_evaluation_are_refused(self, lake, eliminators, tmp_path, refused):
        refused(r"no audit at .*nowhere", eliminators, audit=str(tmp_path / "nowhere"))
        refused("evaluation is of a propensity run: give it with --propensity", eliminators, evaluation="nowhere")
        run = write_run(lake, tmp_path, "mtl", 0)
        refused(r"no evaluation at 'nowhere'", eliminators, propensity=run, evaluation="nowhere")

    def test_an_evaluation_of_other_weights_is_refused(self, lake, eliminators, runs, tmp_path, refused):
        evaluate(runs[:1], tmp_path / "report")
        message = r"evaluation .* is of mtl-s0, of other weights than run '.*mtl-wide-s0': evaluate this run"
        refused(message, eliminators, propensity=runs[2], evaluation=str(tmp_path / "report"))
        again = write_run(lake, tmp_path, "mtl-s0", 7)  # trained again under its name
        refused("of other weights than run", eliminators, propensity=again, evaluation=str(tmp_path / "report"))

    def test_audit_and_evaluation_of_another_version_are_refused(self, eliminators, runs, tmp_path, refused):
        (tmp_path / "metrics.json").write_text('{"pr_auc/mean": 0.5}')
        message = "has format version 0, this mtrec_ray reads 1: make it again with `mtrec evaluate propensity"
        refused(message, eliminators, propensity=runs[0], evaluation=str(tmp_path))
        (tmp_path / "audit.json").write_text('{"version": 1}')
        message = "has format version 1, this mtrec_ray reads 2: make it again with `mtrec audit RUN --out DIR`"
        refused(message, eliminators, audit=str(tmp_path))

    def test_an_audit_that_lacks_a_metric_is_refused(self, eliminators, tmp_path, refused):
        audit = write_audit(eliminators, tmp_path)
        document = json.loads((tmp_path / "audit.json").read_text())
        document["combinations"]["age"]["leakage"]["vectors"]["gender"]["auc"]["null_high"] = None
        (tmp_path / "audit.json").write_text(json.dumps(document))
        refused("age/vectors/gender/auc/null_high could not be measured: audit more users", eliminators, audit=audit)

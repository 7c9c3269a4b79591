"""From a lake to a bundle: backbone, eliminators, audit, bundle, on a small service with planted tastes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mtrec_ray.bundle.manifest import Bundle
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.audit import Audit, audit
from mtrec_ray.jobs.audit_config import AuditConfig
from mtrec_ray.jobs.audit_report import show_audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.bundle_config import BundleConfig
from mtrec_ray.lake.build import build_lake
from mtrec_ray.sources.registry import make_source
from mtrec_ray.streams.sequences import is_attacked
from mtrec_ray.training.backbone import train_backbone
from mtrec_ray.training.backbone_config import BackboneConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.eliminators_config import EliminatorsConfig
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_candidates

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SYNTHETIC = {"users": 1000, "territories": 4, "titles": 80, "events_per_user": 40.0, "attribute_correlation": 0.8}
COMBINATIONS = ["gender", "age", "gender+age"]


def backbone_config(folder: Path, **settings: Any) -> BackboneConfig:
    document = {
        "lake": str(folder / "lake"),
        "runs": str(folder / "runs"),
        "name": "backbone",
        "model": {"width": 32},
        "optim": {"epochs": 24, "evaluate_every": 6, "lanes": 4},
    }
    return validate_config(BackboneConfig, document | settings)


def eliminators_config(folder: Path, **settings: Any) -> EliminatorsConfig:
    document = {
        "backbone": str(folder / "runs" / "backbone"),
        "runs": str(folder / "runs"),
        "name": "eliminators",
        "combinations": ",".join(COMBINATIONS),
        "optim": {"epochs": 4, "lanes": 4},
    }
    return validate_config(EliminatorsConfig, document | settings)


@pytest.fixture(scope="module")
def folder(ray_cluster, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fairness")
    build_lake(make_source("synthetic", SYNTHETIC), str(folder / "lake"))
    return folder


@pytest.fixture(scope="module")
def backbone(folder) -> BackboneRecord:
    return train_backbone(backbone_config(folder))


@pytest.fixture(scope="module")
def eliminators(folder, backbone) -> EliminatorsRecord:
    return train_eliminators(eliminators_config(folder))


@pytest.fixture(scope="module")
def audited(folder, eliminators) -> tuple[Audit, dict[str, Any]]:
    settings = {"num_folds": 3, "num_permutations": 2, "num_bootstrap": 20, "lists": False}
    found = audit(validate_config(AuditConfig, {"run": eliminators.uri} | settings))
    flat, tables = show_audit(found, str(folder / "audit"), num_bootstrap=20, seed=0)
    assert len(tables) == 3
    return found, flat


def test_a_backbone_learns_what_comes_next(backbone):
    assert backbone.status == "done"
    assert backbone.metrics["val/auc"] > 0.75  # chance 0.5
    vectors = load_backbone(backbone).user_vectors(torch.tensor([[1, 2, 3], [1, -1, -1]]))
    assert vectors.shape == (2, 32)
    assert torch.isfinite(vectors).all()


def test_a_finished_run_is_given_back_and_another_run_of_its_name_refused(folder, backbone):
    assert train_backbone(backbone_config(folder)) == backbone
    with pytest.raises(UserError, match=r"seed = 0 \(now 1\)"):
        train_backbone(backbone_config(folder, seed=1))


def test_every_combination_is_trained_and_the_backbone_left_alone(folder, backbone, eliminators):
    assert eliminators.status == "done"
    assert eliminators.packs == {"pack000": [("gender",), ("age",), ("gender", "age")]}
    (candidate,) = load_candidates(eliminators, load_backbone(backbone))
    assert candidate.combinations == (("gender",), ("age",), ("gender", "age"))
    before, after = load_backbone(backbone).state_dict(), candidate.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    history, values = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, -1]])
    vectors = candidate.user_vectors(history, values)  # (K, 1, d)
    plain = load_backbone(backbone).user_vectors(history)
    assert all(not torch.allclose(vector, plain, atol=1e-4) for vector in vectors)


def test_attackers_users_are_those_that_no_eliminator_saw(folder, eliminators, audited):
    found, flat = audited
    assert json.loads((folder / "runs" / "eliminators" / "plan.json").read_text())["without_attacked"] is True
    config = BackboneRecord.load(eliminators.config.backbone).config.sequences
    assert (found.users.attacked == is_attacked(found.users.keys, config)).all()
    assert flat["num_attacked_users"] == found.users.attacked.sum() < flat["num_users"]


def test_runs_that_tables_could_not_tell_apart_are_refused(eliminators):
    with pytest.raises(UserError, match="a run named 'eliminators' cannot be told apart"):
        audit(validate_config(AuditConfig, {"run": eliminators.uri, "compare": [eliminators.uri]}))


def test_an_audit_has_every_combination_by_every_attribute(folder, audited):
    _, flat = audited
    for combination in ["none", *COMBINATIONS]:
        for attribute in ("gender", "age", "occupation"):
            for figure in ("balanced_accuracy", "auc", "null_low", "null_high", "micro_f1", "majority_rate"):
                assert 0 <= flat[f"audit/{combination}/{attribute}/{figure}"] <= 1, (combination, attribute, figure)
        assert flat[f"ndcg@10/{combination}_low"] <= flat[f"ndcg@10/{combination}"]
        assert flat[f"ndcg@10/{combination}"] <= flat[f"ndcg@10/{combination}_high"]
    assert json.loads((folder / "audit" / "audit.json").read_text()) == json.loads(json.dumps(flat))
    table = pd.read_csv(folder / "audit" / "audit.csv", keep_default_na=False)  # `none` is the backbone, not a gap
    assert len(table) == 4 * 3
    for row in table.to_dict("records"):
        assert row["auc"] == pytest.approx(flat[f"audit/{row['combination']}/{row['attribute']}/auc"])
        assert row["recommender_auc"] == pytest.approx(flat[f"auc/{row['combination']}"])


def test_a_planted_attribute_is_readable_until_it_is_eliminated(audited):
    """Gender follows taste in most users; its interval is of the best attacker's balanced accuracy."""
    _, flat = audited
    low = {name: flat[f"audit/{name}/gender/balanced_accuracy_low"] for name in ["none", *COMBINATIONS]}
    auc = {name: flat[f"audit/{name}/gender/auc"] for name in ["none", *COMBINATIONS]}
    chance = 0.5
    assert min(low["none"], low["age"]) > chance  # readable, also where another attribute was eliminated
    assert low["gender"] < chance
    assert low["gender+age"] < chance + 0.03  # of two at once 500 users leave more than of one
    assert min(auc["none"], auc["age"]) - max(auc["gender"], auc["gender+age"]) > 0.05
    for name in COMBINATIONS:
        assert flat[f"ndcg@10/{name}"] > 0.95 * flat["ndcg@10/none"]


def test_a_bundle_holds_what_the_runs_hold(folder, eliminators, audited, tmp_path):
    config = {"run": eliminators.uri, "audit": str(folder / "audit"), "out": str(tmp_path / "bundle")}
    bundle = make_bundle(validate_config(BundleConfig, config))
    assert bundle.manifest.combinations == [("gender",), ("age",), ("gender", "age")]
    assert bundle.manifest.metrics["none"]["ndcg@10"] == audited[1]["ndcg@10/none"]
    assert bundle.manifest.audit["age"]["gender"]["null_high"] == audited[1]["audit/age/gender/null_high"]
    (candidate,) = load_candidates(eliminators, load_backbone(BackboneRecord.load(eliminators.config.backbone)))
    history, values = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, -1]])
    served = bundle.backbone().user_vectors(history, eliminators=bundle.eliminators().for_all(values))
    assert torch.equal(served, candidate.user_vectors(history, values))
    for offered in bundle.popular():
        titles = offered[offered >= 0]
        assert len(titles) == len(np.unique(titles)) > 40
        assert (offered[len(titles) :] == -1).all()
    with pytest.raises(UserError, match="is a bundle already"):
        make_bundle(validate_config(BundleConfig, config))
    unaudited = make_bundle(validate_config(BundleConfig, config | {"audit": None, "out": str(tmp_path / "unaudited")}))
    assert unaudited.manifest.version != bundle.manifest.version
    figures = json.loads((folder / "audit" / "audit.json").read_text()) | {"audit/age/gender/auc": float("nan")}
    (tmp_path / "audit.json").write_text(json.dumps(figures))
    with pytest.raises(UserError, match="auc of age/gender is no number: audit more users"):
        make_bundle(validate_config(BundleConfig, config | {"audit": str(tmp_path), "out": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()
    damaged = tmp_path / "bundle" / "eliminators.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"eliminators.safetensors is damaged"):
        Bundle.open(str(tmp_path / "bundle")).eliminators()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combinations": "gender+shoe"}, "no attribute 'shoe'; it has gender, age, occupation"),
        ({"combinations": "gender,gender"}, "combination gender is named twice"),
        ({"runner": {"workers": 4}}, "runner.workers = 4 needs 5 logical CPUs"),
    ],
)
def test_what_cannot_be_trained_is_said_before_any_work(folder, backbone, settings, message):
    with pytest.raises(UserError, match=message):
        train_eliminators(eliminators_config(folder, name="other", **settings))
    assert not (folder / "runs" / "other").exists()


def test_an_unfinished_backbone_is_refused(folder, backbone, tmp_path):
    shutil.copytree(folder / "runs" / "backbone", tmp_path / "backbone")
    document = json.loads((tmp_path / "backbone" / "run.json").read_text())
    (tmp_path / "backbone" / "run.json").write_text(json.dumps(document | {"status": "training"}))
    with pytest.raises(UserError, match="is not finished"):
        train_eliminators(eliminators_config(folder, backbone=str(tmp_path / "backbone")))

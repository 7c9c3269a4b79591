"""From a lake to a bundle in this process: backbone, eliminators, audit, bundle, on a small service.

Eliminators of one epoch, one attacker; `test_planted_attribute` trains and attacks as users do.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.table import Table

from mtrec_ray.bundle.manifest import Bundle, Leakage
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.attackers import logistic_scores
from mtrec_ray.evaluation.audit import AuditSettings
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.jobs.audit import _labels, audit
from mtrec_ray.jobs.audit_report import Audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import AuditConfig, BundleConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.sequences import in_split
from mtrec_ray.trainers.backbone_config import BackboneConfig
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training import fit
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.fit import train_backbone
from mtrec_ray.training.weights import save_weights
from tests.jobs.untrained import write_backbone
from tests.training.one_worker import OneWorker
from tests.tuning.conftest import build_here

SYNTHETIC = {"users": 800, "territories": 4, "titles": 80, "events_per_user": 40.0, "attribute_correlation": 0.8}
COMBINATIONS = ["gender", "age", "gender+age"]


def backbone_config(folder: Path, **settings: Any) -> BackboneConfig:
    document = {"lake": str(folder / "lake"), "runs": str(folder / "runs"), "name": "backbone", "model": {"width": 32}}
    return validate_config(BackboneConfig, document | settings)


def eliminators_config(folder: Path, **settings: Any) -> EliminatorsConfig:
    document = {"backbone": str(folder / "runs" / "backbone"), "runs": str(folder / "runs"), "name": "eliminators"}
    document |= {"combinations": ",".join(COMBINATIONS), "optim": {"epochs": 1, "lanes": 4}}
    document["transport"] = {"passes": 4, "later_passes": 2}
    return validate_config(EliminatorsConfig, document | settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fairness")
    build_here(folder / "lake", 4, **SYNTHETIC)
    return folder


@pytest.fixture(scope="module")
def backbone(folder) -> BackboneRecord:
    """Untrained; its training is tested in `tests/training`."""
    settings = backbone_config(folder).model_dump(mode="json", exclude={"lake", "runs"})
    return write_backbone(Lake.open(str(folder / "lake")), folder / "runs", **settings)


@pytest.fixture(scope="module")
def eliminators(folder, backbone) -> EliminatorsRecord:
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, folder / "checkpoints")
        return train_eliminators(eliminators_config(folder))


@pytest.fixture(scope="module")
def audited(folder, eliminators) -> Audit:
    settings = {"num_folds": 3, "num_permutations": 2, "lists": False}
    config = {"run": eliminators.uri, "out": str(folder / "audit")} | settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrec_ray.jobs.audit.map_tasks", LocalReader().map)
        patch.setattr("mtrec_ray.evaluation.audit.VECTOR_ATTACKERS", {"logistic": logistic_scores})
        return audit(validate_config(AuditConfig, config))


@pytest.fixture(scope="module")
def document(audited) -> dict[str, Any]:
    return audited.document()


def test_a_finished_run_is_returned_and_another_of_its_name_refused(folder, backbone):
    assert train_backbone(backbone_config(folder)) == backbone
    with pytest.raises(UserError, match=r"seed = 0 \(now 1\)"):
        train_backbone(backbone_config(folder, seed=1))


def test_every_combination_is_trained_and_the_backbone_left_alone(folder, backbone, eliminators):
    assert eliminators.status == "done"
    assert eliminators.packs == {"pack000": [("gender",), ("age",), ("gender", "age")]}
    (method,) = load_methods(eliminators, load_backbone(backbone))
    assert method.combinations == (("gender",), ("age",), ("gender", "age"))
    before, after = load_backbone(backbone).state_dict(), method.backbone.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    history, values = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, -1]])
    vectors = method.user_vectors(history, values)  # (K, 1, d)
    plain = load_backbone(backbone).user_vectors(history)
    assert all(not torch.allclose(vector, plain, atol=1e-4) for vector in vectors)


def test_the_audit_split_takes_no_part_in_training(folder, eliminators, audited, document):
    assert json.loads((folder / "runs" / "eliminators" / "plan.json").read_text())["split"] == "train"
    config = BackboneRecord.load(eliminators.config.backbone).config.sequences
    assert (audited.users.audit_split == in_split(audited.users.keys, config, "audit")).all()
    assert document["num_audit_users"] == audited.users.audit_split.sum() < document["num_users"]


def test_an_output_that_cannot_be_written_is_refused_before_work(eliminators, monkeypatch):
    monkeypatch.setattr("mtrec_ray.jobs.audit.map_tasks", LocalReader().map)
    monkeypatch.setattr("mtrec_ray.jobs.audit._represent", None)
    for out, message in (("nosuch://x", "cannot open 'nosuch://x'"), ("/proc/none", "cannot write to '/proc/none'")):
        with pytest.raises(UserError, match=message):
            audit(validate_config(AuditConfig, {"run": eliminators.uri, "out": out}))
    with pytest.raises(UserError, match=r"'seed' = -1"):
        validate_config(AuditConfig, {"run": eliminators.uri, "seed": -1})


def test_an_attribute_that_cannot_be_attacked_is_refused_only_if_it_is_to_be_hidden(eliminators, audited, caplog):
    users = audited.users.only(audited.users.audit_split)
    everybody_alike = users.attribute_index.copy()
    everybody_alike[:, 2] = 0
    found = _labels([eliminators], replace(users, attribute_index=everybody_alike), AuditSettings())
    assert list(found) == ["gender", "age"]
    assert "occupation is not attacked: attribute 'occupation'" in caplog.text
    everybody_alike[:, 0] = -1
    with pytest.raises(UserError, match=r"'gender': 0 users .* too few .*: enlarge the audit split"):
        _labels([eliminators], replace(users, attribute_index=everybody_alike), AuditSettings())


def test_document_and_csv_hold_every_combination_and_attribute(folder, audited, document):
    assert list(document["combinations"]) == ["none", *COMBINATIONS]
    for name, of in document["combinations"].items():
        ndcg = of["accuracy"]["ndcg@10"]
        assert ndcg["low"] <= ndcg["value"] <= ndcg["high"]
        assert list(of["leakage"]) == ["vectors"]
        for attribute, leakage in of["leakage"]["vectors"].items():
            Leakage.model_validate(leakage)
            assert leakage == audited.leakage["vectors", name, attribute].document()
    assert json.loads((folder / "audit" / "audit.json").read_text()) == json.loads(json.dumps(document))
    read = {name: pd.read_csv(folder / "audit" / f"{name}.csv", keep_default_na=False) for name in audited.csv_tables}
    assert {name: len(table) for name, table in read.items()} == {
        "audit_leakage": 4 * 3 * 3,
        "audit_attackers": 4 * 3 * 3,
        "audit_accuracy": 4 * (len(NextTitleMetrics.reported()) + 1),  # and the change of NDCG
        "audit_ndcg_gaps": 4 * 3,
    }
    for row in read["audit_leakage"].to_dict("records"):
        leakage = document["combinations"][row["combination"]]["leakage"]["vectors"][row["attribute"]]
        assert row["value"] == pytest.approx(leakage[row["metric"]]["value"])
        assert row["to_hide"] == (row["attribute"] in row["combination"].split("+"))
    for row in read["audit_accuracy"].to_dict("records"):
        accuracy = document["combinations"][row["combination"]]["accuracy"]
        assert row["value"] == pytest.approx(accuracy[row["metric"]]["value"])


def test_costs_and_gaps_of_an_audit_are_those_of_its_users(audited, document):
    of = document["combinations"]
    for name in COMBINATIONS:
        change = 100 * (of[name]["accuracy"]["ndcg@10"]["value"] / of["none"]["accuracy"]["ndcg@10"]["value"] - 1)
        found = of[name]["accuracy"]["ndcg_change"]
        assert found["value"] == pytest.approx(change)
        assert found["low"] <= change <= found["high"]
    ndcg, gender = audited.representations["age"].metrics.ndcg, audited.users.attribute_index[:, 0]
    of_value = [ndcg[gender == value].mean() for value in (0, 1)]
    gap = of["age"]["ndcg_gaps"]["gender"]
    assert gap["value"] == pytest.approx(max(of_value) - min(of_value))
    assert gap["best"] == audited.record.attributes["gender"][int(np.argmax(of_value))]
    assert 0 < gap["null_high"] < 0.3


def test_tables_mark_leaks_and_what_is_to_be_hidden(audited):
    tables = audited.tables()
    assert len(tables) == 3
    table = tables[0]
    assert isinstance(table, Table)
    genders = dict(zip(audited.representations, table.columns[1].cells, strict=True))
    for name, cell in genders.items():
        assert ("!" in str(cell)) == audited.leakage["vectors", name, "gender"].leaks
        assert ("*" in str(cell)) == (name in ("gender", "gender+age"))


def test_a_bundle_holds_weights_and_metrics_of_its_runs(folder, eliminators, document, monkeypatch, tmp_path):
    monkeypatch.setattr("mtrec_ray.jobs.bundle.map_tasks", LocalReader().map)
    config = {"run": eliminators.uri, "audit": str(folder / "audit"), "out": str(tmp_path / "bundle")}
    bundle = make_bundle(validate_config(BundleConfig, config)).bundle
    assert bundle.manifest.combinations == [("gender",), ("age",), ("gender", "age")]
    for name, of in document["combinations"].items():
        assert {metric: one.model_dump() for metric, one in bundle.manifest.metrics[name].items()} == of["accuracy"]
        assert {a: one.model_dump() for a, one in bundle.manifest.audit[name].items()} == of["leakage"]["vectors"]
    (method,) = load_methods(eliminators, load_backbone(BackboneRecord.load(eliminators.config.backbone)))
    history, values = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, -1]])
    served = bundle.backbone().user_vectors(history, eliminators=bundle.eliminators().for_all(values))
    assert torch.equal(served, method.user_vectors(history, values))
    for offered in bundle.popular():
        titles = offered[offered >= 0]
        assert len(titles) == len(np.unique(titles)) > 40
        assert (offered[len(titles) :] == -1).all()
    with pytest.raises(UserError, match="is a bundle already"):
        make_bundle(validate_config(BundleConfig, config))
    config |= {"audit": None, "out": str(tmp_path / "unaudited")}
    assert make_bundle(validate_config(BundleConfig, config)).bundle.manifest.version != bundle.manifest.version
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
def test_settings_that_do_not_fit_are_refused_before_work(folder, backbone, settings, message, monkeypatch):
    monkeypatch.setattr(fit, "cluster_resources", lambda: {"CPU": 3.0})
    with pytest.raises(UserError, match=message):
        train_eliminators(eliminators_config(folder, name="other", **settings))
    assert not (folder / "runs" / "other").exists()


def test_a_moved_backbone_is_loaded_from_its_new_folder(backbone, tmp_path):
    moved = shutil.copytree(backbone.uri, tmp_path / "elsewhere" / "moved")
    weights = load_backbone(backbone).state_dict()
    turned = {name: -tensor for name, tensor in weights.items()}
    save_weights(str(moved / "backbone.safetensors"), turned, {})
    record = BackboneRecord.load(str(moved))
    assert record.uri == str(moved)
    for name, tensor in load_backbone(record).state_dict().items():
        assert torch.equal(tensor, turned[name])


def test_an_unfinished_backbone_is_refused(folder, backbone, tmp_path):
    shutil.copytree(folder / "runs" / "backbone", tmp_path / "backbone")
    document = json.loads((tmp_path / "backbone" / "run.json").read_text())
    (tmp_path / "backbone" / "run.json").write_text(json.dumps(document | {"status": "training"}))
    with pytest.raises(UserError, match="is not finished"):
        train_eliminators(eliminators_config(folder, backbone=str(tmp_path / "backbone")))

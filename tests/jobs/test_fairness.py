"""From a lake to a bundle in this process: backbone, eliminators, audit, bundle, on a small service.

Eliminators of one epoch, one attacker; `test_planted_attribute` trains and attacks as users do.
"""

import json
import shutil
from dataclasses import asdict, replace
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
from mtrec_ray.evaluation.attackers import logistic_scores, naive_bayes_scores
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings, audit_vectors
from mtrec_ray.evaluation.next_title import NextTitleMetrics
from mtrec_ray.jobs.audit import _labels, audit
from mtrec_ray.jobs.audit_report import Audit
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import AuditConfig, BundleConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.eliminators import StackedEliminators
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
    settings = {"num_folds": 3, "num_permutations": 2}
    config = {"run": eliminators.uri, "out": str(folder / "audit")} | settings
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtrec_ray.jobs.audit.map_tasks", LocalReader().map)
        patch.setattr("mtrec_ray.evaluation.audit.VECTOR_ATTACKERS", {"logistic": logistic_scores})
        patch.setattr("mtrec_ray.evaluation.audit.HISTORY_ATTACKERS", {"logistic": logistic_scores})
        patch.setattr("mtrec_ray.jobs.audit.LIST_ATTACKERS", {"naive_bayes": naive_bayes_scores})
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
    found, reasons = _labels([eliminators], replace(users, attribute_index=everybody_alike), AuditSettings())
    assert list(found) == ["gender", "age"]
    assert list(reasons) == ["occupation"]
    assert "occupation is not attacked: attribute 'occupation'" in caplog.text
    everybody_alike[:, 0] = -1
    with pytest.raises(UserError, match=r"'gender': 0 users .* too few .*: enlarge the audit split"):
        _labels([eliminators], replace(users, attribute_index=everybody_alike), AuditSettings())


def test_document_and_csv_hold_every_combination_and_attribute(folder, audited, document):
    assert list(document["combinations"]) == ["none", *COMBINATIONS]
    for name, of in document["combinations"].items():
        ndcg = of["accuracy"]["ndcg@10"]
        assert ndcg["low"] <= ndcg["value"] <= ndcg["high"]
        assert list(of["leakage"]) == [
            "vectors",
            "vectors_of_histories",
            "lists_watched_kept",
            "lists_watched_left_out",
        ]
        assert list(of["written"]) == ([] if name == "none" else ["gender", "age", "occupation"])
        for kind, of_kind in of["leakage"].items():
            for attribute, leakage in of_kind.items():
                Leakage.model_validate(leakage)
                assert leakage == audited.leakage[kind, name, attribute].document()
    assert list(document["references"]["popularity"]["leakage"]) == ["lists_watched_left_out"]
    assert json.loads((folder / "audit" / "audit.json").read_text()) == json.loads(json.dumps(document))
    read = {name: pd.read_csv(folder / "audit" / f"{name}.csv", keep_default_na=False) for name in audited.csv_tables}
    cells = sum(len(found) for found in document["combinations"]["none"]["ndcg_of_groups"].values())
    assert {name: len(table) for name, table in read.items()} == {
        "audit_leakage": 4 * 4 * 3 * 3 + 3 * 3,  # and popular titles
        "audit_attackers": 4 * 4 * 3 * 3 + 3 * 3,
        "audit_written": 3 * 3,
        "audit_accuracy": 4 * (len(NextTitleMetrics.reported()) + 2),  # and changes of both NDCG
        "audit_ndcg_gaps": 4 * 3 * 2,
        "audit_ndcg_of_groups": 4 * cells * 2,
        "audit_users": sum(1 + len(values) for values in audited.record.attributes.values()),
    }
    for row in read["audit_leakage"].to_dict("records"):
        of = (document["combinations"] | document["references"])[row["combination"]]
        leakage = of["leakage"][row["inputs"]][row["attribute"]]
        assert row["value"] == pytest.approx(leakage[row["metric"]]["value"])
        assert row["to_hide"] == (row["attribute"] in row["combination"].split("+"))
    for row in read["audit_accuracy"].to_dict("records"):
        accuracy = document["combinations"][row["combination"]]["accuracy"]
        assert row["value"] == pytest.approx(accuracy[row["metric"]]["value"])


def test_costs_and_gaps_of_an_audit_are_those_of_its_users(audited, document):
    of = document["combinations"]
    for name in COMBINATIONS:
        for metric in ("ndcg", "full_ndcg"):
            ours, before = (of[key]["accuracy"][f"{metric}@10"]["value"] for key in (name, "none"))
            found = of[name]["accuracy"][f"{metric}_change"]
            assert found["value"] == pytest.approx(100 * (ours / before - 1))
            assert found["low"] <= found["value"] <= found["high"]
    ndcg, gender = audited.representations["age"].metrics.ndcg, audited.users.attribute_index[:, 0]
    of_value = [ndcg[gender == value].mean() for value in (0, 1)]
    gap = of["age"]["ndcg_gaps"]["gender"]["ndcg@10"]
    assert gap["value"] == pytest.approx(max(of_value) - min(of_value))
    assert gap["ratio"] == pytest.approx(min(of_value) / max(of_value))
    assert gap["best"] == audited.record.attributes["gender"][int(np.argmax(of_value))]
    assert 0 < gap["null_high"] < 0.3
    age = audited.users.attribute_index[:, 1]
    most = int(np.bincount(age[age >= 0]).argmax())
    men_of_an_age = (gender == 1) & (age == most)
    values = [audited.record.attributes["gender"][1], audited.record.attributes["age"][most]]
    (cell,) = (cell for cell in of["age"]["ndcg_of_groups"]["gender x age"] if cell["values"] == values)
    assert cell["num_users"] == men_of_an_age.sum()
    assert cell["ndcg@10"]["value"] == pytest.approx(ndcg[men_of_an_age].mean())


def test_the_document_says_who_was_attacked_with_which_data_and_what_was_not_tested(folder, audited, document):
    lake, users = Lake.open(str(folder / "lake")), audited.users
    times = lake.read("events", columns=["timestamp"])["timestamp"].to_pylist()
    assert document["data"]["events"] == {"first": min(times).isoformat(), "last": max(times).isoformat()}
    held_out = document["data"]["held_out_events"]
    assert min(times).isoformat() < held_out["first"] < held_out["last"] <= max(times).isoformat()
    for a, (name, values) in enumerate(audited.record.attributes.items()):
        of, index = document["attributes"][name], users.attribute_index[:, a]
        assert of["attacked"]
        assert [cell["value"] for cell in of["values"]] == values
        for cell, group in zip([of["unknown"], *of["values"]], range(-1, len(values)), strict=True):
            assert cell["num_users"] == (index == group).sum()
            assert cell["num_audit_users"] == (index[users.audit_split] == group).sum()
    assert document["histories"] == {"per_user": 16, "events_between": 2}
    assert document["settings"] == {**asdict(audited.settings), "num_folds": 3, "num_permutations": 2}
    assert document["not_tested"]["attributes"] == {}
    assert "several attributes at once" in document["not_tested"]["attacks"]
    groups = document["combinations"]["none"]["ndcg_of_groups"]["gender x age"]
    small = document["not_tested"]["small_groups"].get("gender x age", [])
    assert all(cell["num_users"] >= 10 for cell in groups)
    assert all(0 < cell["num_users"] < 10 for cell in small)
    known = (users.attribute_index[:, :2] >= 0).all(axis=1).sum()
    assert sum(cell["num_users"] for cell in [*groups, *small]) == known


def test_rare_and_mostly_unknown_values_are_audited_and_noted(audited, monkeypatch):
    monkeypatch.setattr("mtrec_ray.evaluation.audit.VECTOR_ATTACKERS", {"logistic": logistic_scores})
    users = audited.users
    index = users.attribute_index.copy()
    index[:, 0] = (np.cumsum(users.audit_split) > 5).astype(int)  # 5 attacked users of the first value
    index[np.cumsum(users.audit_split) % 10 != 0, 1] = -1
    attacked = users.audit_split
    results = {
        ("vectors", name, attribute): audit_vectors(
            one.vectors[attacked],
            AttributeLabels(attribute, index[attacked, a], len(audited.record.attributes[attribute])),
            users.keys[attacked],
            AuditSettings(num_folds=3, num_permutations=2, num_bootstrap=200),
        )
        for name, one in audited.representations.items()
        for a, attribute in enumerate(("gender", "age"))
    }
    changed = replace(
        audited,
        users=replace(users, attribute_index=index),
        attributes=["gender", "age"],
        not_attacked={"occupation": "nobody told it"},
        leakage=results,
    )
    document = json.loads(json.dumps(changed.document(), allow_nan=False))
    (rare,) = document["attributes"]["gender"]["notes"]
    assert (
        rare == f"{audited.record.attributes['gender'][0]}: 5 attacked users, whose part in the macro averages is noise"
    )
    unknown, total = int((index[attacked, 1] < 0).sum()), int(attacked.sum())
    note = f"{unknown} of {total} users of the audit split have no known value and take no part"
    assert document["attributes"]["age"]["notes"][-1] == note
    notes = str(changed.tables()[-1])
    assert rare in notes
    assert "occupation was not attacked: nobody told it" in notes
    assert "Not tested: " in notes
    assert "top-10 lists (lists = false)" in notes


def test_tables_mark_leaks_and_what_is_to_be_hidden(audited):
    vectors, histories, f1, accuracy, kept, left_out, gaps, parameters, notes = audited.tables()
    of_vectors = ("vectors", vectors), ("vectors_of_histories", histories)
    for kind, table in (*of_vectors, ("lists_watched_kept", kept), ("lists_watched_left_out", left_out)):
        assert isinstance(table, Table)
        genders, names = list(table.columns[2].cells), list(audited.representations)
        assert len(genders) == 2 * (len(names) + (kind == "lists_watched_left_out"))
        for name, *cells in zip(names, genders[::2], genders[1::2], strict=False):
            leakage = audited.leakage[kind, name, "gender"]
            for cell, found in zip(cells, (leakage.auc, leakage.balanced_accuracy), strict=True):
                assert f"{found.value:.3f}" in str(cell)
                assert ("!" in str(cell)) == found.exceeds_null
                assert ("*" in str(cell)) == (name in ("gender", "gender+age"))
    assert isinstance(f1, Table)
    majority, *others = f1.columns[1].cells
    found = [audited.leakage["vectors", name, "gender"].micro_f1 for name in audited.representations]
    assert majority == f"{found[0].chance:.3f}"
    assert others == [f"{one.value:.3f}" for one in found]
    assert isinstance(accuracy, Table)
    assert [str(column.header) for column in accuracy.columns][1:] == [
        "whole catalogue",
        "change",
        "99 negatives",
        "change",
    ]
    metrics = audited.representations["gender"].metrics
    assert list(accuracy.columns[1].cells)[1] == f"{metrics.full_ndcg.mean():.4f}"
    assert list(accuracy.columns[3].cells)[1] == f"{metrics.ndcg.mean():.4f}"
    assert isinstance(gaps, Table)
    assert isinstance(parameters, Table)
    assert "Not tested" in str(notes)


def test_a_written_value_is_said_in_the_document_the_tables_and_notes(audited):
    """Of three combinations one writes gender: AUC and its replicates lie above the backbone's."""
    leakage, kind = dict(audited.leakage), "vectors_of_histories"
    for name, raised in (("none", 0.0), ("gender", 0.2), ("age", 0.001), ("gender+age", -0.1)):
        of = leakage["vectors", "none", "gender"]
        replicates = np.clip(0.6 + raised + np.random.default_rng(0).normal(0, 0.01, 201), 0, 1)
        replicates[1::2] -= 0.01 * np.sign(raised)  # an interval of the difference
        replicates[0] = 0.6 + raised
        figure = of.auc._replace(value=0.6 + raised, null_high=0.55)
        leakage[kind, name, "gender"] = replace(of, auc=figure, auc_replicates=replicates)
    changed = replace(audited, leakage=leakage)
    written = {name: of["written"].get("gender") for name, of in changed.document()["combinations"].items()}
    assert written["none"] is None
    assert written["gender"]["value"] == pytest.approx(0.2)
    assert 0.18 < written["gender"]["low"] < written["gender"]["high"] < 0.21
    writes = {name: of["writes_value"] for name, of in written.items() if of}
    assert writes == {"gender": True, "age": False, "gender+age": False}
    table = changed.tables()[1]
    assert isinstance(table, Table)
    assert [("W" in str(cell)) for cell in list(table.columns[2].cells)[::2]] == [False, True, False, False]
    assert "W: written" in str(table.caption)
    assert "16 histories of each labelled person" in str(table.title)
    note = "Ignoring gender, vectors write gender: an attacker with 16 histories of each labelled person reads it with"
    assert note in str(changed.tables()[-1])
    rows = changed.csv_tables["audit_written"]
    assert set(rows.columns) == {"combination", "attribute", "to_hide", "value", "low", "high", "writes_value"}
    own = rows[(rows["combination"] == "gender") & (rows["attribute"] == "gender")].to_dict("records")
    assert [(row["to_hide"], row["writes_value"]) for row in own] == [(True, True)]


def test_a_bundle_holds_weights_and_metrics_of_its_runs(folder, eliminators, document, monkeypatch, tmp_path):
    monkeypatch.setattr("mtrec_ray.jobs.bundle.map_tasks", LocalReader().map)
    config = {"run": eliminators.uri, "audit": str(folder / "audit"), "out": str(tmp_path / "bundle")}
    bundle = make_bundle(validate_config(BundleConfig, config)).bundle
    assert bundle.manifest.combinations == [("gender",), ("age",), ("gender", "age")]
    for name, of in document["combinations"].items():
        assert {metric: one.model_dump() for metric, one in bundle.manifest.metrics[name].items()} == of["accuracy"]
        lists = bundle.manifest.list_audit[name].model_dump()
        histories = bundle.manifest.history_audit[name]
        lists["vectors_of_histories"] = {attribute: one.model_dump() for attribute, one in histories.items()}
        written = bundle.manifest.written.get(name, {})
        assert {attribute: one.model_dump() for attribute, one in written.items()} == of["written"]
        assert {a: one.model_dump() for a, one in bundle.manifest.audit[name].items()} == of["leakage"]["vectors"]
        assert {"vectors": of["leakage"]["vectors"]} | lists == of["leakage"]
    (method,) = load_methods(eliminators, load_backbone(BackboneRecord.load(eliminators.config.backbone)))
    history, values = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[0, 1, -1]])
    pack = bundle.eliminators()
    assert isinstance(pack, StackedEliminators)
    served = bundle.backbone().user_vectors(history, eliminators=pack.for_all(values))
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

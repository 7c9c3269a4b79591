"""Runs that an audit refuses to compare, and short lists; the runs are written by hand, untrained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings
from mtrec_ray.jobs import audit as job
from mtrec_ray.jobs.config import AuditConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.held_out import read_held_out
from mtrec_ray.streams.sequences import TEST_EVENT
from mtrec_ray.trainers.accuracy import vectors_in_chunks
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from tests.jobs.untrained import write_backbone, write_eliminators
from tests.tuning.conftest import build_here


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> BackboneRecord:
    folder = tmp_path_factory.mktemp("audited")
    return write_backbone(build_here(folder / "lake", 2, users=120, territories=4, titles=30), folder)


@pytest.fixture(scope="module")
def eliminators(backbone, tmp_path_factory) -> EliminatorsRecord:
    return write_eliminators(backbone, tmp_path_factory.mktemp("runs"))


def compare(backbone: BackboneRecord, folder: Path, *names: str) -> None:
    uris = [write_eliminators(backbone, folder, name).uri for name in dict.fromkeys(names)]
    job.audit(validate_config(AuditConfig, {"run": uris[0], "compare": [str(folder / name) for name in names[1:]]}))


@pytest.mark.parametrize("name", ["first", "backbone", "none", "gender", "gender+age"])
def test_ambiguous_names_are_refused_before_work(backbone, tmp_path, monkeypatch, name):
    monkeypatch.setattr(job, "load_backbone", None)
    with pytest.raises(UserError, match=f"the name of run '{name.replace('+', '.')}' would be ambiguous in the tables"):
        compare(backbone, tmp_path, "first", name)


@pytest.mark.parametrize("names", [("first", "occupation"), ("gender", "other")], ids=["no combination", "the first"])
def test_unambiguous_names_are_not_refused(backbone, tmp_path, monkeypatch, names):
    monkeypatch.setattr(job, "load_backbone", None)
    with pytest.raises(TypeError):
        compare(backbone, tmp_path, *names)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("status", "training", "is not finished"), ("backbone_hash", "0" * 64, "have different backbones")],
)
def test_runs_that_do_not_belong_together_are_refused(eliminators, tmp_path, key, value, message):
    other = Path(shutil.copytree(eliminators.uri, tmp_path / "other"))
    document = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(document | {key: value}))
    with pytest.raises(UserError, match=message):
        job.audit(validate_config(AuditConfig, {"run": eliminators.uri, "compare": [str(other)]}))


def test_weights_that_lack_a_part_are_refused(backbone, eliminators, tmp_path):
    other = Path(shutil.copytree(eliminators.uri, tmp_path / "other"))
    (weights,) = other.glob("packs/*/eliminators.safetensors")
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: one for name, one in tensors.items() if name != "pack.gate"}, weights)
    with pytest.raises(UserError, match=r"was written by another version \(weights pack\.gate\): train again"):
        load_methods(EliminatorsRecord.load(str(other)), load_backbone(backbone))


def test_another_state_of_the_lake_is_refused(eliminators, tmp_path):
    other = Path(shutil.copytree(eliminators.uri, tmp_path / "other"))
    document = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(document | {"lake_hash": "0" * 64}))
    with pytest.raises(UserError, match="has changed since run 'other' was started: train under another name"):
        job.audit(validate_config(AuditConfig, {"run": str(other)}))


def test_filters_of_other_attributes_are_refused_in_a_comparison(eliminators):
    of_age = eliminators.model_copy(update={"packs": {"pack000": [("age",)]}})
    config = eliminators.config.model_copy(update={"method": "filter", "name": "filters"})
    filters = eliminators.model_copy(update={"config": config, "packs": {"pack000": [("occupation",)]}})
    with pytest.raises(UserError, match=r"filters of occupation in 'filters' make no combination .* \(age\)"):
        job.check_comparable([of_age, filters])
    job.check_comparable([eliminators, filters.model_copy(update={"packs": {"pack000": [("age",)]}})])


def test_a_list_ends_when_no_title_is_left(backbone):
    lake, model = Lake.open(backbone.config.lake), load_backbone(backbone)
    users = read_held_out(lake, backbone.config.sequences, TEST_EVENT, backbone.config.model.history, [0, 1])
    offered = np.zeros((len(lake.manifest.territories), lake.titles.num_rows), dtype=bool)
    offered[:, :4] = True
    vectors = vectors_in_chunks(model.user_vectors, torch.from_numpy(users.history))
    lists = job._representations((), users, vectors, model.title_vectors(), offered).lists
    watched = np.split(users.other_titles, np.cumsum(users.other_counts)[:-1])
    for shown, seen in zip(lists, watched, strict=True):
        left = set(range(4)) - set(seen.tolist())
        assert set(shown[: len(left)].tolist()) == left
        assert (shown[len(left) :] == -1).all()


@pytest.mark.parametrize(("kind", "times"), [("vectors", 2), ("lists", 1)])
def test_only_vectors_are_attacked_repeatedly(kind, times):
    draw = np.random.default_rng(0)
    vectors = {"none": draw.normal(size=(60, 4)).astype(np.float32)}
    lists = {"none": draw.integers(0, 30, (60, 10))}
    labels, keys = {"gender": AttributeLabels("gender", np.arange(60) % 2, 2)}, np.arange(60, dtype=np.uint64)
    settings = AuditSettings(num_folds=3, num_repeats=2, num_permutations=2, num_bootstrap=2)
    inputs = {"vectors": vectors, "lists": lists}
    result = job.attack((kind, "none", "gender"), inputs, labels, keys, 30, settings)
    assert len(result.attacker_by_fold) == times * settings.num_folds

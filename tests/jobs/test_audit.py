"""Runs that an audit refuses to compare, and what attackers get; the runs are written by hand, untrained."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.evaluation.audit import AttributeLabels, AuditSettings
from mtrec_ray.jobs import audit as job
from mtrec_ray.jobs.config import AuditConfig
from mtrec_ray.lake.bucket import Catalogue
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.recent_histories import read_recent_histories
from mtrec_ray.streams.sequences import TEST_EVENT, Sequences, read_held_out
from mtrec_ray.trainers.backbone import vectors_in_chunks
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from tests.jobs.untrained import write_backbone, write_eliminators
from tests.tuning.conftest import build_here

COMBINATIONS = ["gender", "age", "gender+age"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> BackboneRecord:
    folder = tmp_path_factory.mktemp("audited")
    return write_backbone(build_here(folder / "lake", 2, users=240, territories=4, titles=30), folder)


@pytest.fixture(scope="module")
def eliminators(backbone, tmp_path_factory) -> EliminatorsRecord:
    return write_eliminators(backbone, tmp_path_factory.mktemp("runs"))


def compare(backbone: BackboneRecord, folder: Path, *names: str) -> None:
    uris = [write_eliminators(backbone, folder, name).uri for name in dict.fromkeys(names)]
    job.audit(validate_config(AuditConfig, {"run": uris[0], "compare": [str(folder / name) for name in names[1:]]}))


def changed_copy(run: EliminatorsRecord, folder: Path, key: str, value: str) -> Path:
    other = Path(shutil.copytree(run.uri, folder / "other"))
    document = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(document | {key: value}))
    return other


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
    other = changed_copy(eliminators, tmp_path, key, value)
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
    other = changed_copy(eliminators, tmp_path, "lake_hash", "0" * 64)
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
    kept, left_out = job.top_lists(users, vectors, model.title_vectors(), offered)
    watched = np.split(users.other_titles, np.cumsum(users.other_counts)[:-1])
    for whole, shown, seen in zip(kept, left_out, watched, strict=True):
        left = set(range(4)) - set(seen.tolist())
        assert set(shown[: len(left)].tolist()) == left
        assert (shown[len(left) :] == -1).all()
        assert sorted(whole[:4]) == list(range(4))
        assert (whole[4:] == -1).all()
        assert [title for title in whole if title in left] == shown[: len(left)].tolist()


def test_popular_lists_are_one_order_of_titles_less_what_each_user_watched(backbone):
    lake = Lake.open(backbone.config.lake)
    users = read_held_out(lake, backbone.config.sequences, TEST_EVENT, backbone.config.model.history, [0, 1])
    offered = np.ones((len(lake.manifest.territories), lake.titles.num_rows), dtype=bool)
    watched = [set(part.tolist()) for part in np.split(users.other_titles, np.cumsum(users.other_counts)[:-1])]
    counts = np.bincount([title for of_user in watched for title in of_user], minlength=offered.shape[1])
    order = sorted(range(len(counts)), key=lambda title: -counts[title])
    for shown, seen in zip(job.popular_lists(users, offered), watched, strict=True):
        expected = [title for title in order if title not in seen][:10]
        assert shown[: len(expected)].tolist() == expected
        assert (shown[len(expected) :] == -1).all()


@pytest.fixture(scope="module")
def turned(eliminators, tmp_path_factory) -> EliminatorsRecord:
    """The same run with random weights, so that each combination has its own vectors."""
    run = Path(shutil.copytree(eliminators.uri, tmp_path_factory.mktemp("turned") / "eliminators"))
    (weights,) = run.glob("packs/*/eliminators.safetensors")
    generator = torch.Generator().manual_seed(0)
    tensors = safetensors.torch.load_file(weights).items()
    random = {name: one + 0.3 * torch.randn(one.shape, generator=generator) for name, one in tensors}
    safetensors.torch.save_file(random, weights)
    return EliminatorsRecord.load(str(run))


@pytest.fixture(scope="module")
def attacks(turned, tmp_path_factory) -> dict[str, Any]:
    """The arguments of the attacks, which are not run, beside those on a run of the same weights."""
    twin = shutil.copytree(turned.uri, tmp_path_factory.mktemp("runs") / "twin")
    given: dict[str, Any] = {"targets": []}

    def attack(target: Any, *shared: Any) -> None:
        given["targets"].append(target)
        given.update(zip(("inputs", "labels_and_keys", "num_titles", "settings"), shared, strict=True))

    config = {"run": turned.uri, "compare": [str(twin)], "num_folds": 4, "num_permutations": 3, "seed": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "map_tasks", LocalReader().map)
        patch.setattr(job, "attack", attack)
        given["audit"] = job.audit(validate_config(AuditConfig, config))
    given["labels"], given["keys"] = given["labels_and_keys"]["vectors"]
    return given


def audit_split(source: BackboneRecord, of: Callable[[Sequences], np.ndarray]) -> np.ndarray:
    """Values of the users of the audit split, read anew from the lake."""
    lake, buckets = Lake.open(source.config.lake), range(2)
    return np.concatenate([of(Sequences.read(lake, bucket, source.config.sequences, "audit")) for bucket in buckets])


def test_attackers_get_the_audit_split_before_the_test_event(backbone, turned, attacks):
    users, length = partial(audit_split, backbone), backbone.config.model.history
    np.testing.assert_array_equal(attacks["keys"], users(lambda part: part.keys))
    values = users(lambda part: part.attribute_index).astype(np.int64)
    for a, name in enumerate(("gender", "age", "occupation")):
        np.testing.assert_array_equal(attacks["labels"][name].values, values[:, a])
    history = torch.from_numpy(users(lambda part: part.history_before(TEST_EVENT, length)))
    model = load_backbone(backbone)
    (method,) = load_methods(turned, model)
    vectors = [model.user_vectors(history), *method.user_vectors(history, torch.from_numpy(values))]
    for name, of in zip(["none", *COMBINATIONS], vectors, strict=True):
        np.testing.assert_allclose(attacks["inputs"]["vectors"][name], of.numpy(), atol=1e-5)
    audited_users = attacks["audit"].users.only(attacks["audit"].users.audit_split)
    np.testing.assert_array_equal(audited_users.target, users(lambda part: part.held_out_title(TEST_EVENT)))


@pytest.mark.parametrize("kind", ["lists_watched_kept", "lists_watched_left_out"])
def test_lists_hold_titles_of_the_users_territory_best_first(kind, backbone, attacks):
    lake, users = Lake.open(backbone.config.lake), partial(audit_split, backbone)
    offered = Catalogue.of(lake, *lake.manifest.calendar.day_bounds(0)).offer_mask

    def allowed(part: Sequences) -> np.ndarray:
        mask = offered[part.territory].copy()
        for row, (start, end) in enumerate(pairwise(part.offsets)):
            if kind == "lists_watched_left_out":
                mask[row, part.title_index[start : end - TEST_EVENT]] = False
        return mask

    may_be_shown, titles = users(allowed), load_backbone(backbone).title_vectors().numpy()
    assert not offered.all()
    for name in ("none", "gender", "twin/gender+age"):
        scores = np.where(may_be_shown, attacks["inputs"]["vectors"][name] @ titles.T, -np.inf)
        lists = attacks["inputs"][kind][name]
        chosen = np.take_along_axis(scores, np.maximum(lists, 0), axis=1)
        best = -np.sort(-scores, axis=1)[:, :10]
        np.testing.assert_allclose(np.where(lists >= 0, chosen, -np.inf), best, rtol=1e-5)


def test_attackers_get_all_settings_and_compared_runs(turned, attacks):
    settings = attacks["settings"]
    assert settings == AuditSettings(
        num_folds=4, num_repeats=AuditSettings.repeats_for(len(attacks["keys"])), num_permutations=3, seed=5
    )
    names = ["none", *COMBINATIONS, *(f"twin/{name}" for name in COMBINATIONS)]
    kinds = ("vectors", "vectors_of_histories", "lists_watched_kept", "lists_watched_left_out")
    targets = [(kind, name) for kind in kinds for name in names]
    targets.append(("lists_watched_left_out", "popularity"))
    attributes = ("gender", "age", "occupation")
    assert attacks["targets"] == [(*target, attribute) for target in targets for attribute in attributes]
    (method,) = load_methods(turned, load_backbone(BackboneRecord.load(turned.config.backbone)))
    own = sum(parameter.numel() for parameter in method.own_parameters().values())
    counts = attacks["audit"].num_parameters
    assert counts["eliminators"] == counts["twin"] == own // 3


def test_attackers_with_many_histories_get_vectors_of_each_combination(backbone, turned, attacks):
    (labels, keys), found = (
        attacks["labels_and_keys"]["vectors_of_histories"],
        attacks["inputs"]["vectors_of_histories"],
    )
    np.testing.assert_array_equal(keys, attacks["keys"])
    lake, length = Lake.open(backbone.config.lake), backbone.config.model.history
    recent = read_recent_histories(lake, backbone.config.sequences, "audit", length, range(2), 1.0, 16, 2)
    history, values = torch.from_numpy(recent.history), torch.from_numpy(recent.attribute_index)
    model = load_backbone(backbone)
    (method,) = load_methods(turned, model)
    for number in (0, 7):
        vectors = [model.user_vectors(history[:, number]), *method.user_vectors(history[:, number], values)]
        for name, of in zip(["none", *COMBINATIONS], vectors, strict=True):
            np.testing.assert_allclose(found[name][:, number], of.numpy(), atol=1e-5)
    for name, of in found.items():
        np.testing.assert_array_equal(of[:, 0], attacks["inputs"]["vectors"][name])  # what others attack is tested
    for name, of in labels.items():
        np.testing.assert_array_equal(of.values, attacks["labels"][name].values)


def test_some_users_are_attacked_by_histories_where_there_are_many(turned, monkeypatch):
    given = {}

    def attack(target: Any, *shared: Any) -> None:
        given[target] = shared[:2]

    monkeypatch.setattr(job, "map_tasks", LocalReader().map)
    monkeypatch.setattr(job, "attack", attack)
    config = {"run": turned.uri, "num_folds": 3}
    monkeypatch.setattr(job, "MAX_HISTORY_USERS", 40)
    job.audit(validate_config(AuditConfig, config))
    inputs, labels_and_keys = given["vectors_of_histories", "none", "gender"]
    (_, everybody), (labels, keys) = labels_and_keys["vectors"], labels_and_keys["vectors_of_histories"]
    assert 0 < len(keys) < len(everybody)
    some = np.isin(everybody, keys)
    np.testing.assert_array_equal(inputs["vectors_of_histories"]["age"][:, 0], inputs["vectors"]["age"][some])
    np.testing.assert_array_equal(labels["gender"].values, labels_and_keys["vectors"][0]["gender"].values[some])
    monkeypatch.setattr(job, "MAX_HISTORY_USERS", 5)  # too few in a fold
    given.clear()
    assert set(job.audit(validate_config(AuditConfig, config)).not_attacked_by_histories) == set(labels)
    assert {kind for kind, _, _ in given} == {"vectors", "lists_watched_kept", "lists_watched_left_out"}
    given.clear()
    without = job.audit(validate_config(AuditConfig, config | {"histories": False}))
    assert {kind for kind, _, _ in given} == {"vectors", "lists_watched_kept", "lists_watched_left_out"}
    assert without.not_attacked_by_histories == {}


@pytest.mark.parametrize(("kind", "repeats"), [("vectors", 2), ("lists_watched_kept", 1)])
def test_only_vectors_are_attacked_repeatedly(kind, repeats, monkeypatch):
    draw = np.random.default_rng(0)
    vectors = {"none": draw.normal(size=(60, 4)).astype(np.float32)}
    lists = {"none": draw.integers(0, 30, (60, 10))}
    labels, keys = {"gender": AttributeLabels("gender", np.arange(60) % 2, 2)}, np.arange(60, dtype=np.uint64)
    settings = AuditSettings(num_folds=3, num_repeats=2, num_permutations=2, num_bootstrap=2)
    for module in ("mtrec_ray.jobs.audit", "mtrec_ray.evaluation.audit"):
        monkeypatch.setattr(f"{module}.audit_inputs", lambda *given: given[-1].num_repeats)
    inputs = {"vectors": vectors, "lists_watched_kept": lists}
    assert job.attack((kind, "none", "gender"), inputs, {kind: (labels, keys)}, 30, settings) == repeats

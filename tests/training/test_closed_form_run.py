"""Runs of closed-form eliminators: fitted here, resumed, whom they read, and served from a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.combinations import Combination
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.bundle import make_bundle
from mtrec_ray.jobs.config import BundleConfig
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.serving.engine import Engine, Query
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training import eliminators
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.training.eliminators import cramers_v, train_eliminators
from mtrec_ray.training.eliminators_run import EliminatorsRecord, load_methods
from mtrec_ray.training.fit import train_backbone
from tests.processes import printed
from tests.training.one_worker import OneWorker, backbone_config
from tests.tuning.conftest import build_here


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("closed") / "lake"
    return build_here(folder, 3, users=160, territories=4, titles=40, events_per_user=30.0)


@pytest.fixture(scope="module")
def source(lake, tmp_path_factory) -> BackboneRecord:
    folder = tmp_path_factory.mktemp("backbone")
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, folder / "checkpoints")
        return train_backbone(backbone_config(lake, folder / "runs"))


def fit(source: BackboneRecord, runs: Path, **settings: Any) -> EliminatorsRecord:
    document = {"backbone": source.uri, "runs": str(runs), "name": "maps", "method": "closed_form"} | settings
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, runs / "checkpoints")
        return train_eliminators(validate_config(EliminatorsConfig, document))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory) -> EliminatorsRecord:
    return fit(source, tmp_path_factory.mktemp("runs"))


def test_all_combinations_share_the_maps_of_their_attributes(run, source):
    assert len(run.combinations) == 7
    (method,) = load_methods(run, load_backbone(source))
    rows, width = sum(len(values) + 1 for values in run.attributes.values()), source.config.model.width
    assert method.num_parameters() == rows * (width * width + width)
    assert {"ndcg", "full_ndcg"} <= run.figures["gender+age"].keys() == run.figures["none"].keys()
    assert "NDCG@10, whole catalogue" in printed(run.tables())


def test_interrupted_fit_starts_again_to_the_same_maps(run, source, monkeypatch, tmp_path):
    def full(*_: Any) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(eliminators, "save_weights", full)
        with pytest.raises(OSError, match="disk full"):
            fit(source, tmp_path)
    again = fit(source, tmp_path)
    assert again.figures == run.figures
    assert again.weights_hash() == run.weights_hash()


def test_a_bundle_serves_the_vectors_of_the_run_in_one_mixed_batch(run, source, monkeypatch, tmp_path):
    monkeypatch.setattr("mtrec_ray.jobs.bundle.map_tasks", LocalReader().map)
    bundle = make_bundle(validate_config(BundleConfig, {"run": run.uri, "out": str(tmp_path / "bundle")})).bundle
    backbone, engine = load_backbone(source), Engine(bundle)
    (method,) = load_methods(run, backbone)
    history = torch.tensor([[1, 2, 3, 4], [5, 6, -1, -1], [7, -1, -1, -1]])
    values = torch.tensor([[0, 1, -1], [1, -1, 0], [-1, 3, 2]])
    expected: dict[Combination, torch.Tensor] = {(): backbone.user_vectors(history)}
    expected |= dict(zip(method.combinations, method.user_vectors(history, values), strict=True))
    wanted = [(combination, user) for user in range(3) for combination in expected]
    queries = [
        Query(
            tuple(history[user][history[user] >= 0].tolist()),
            tuple(values[user].tolist()),
            engine.combinations[of],
            0,
            5,
        )
        for of, user in wanted
    ]
    for repeated in (queries, queries[::-1] + queries):  # from the cache, too
        assert len(engine.recommend(repeated)) == len(repeated)
    for (combination, user), vector in zip(wanted, engine.user_vectors(queries), strict=True):
        torch.testing.assert_close(vector, expected[combination][user], rtol=1e-4, atol=1e-5)


def test_settings_without_effect_are_refused(source, tmp_path):
    for named, setting in (
        ("adversary", {"adversary": {"weight": 0.3}}),
        ("shape", {"shape": {"num_prompts": 2}}),
        ("optim.epochs", {"optim": {"epochs": 3}}),
        ("runner.workers", {"runner": {"workers": 2}}),
    ):
        with pytest.raises(UserError, match=f"{named} has no effect with method = closed_form: drop it"):
            fit(source, tmp_path, **setting)


def test_how_many_users_are_fitted_to_is_a_setting(source, run, tmp_path):
    fewer = fit(source, tmp_path, optim={"validation_users": 40}, combinations="gender+age")
    assert fewer.weights_hash() != run.weights_hash()
    assert fewer.figures.keys() == {"none", "gender+age"}


def test_values_of_few_users_are_said(source, caplog, tmp_path):
    fit(source, tmp_path, combinations="occupation")
    (message,) = [one for one in caplog.messages if "too few users" in one]
    assert message.startswith("attribute occupation: too few users of the train split to know ")
    assert "join values, or take a larger lake" in message


def test_association_of_attributes():
    one = np.array([0, 0, 1, 1, -1])
    assert cramers_v(one, np.array([1, 1, 0, 0, 0])) == pytest.approx(1)
    assert cramers_v(one, np.array([0, 1, 0, 1, 1])) == pytest.approx(0)
    assert cramers_v(one, np.array([-1, -1, -1, -1, 0])) == 0  # nobody tells both
    assert cramers_v(one, np.array([2, 2, 2, 2, 2])) == 0


def test_attributes_that_tell_of_each_other_are_said(source, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(eliminators, "MAX_ASSOCIATION", 0.0)
    fit(source, tmp_path, combinations="gender+age,occupation")
    (message,) = [one for one in caplog.messages if "tell of each other" in one]
    assert message.startswith("attributes gender and age tell of each other (Cramer's V 0.")
    assert message.endswith("hide gender or age alone")

"""A planted attribute leaks from a trained backbone until eliminators hide it, by the whole audit."""

import pytest
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.jobs.audit import audit
from mtrec_ray.jobs.config import AuditConfig
from mtrec_ray.lake.build import build_lake
from mtrec_ray.sources.source import make_source
from mtrec_ray.training.backbone_run import load_backbone
from mtrec_ray.training.eliminators import train_eliminators
from mtrec_ray.training.fit import train_backbone
from tests.jobs.test_fairness import COMBINATIONS, SYNTHETIC, backbone_config, eliminators_config

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def folder(ray_cluster, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    build_lake(make_source("synthetic", SYNTHETIC | {"users": 1000}), str(folder / "lake"))
    return folder


@pytest.fixture(scope="module")
def backbone(folder):
    return train_backbone(backbone_config(folder, optim={"epochs": 24, "evaluate_every": 6, "lanes": 4}))


def test_a_backbone_learns_what_comes_next(backbone):
    assert backbone.status == "done"
    assert backbone.figures["validation"]["val/auc"] > 0.75  # chance 0.5
    vectors = load_backbone(backbone).user_vectors(torch.tensor([[1, 2, 3], [1, -1, -1]]))
    assert vectors.shape == (2, 32)
    assert torch.isfinite(vectors).all()


def test_a_planted_attribute_leaks_until_it_is_eliminated(folder, backbone):
    """Gender follows taste in most users."""
    run = train_eliminators(eliminators_config(folder, optim={"epochs": 4, "lanes": 4}, transport={}))
    settings = {"run": run.uri, "num_folds": 3, "num_permutations": 2, "lists": False}
    of = audit(validate_config(AuditConfig, settings)).document()["combinations"]
    gender = {name: one["leakage"]["vectors"]["gender"] for name, one in of.items()}
    low = {name: leakage["balanced_accuracy"]["low"] for name, leakage in gender.items()}
    auc = {name: leakage["auc"]["value"] for name, leakage in gender.items()}
    chance = 0.5
    assert min(low["none"], low["age"]) > chance  # also where another attribute was eliminated
    assert low["gender"] < chance + 0.02  # the maximum over attackers lies a little above chance
    assert low["gender+age"] < chance + 0.03  # two at once leave more than one with 500 users
    assert min(auc["none"], auc["age"]) - max(auc["gender"], auc["gender+age"]) > 0.05
    for name in COMBINATIONS:
        assert of[name]["accuracy"]["ndcg@10"]["value"] > 0.95 * of["none"]["accuracy"]["ndcg@10"]["value"]

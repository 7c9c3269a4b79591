"""A trial of eliminators: whose labels it reads, and what it reports."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.errors import UserError
from mtrec_ray.evaluation import audit
from mtrec_ray.evaluation.attackers import VECTOR_ATTACKERS
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.sequences import HeldOutUsers, SequenceConfig, Sequences, UserSplit, in_split
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.eliminators_trial import HALVES, EliminatorsTrial
from mtrec_ray.tuning.space import Space, TrialSpecs
from mtrec_ray.workers import Workers
from tests.trainers.conftest import shorten_transports
from tests.tuning.conftest import fair_search


def trial(backbone: BackboneRecord, buckets: int | None = None, **settings: Any) -> EliminatorsTrial:
    config = fair_search(backbone)
    base = config.base | {"backbone": backbone.uri, "name": "t", "combinations": config.combinations} | settings
    data = {"buckets": buckets, "num_permutations": 2}
    specs = TrialSpecs(EliminatorsTrial, EliminatorsConfig, Space(), base, {}, data)
    return specs.make(specs.config({}), TrialCache(), Workers())


def train(one: EliminatorsTrial) -> tuple[torch.Tensor, np.ndarray]:
    """Vectors and NDCG@10 of the trial, without its attacks, which take longest."""
    return one._train(load_backbone(one.source), one._train_split_users())


@pytest.fixture(scope="module")
def trained(backbone) -> tuple[dict[str, dict[int, np.ndarray]], torch.Tensor, np.ndarray]:
    """Keys read by split and bucket, and what `train` returns, of one of two buckets."""
    read: dict[str, dict[int, np.ndarray]] = {}
    original = Sequences.read

    def watched(lake: Lake, bucket: int, config: SequenceConfig, split: UserSplit = "all", fraction: float = 1.0):
        found = original(lake, bucket, config, split, fraction)
        read.setdefault(split, {})[bucket] = found.keys
        return found

    with pytest.MonkeyPatch.context() as patch:
        shorten_transports(patch)
        patch.setattr(Sequences, "read", watched)
        return read, *train(trial(backbone, buckets=1))


class TestHalves:
    def test_the_halves_partition_the_train_split(self):
        keys = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
        split = SequenceConfig(audit_fraction=0.4)
        audited = in_split(keys, split, "audit")
        lower, upper = in_split(keys, split, "train_lower"), in_split(keys, split, "train_upper")
        assert not (lower & upper).any()
        np.testing.assert_array_equal(lower | upper, ~audited)
        assert lower.sum() == pytest.approx(1500, rel=0.1)

    def test_no_half_trains_on_the_audit_split_or_on_users_it_is_attacked_with(self, trained, backbone):
        lower, upper = (trained[0][half][0] for half in HALVES)
        assert len(lower)
        assert len(upper)
        assert not np.intersect1d(lower, upper).size
        for keys in (lower, upper):
            assert not in_split(keys, backbone.config.sequences, "audit").any()

    def test_vectors_of_each_half_are_from_the_other_halfs_eliminators(self, backbone, monkeypatch):
        number, split = {"train_lower": 1.0, "train_upper": 2.0}, backbone.config.sequences

        def trained(one, combinations, model, users: HeldOutUsers, half: UserSplit) -> SimpleNamespace:
            assert len(users)
            assert in_split(users.keys, split, half).all()
            shape = len(combinations), 1, backbone.config.model.width
            vectors = torch.full(shape, number[half])
            return SimpleNamespace(backbone=model, user_vectors=lambda history, _: vectors.expand(-1, len(history), -1))

        monkeypatch.setattr(EliminatorsTrial, "_train_pack", trained)
        one = trial(backbone)
        lower = in_split(one._train_split_users().keys, split, "train_lower")
        vectors, ndcg = train(one)
        assert one.combinations == [("gender",), ("gender", "age")]
        assert len(vectors) == len(ndcg) == 2
        for own in vectors:
            assert set(own[lower].flatten().tolist()) == {number["train_upper"]}
            assert set(own[~lower].flatten().tolist()) == {number["train_lower"]}


def test_training_depends_on_the_stated_buckets_the_spec_and_the_seed_only(trained, backbone, monkeypatch):
    read, vectors, ndcg = trained
    assert {bucket for of_split in read.values() for bucket in of_split} == {0}
    shorten_transports(monkeypatch)
    same_vectors, same_ndcg = train(trial(backbone, buckets=1))
    assert torch.equal(vectors, same_vectors)
    np.testing.assert_array_equal(ndcg, same_ndcg)
    assert (train(trial(backbone, buckets=1, seed=1))[1] != ndcg).any()


class TestFigures:
    @pytest.fixture(autouse=True)
    def one_quick_attacker(self, monkeypatch):
        shorten_transports(monkeypatch)
        monkeypatch.setattr(audit, "VECTOR_ATTACKERS", {"logistic": VECTOR_ATTACKERS["logistic"]})

    def test_metrics_have_bounds_and_each_attribute_its_own_figures(self, backbone):
        figures = trial(backbone).advance()
        for metric in ("leakage/mean", "leakage/worst", "ndcg@10/mean", "ndcg_ratio/mean"):
            assert figures[metric]["low"] <= figures[metric]["value"] <= figures[metric]["high"]
        assert {"balanced_accuracy/gender/gender", "auc/gender+age/age", "null_high/gender+age/gender"} <= set(figures)
        assert 0 <= figures["leakage/mean"]["value"] <= figures["leakage/worst"]["value"] < 1

    def test_the_backbone_has_its_own_accuracy_under_every_combination(self, backbone):
        figures = trial(backbone).backbone_figures()
        assert figures["ndcg_ratio/mean"]["value"] == 1
        assert figures["ndcg@10/mean"]["value"] == figures["ndcg@10/none"]["value"]
        assert figures["auc/gender/gender"] == figures["auc/gender+age/gender"]

    def test_leakage_with_opposite_signs_is_found_in_each_half(self, backbone):
        one = trial(backbone)
        users, gender = one._train_split_users(), list(backbone.attributes).index("gender")
        lower = in_split(users.keys, backbone.config.sequences, "train_lower")
        left = np.where(lower, 1, -1) * (2 * users.attribute_index[:, gender] - 1)
        vectors = torch.randn(len(users), 4, generator=torch.Generator().manual_seed(0))
        vectors[:, 0] += torch.from_numpy(2 * left)
        assert min(half.auc.value for half in one._attack(vectors, users, "gender")) > 0.9

    def test_too_few_users_to_attack_are_refused_with_the_fix(self, backbone):
        one = trial(backbone)
        users = one._train_split_users()
        few = users.only(np.arange(len(users)) < 12)
        problem = (
            "half of the train split: attribute 'gender': .* too few .*; raise base.optim.validation_users or buckets"
        )
        with pytest.raises(UserError, match=problem):
            one._attack(torch.zeros(len(few), 4), few, "gender")

    def test_a_saved_trial_has_no_validation_left(self, backbone, tmp_path):
        one = trial(backbone)
        one.validations_done = 1
        one.save(tmp_path)
        other = trial(backbone)
        other.load(tmp_path)
        assert other.validations_done == other.num_validations
        assert torch.get_num_threads() == 1  # of one CPU

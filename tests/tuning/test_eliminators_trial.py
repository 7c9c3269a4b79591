"""A trial of eliminators: whose labels it sees, what it reports, that it repeats itself."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.held_out import HeldOutUsers
from mtrec_ray.streams.sequences import SequenceConfig, Sequences, UserSplit, in_audit_split, in_split
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord, load_backbone
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.eliminators_trial import HALVES, METRICS, EliminatorsTrial
from mtrec_ray.tuning.space import Space
from mtrec_ray.tuning.specs import TrialSpecs
from tests.tuning.conftest import fair_search


def trial(backbone: BackboneRecord, buckets: int | None = None, **settings: Any) -> EliminatorsTrial:
    config = fair_search(backbone)
    base = config.base | {"backbone": backbone.uri, "name": "t", "combinations": config.combinations} | settings
    data = {"buckets": buckets, "num_permutations": 2}
    specs = TrialSpecs("eliminators", EliminatorsConfig, Space(), base, {}, data)
    return EliminatorsTrial(specs.spec({}), TrialCache())


class TestHalves:
    def test_the_halves_of_the_open_users_are_disjoint_and_whole_and_hold_no_attacked_user(self):
        keys = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
        split = SequenceConfig(audit_fraction=0.4)
        audited = in_audit_split(keys, split)
        lower, upper = in_split(keys, split, "train_lower"), in_split(keys, split, "train_upper")
        assert not (lower & upper).any()
        np.testing.assert_array_equal(lower | upper, ~audited)
        assert lower.sum() == pytest.approx(1500, rel=0.1)

    def test_no_half_is_trained_on_users_of_an_audit_or_of_its_own_attackers(self, backbone, monkeypatch):
        read: dict[str, list[np.ndarray]] = {"all": []} | {half: [] for half in HALVES}
        original = Sequences.read

        def watched(lake: Lake, bucket: int, config: SequenceConfig, split: UserSplit = "all", fraction: float = 1.0):
            found = original(lake, bucket, config, split, fraction)
            read[split].append(found.keys)
            return found

        monkeypatch.setattr(Sequences, "read", watched)
        trial(backbone).advance()
        lower, upper = (np.unique(np.concatenate(read[half])) for half in HALVES)
        assert len(lower)
        assert len(upper)
        assert not np.intersect1d(lower, upper).size
        for keys in (lower, upper):
            assert not in_audit_split(keys, backbone.config.sequences).any()

    def test_each_half_is_represented_by_what_the_other_one_trained(self, backbone, monkeypatch):
        number, split = {"train_lower": 1.0, "train_upper": 2.0}, backbone.config.sequences

        def trained(one, record, pack, model, users: HeldOutUsers, half: UserSplit) -> SimpleNamespace:
            assert len(users)
            assert in_split(users.keys, split, half).all()
            shape = len(record.packs[pack]), 1, backbone.config.model.width
            vectors = torch.full(shape, number[half])
            return SimpleNamespace(backbone=model, user_vectors=lambda history, _: vectors.expand(-1, len(history), -1))

        monkeypatch.setattr(EliminatorsTrial, "_train_pack", trained)
        one = trial(backbone)
        users = one._train_split_users()
        lower = in_split(users.keys, split, "train_lower")
        found = one._train(load_backbone(backbone), users)
        assert [len(combination) for combination in found] == [1, 2]
        for represented in found.values():
            assert set(represented.vectors[lower].flatten().tolist()) == {number["train_upper"]}
            assert set(represented.vectors[~lower].flatten().tolist()) == {number["train_lower"]}


def test_a_trial_reads_the_stated_buckets_alone(backbone, monkeypatch):
    read, original = set(), Sequences.read

    def watched(lake: Lake, bucket: int, *arguments: Any) -> Sequences:
        read.add(bucket)
        return original(lake, bucket, *arguments)

    monkeypatch.setattr(Sequences, "read", watched)
    trial(backbone, buckets=1).advance()
    assert read == {0}
    trial(backbone).advance()
    assert read == {0, 1}


class TestFigures:
    def test_every_metric_is_reported_with_bounds_and_each_attribute_by_itself(self, backbone):
        figures = trial(backbone).advance()
        for metric in METRICS:
            assert figures[f"{metric}_low"] <= figures[metric] <= figures[f"{metric}_high"]
        assert {"balanced_accuracy/gender/gender", "auc/gender+age/age", "null_high/gender+age/gender"} <= set(figures)
        assert 0 <= figures["leakage/mean"] <= figures["leakage/worst"] < 1

    def test_the_same_plan_gives_the_same_figures_and_another_seed_others(self, backbone):
        first = trial(backbone).advance()
        assert trial(backbone).advance() == first
        assert trial(backbone, seed=1).advance()["ndcg@10/mean"] != first["ndcg@10/mean"]

    def test_the_backbone_under_any_combination_keeps_all_its_accuracy(self, backbone):
        figures = trial(backbone).backbone_figures()
        assert figures["ndcg_share/mean"] == 1
        assert figures["ndcg@10/mean"] == figures["ndcg@10/none"]
        assert figures["auc/gender/gender"] == figures["auc/gender+age/gender"]

    def test_what_two_eliminators_leave_with_opposite_signs_is_read_in_each_half(self, backbone):
        one = trial(backbone)
        users, gender = one._train_split_users(), list(backbone.attributes).index("gender")
        lower = in_split(users.keys, backbone.config.sequences, "train_lower")
        left = np.where(lower, 1, -1) * (2 * users.attribute_index[:, gender] - 1)
        vectors = torch.randn(len(users), 4, generator=torch.Generator().manual_seed(0))
        vectors[:, 0] += torch.from_numpy(2 * left)
        assert min(half.auc.value for half in one._attack(vectors, users, "gender")) > 0.9

    @pytest.mark.parametrize(
        ("settings", "fix"),
        [
            ({}, "the lake has too few"),
            ({"buckets": 1}, "read more than buckets = 1"),
            ({"optim": {"validation_users": 20}}, "raise base.optim.validation_users = 20"),
            ({"buckets": 1, "optim": {"validation_users": 20}}, "raise base.optim.validation_users = 20"),
        ],
    )
    def test_too_few_users_to_attack_are_said_and_what_would_give_more(self, backbone, settings, fix):
        one = trial(backbone, **settings)
        users = one._train_split_users()
        few = users.only(np.arange(len(users)) < 12)
        says = rf"half of the users open to training: attribute 'gender': .* too few .*; {fix}"
        with pytest.raises(UserError, match=says):
            one._attack(torch.zeros(len(few), 4), few, "gender")

    def test_a_saved_trial_has_nothing_left_to_do(self, backbone, tmp_path):
        one = trial(backbone)
        one.validations_done = 1
        one.save(tmp_path)
        other = trial(backbone)
        other.load(tmp_path)
        assert other.validations_done == other.num_validations


def test_threads_are_those_of_the_worker(backbone):
    trial(backbone)
    assert torch.get_num_threads() == 1

"""A trial of eliminators: whose labels it sees, what it reports, that it repeats itself; and what a search refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.models.sequential import SequentialBackbone
from mtrec_ray.streams import windows
from mtrec_ray.streams.held_out import HeldOutUsers
from mtrec_ray.streams.sequences import SequenceConfig, Sequences, is_attacked
from mtrec_ray.training.backbone_config import BackboneConfig
from mtrec_ray.training.backbone_run import WEIGHTS, BackboneRecord, load_backbone
from mtrec_ray.training.weights import save_weights
from tests.tuning.conftest import build_here
from tuning import eliminators_trial
from tuning.config import EliminatorsSearchConfig
from tuning.data import Remembered
from tuning.eliminators_search import EliminatorsPlans, check, choose
from tuning.eliminators_trial import METRICS, EliminatorsTrial
from tuning.results import DONE, TrialRow
from tuning.space import Space


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("fair") / "lake"
    return build_here(folder, num_buckets=2, users=500, territories=4, titles=60, events_per_user=40.0)


@pytest.fixture(scope="module")
def backbone(lake, tmp_path_factory) -> BackboneRecord:
    """A backbone as it is before training: what it knows does not matter here."""
    runs = str(tmp_path_factory.mktemp("runs"))
    config = validate_config(
        BackboneConfig, {"lake": lake.uri, "runs": runs, "name": "bb", "model": {"width": 16, "history": 10}}
    )
    record = BackboneRecord(
        status="done",
        config=config,
        lake_hash=lake.manifest.lake_hash,
        attributes=lake.manifest.attributes,
        num_titles=lake.titles.num_rows,
        num_steps=0,
    )
    model = SequentialBackbone(record.sequential_config())
    model.init_weights(torch.Generator().manual_seed(0))
    save_weights(f"{record.uri}/{WEIGHTS}", model.state_dict(), {})
    record.save()
    return record


def search_config(backbone: BackboneRecord, **changes: Any) -> EliminatorsSearchConfig:
    document = {
        "backbone": backbone.uri,
        "name": "fair",
        "combinations": "gender,gender+age",
        "space": {"adversary.weight": {"low": 0.1, "high": 10, "log": True}},
        "base": {
            "optim": {"epochs": 1, "lanes": 2},
            "shape": {"num_prompts": 2},
            "transport": {"passes": 4, "later_passes": 2},
        },
        "num_permutations": 2,
    }
    return EliminatorsSearchConfig.model_validate(document | changes)


def trial(backbone: BackboneRecord, buckets: int | None = None, **settings: Any) -> EliminatorsTrial:
    config = search_config(backbone)
    base = config.base | {"backbone": backbone.uri, "name": "t", "combinations": config.combinations} | settings
    plans = EliminatorsPlans(base, Space(), {"buckets": buckets, "num_permutations": 2})
    return EliminatorsTrial(plans({}), Remembered())


class TestHalves:
    def test_the_halves_of_the_open_users_are_disjoint_and_whole_and_hold_no_attacked_user(self):
        keys = np.random.default_rng(0).integers(0, 2**63, 5000).astype(np.uint64)
        split = SequenceConfig(attacked_fraction=0.4)
        audited = is_attacked(keys, split)
        lower = ~is_attacked(keys, split.model_copy(update={"open_half": "lower"}))
        upper = ~is_attacked(keys, split.model_copy(update={"open_half": "upper"}))
        assert not (lower & upper).any()
        np.testing.assert_array_equal(lower | upper, ~audited)
        assert lower.sum() == pytest.approx(1500, rel=0.1)

    def test_no_half_is_trained_on_users_of_an_audit_or_of_its_own_attackers(self, backbone, monkeypatch):
        read: dict[str, list[np.ndarray]] = {"lower": [], "upper": []}
        original, original_prefixes = windows.read_users, eliminators_trial.read_prefixes

        def watched(lake: Lake, bucket: int, config: SequenceConfig, without_attacked: bool):
            found = original(lake, bucket, config, without_attacked)
            assert without_attacked
            read[config.open_half].append(found.keys)
            return found

        def watched_prefixes(lake: Lake, config: SequenceConfig, *arguments: Any):
            found = original_prefixes(lake, config, *arguments)
            read[config.open_half].append(found.keys)
            return found

        monkeypatch.setattr(eliminators_trial, "read_prefixes", watched_prefixes)
        monkeypatch.setattr(windows, "read_users", watched)
        monkeypatch.setattr("tuning.data.read_users", watched)
        trial(backbone).advance()
        lower, upper = (np.unique(np.concatenate(read[half])) for half in ("lower", "upper"))
        assert len(lower)
        assert len(upper)
        assert not np.intersect1d(lower, upper).size
        for keys in (lower, upper):
            assert not is_attacked(keys, backbone.config.sequences).any()

    def test_each_half_is_represented_by_what_the_other_one_trained(self, backbone, monkeypatch):
        number = {"lower": 1.0, "upper": 2.0}

        def trained(one, record, pack, model, users: HeldOutUsers, sequences: SequenceConfig) -> SimpleNamespace:
            assert len(users)
            assert not is_attacked(users.keys, sequences).any()
            shape = len(record.packs[pack]), 1, backbone.config.model.width
            vectors = torch.full(shape, number[sequences.open_half])
            return SimpleNamespace(backbone=model, user_vectors=lambda history, _: vectors.expand(-1, len(history), -1))

        monkeypatch.setattr(EliminatorsTrial, "_train_pack", trained)
        one = trial(backbone)
        users = one._open_users()
        lower = ~is_attacked(users.keys, one._sequences("lower"))
        found = one._train(load_backbone(backbone), users)
        assert [len(combination) for combination in found] == [1, 2]
        for represented in found.values():
            assert set(represented.vectors[lower].flatten().tolist()) == {number["upper"]}
            assert set(represented.vectors[~lower].flatten().tolist()) == {number["lower"]}


def test_a_trial_reads_the_stated_buckets_alone(backbone, monkeypatch):
    read, original = set(), Sequences.read

    def watched(lake: Lake, bucket: int, config: SequenceConfig) -> Sequences:
        read.add(bucket)
        return original(lake, bucket, config)

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
        users, gender = one._open_users(), list(backbone.attributes).index("gender")
        lower = is_attacked(users.keys, one._sequences("lower"))
        left = np.where(lower, 1, -1) * (2 * users.attribute_index[:, gender] - 1)
        vectors = torch.randn(len(users), 4, generator=torch.Generator().manual_seed(0))
        vectors[:, 0] += torch.from_numpy(2 * left)
        assert min(half.auc.value for half in one._attack(vectors, users, "gender")) > 0.9

    def test_too_few_users_to_attack_are_said(self, backbone):
        one = trial(backbone)
        users = one._open_users()
        with pytest.raises(UserError, match=r"half of the users open to training: attribute 'gender': .* too few"):
            one._attack(torch.zeros(12, 4), users.only(np.arange(len(users)) < 12), "gender")

    def test_a_saved_trial_has_nothing_left_to_do(self, backbone, tmp_path):
        one = trial(backbone)
        one.looks_done = 1
        one.save(tmp_path)
        other = trial(backbone)
        other.load(tmp_path)
        assert other.looks_done == other.num_looks


@pytest.mark.parametrize(
    ("keep_share", "chosen"),
    [
        (0.9, "leaks least"),
        (0.98, "as little"),  # beside one that leaks as little, and one that leaks more and is better still
        (0.995, "best"),
        (1.1, "best"),  # none keeps it
    ],
)
def test_the_choice_leaks_least_of_those_that_keep_their_accuracy(keep_share, chosen):
    figures = {
        "as little, dearer": (0.01, 0.980),
        "as little": (0.01, 0.990),
        "best": (0.05, 1.0),
        "leaks least": (0.0, 0.95),
    }
    rows = [
        TrialRow(name, DONE, {}, {"leakage/mean": leakage, "ndcg_share/mean": share, "ndcg@10/mean": share / 2}, [])
        for name, (leakage, share) in figures.items()
    ]
    assert choose(rows, keep_share).trial_id == chosen
    assert choose(rows[::-1], keep_share).trial_id == chosen


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"workers": 2}, "trains in one process"),
            ({"combinations": "gender,shoe"}, "no attribute 'shoe'"),
            ({"buckets": 3}, "buckets = 3: the lake has 2"),
            ({"base": {"optim": {"keep_share": 0.9}}}, "decided by keep_share of the search"),
            ({"space": {"optim.keep_share": [0.5]}}, "space: optim.keep_share has no say"),
            ({"base": {"optim": {"price": 0.1}}}, "decided by keep_share of the search"),
            ({"space": {"optim.price": [0.5]}}, "space: optim.price has no say"),
            ({"space": {"adversary.wait": [1]}}, "adversary.wait"),
            ({"space": {"shape.num_prompts": {"low": -3, "high": 4}}}, "shape.num_prompts"),
            ({"space": {"combinations": ["gender"]}}, "one for all"),
            ({"warm_start": [{"adversary.weight": 1}], "trials": 1}, "trials = 1"),
            ({"warm_start": [{"adversary.wait": 1}]}, "'adversary.wait' is not in space"),
            ({"space": {"optim.validation_users": [100, 500]}}, "one for all"),
        ],
    )
    def test_a_search_that_cannot_be_run(self, backbone, changes, says):
        with pytest.raises(UserError, match=says):
            check(search_config(backbone, **changes))

    def test_an_unfinished_backbone(self, backbone, tmp_path: Path):
        config = backbone.config.model_copy(update={"runs": str(tmp_path)})
        unfinished = backbone.model_copy(update={"status": "training", "config": config})
        unfinished.save()
        with pytest.raises(UserError, match="not finished"):
            check(search_config(unfinished))


def test_threads_are_those_of_the_worker(backbone):
    trial(backbone)
    assert torch.get_num_threads() == 1

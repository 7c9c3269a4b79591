"""A propensity search before its first trial: what is refused, and what a trial's parameters mean."""

from typing import Any

import pytest
import yaml

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.training.config import PropensityConfig
from tuning.config import PropensitySearchConfig
from tuning.partitions import Partition
from tuning.propensity_search import PropensityPlans, check
from tuning.space import GROUPS, Space

TERRITORIES = ["T001", "T002", "T003", "T004"]
HALVES = Partition("taste:2", ("group1", "group2"), (0, 1, 0, 1))


def search(lake: str, **settings: Any) -> PropensitySearchConfig:
    return validate_config(
        PropensitySearchConfig, {"name": "s", "lake": lake, "space": {"optim.epochs": [1, 2]}} | settings
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"metric": "pr_auc"}, "metric = 'pr_auc' is not reported.*pr_auc/all"),
        ({"space": {"optim.lr": [-1.0]}}, r"'optim\.lr' = -1\.0"),
        ({"space": {"lake": ["other"]}}, "lake decides what trials are measured on"),
        ({"space": {GROUPS: {"partitions": ["one"]}}, "base": {"kind": "baseline"}}, "no effect on a baseline"),
        ({"space": {GROUPS: {"partitions": ["volume:7"]}}}, "volume:7.*6 territories"),
        ({"space": {GROUPS: {"partitions": ["one"]}}, "trials": 3}, "trials = 3: 4 are needed"),
        ({"warm_start": [{"optim.lr": 1e-3}]}, r"warm_start: 'optim\.lr' is not in space; it has optim\.epochs"),
        ({"base": {"incremental": True}}, "base.incremental has no effect"),
        ({"warm_start": [{"optim.epochs": 9}]}, "warm_start: optim.epochs = 9"),
        ({"base": {"model": {"groups": "groups.yaml"}}}, "'groups.yaml' is neither one"),
        ({"space": {GROUPS: ["regions", "groups.yaml"]}}, "'groups.yaml' is neither one"),
        ({"space": {GROUPS: {"partitions": ["one"]}, "kind": ["mtl", "baseline"]}}, "baseline"),
        ({"base": {"seed": 7}}, "base: seed = 7 has no effect"),
        ({"base": {"sample": {"validation_fraction": 0.3}}}, "is decided by validation_fraction of the search"),
        ({"base": {"sample": {"test_fraction": 0.95}}}, "must leave users to train on"),
        (
            {"space": {GROUPS: {"partitions": ["one"]}}, "base": {"model": {"groups": "each"}}},
            "groups = 'each' has no effect: it is decided by space",
        ),
        ({"space": {GROUPS: {"partitions": ["one", "groups.yaml"]}}}, "takes a file of groups as a choice"),
        ({"base": {"optim": 3}}, "optim"),
        ({"base": {"optim": {"epochs": 0}}}, r"'optim\.epochs' = 0"),
        ({"buckets": 5}, "buckets = 5: the lake has 4"),
        ({"validation_days": 40}, "validation_days = 40"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(settings, problem, trial_lake):
    with pytest.raises(UserError, match=problem):
        check(search(trial_lake.uri, **settings))


def test_a_search_that_fits_knows_its_partitions_data_and_base(trial_lake):
    groups = {"partitions": ["one", "taste:2"], "random": 2, "moves": 1}
    data, base, space, seeds = check(search(trial_lake.uri, space={GROUPS: groups}, buckets=2, seed=5))
    assert (data.buckets, data.held_back) == ((0, 1), True)
    assert (base["lake"], base["name"], base["seed"]) == (trial_lake.uri, "s-best", 5)
    assert (space.moves, seeds) == (1, ("one", "taste:2", "random:2:0", "random:2:1"))


def plans(folder: str, space: Space, partitions: dict[str, Partition]) -> PropensityPlans:
    base = {"lake": "lake", "name": "s-best", "sample": {"tau": 0.5}}
    aside = {"sample.validation_fraction": 0.25}
    return PropensityPlans(base, space, partitions, TERRITORIES, folder, {"looks": 3}, aside)


def test_a_trials_partition_is_a_groups_file_with_its_moves_made(tmp_path):
    made = plans(str(tmp_path), Space(partitions=("taste:2",), movable=("T001", "T002"), moves=1), {"taste:2": HALVES})
    params = {GROUPS: "taste:2", "moves": 1, "move.1": "T001", "move.1.joins": "T002"}
    path = made.settings(params)["model"]["groups"]
    with open(path, encoding="utf-8") as file:
        assert yaml.safe_load(file) == {"group1": ["T001", "T002", "T004"], "group2": ["T003"]}
    assert made.settings(params)["model"]["groups"] == path
    assert made.settings(params | {"moves": 0})["model"]["groups"] != path


def test_a_plan_puts_validation_users_aside_and_the_best_config_does_not(tmp_path):
    made = plans(str(tmp_path), Space(choices={"optim.epochs": [1, 2]}), {})
    plan, settings = made({"optim.epochs": 2}), made.settings({"optim.epochs": 2})
    assert (plan["kind"], plan["looks"]) == ("propensity", 3)
    config = PropensityConfig.model_validate(plan["config"])
    assert (config.sample.validation_fraction, config.sample.tau, config.optim.epochs) == (0.25, 0.5, 2)
    assert settings == {"lake": "lake", "name": "s-best", "sample": {"tau": 0.5}, "optim": {"epochs": 2}}


def test_groups_may_be_plain_choices_without_partitions(tmp_path):
    made = plans(str(tmp_path), Space(choices={GROUPS: ["one", "regions"]}), {})
    assert made.settings({GROUPS: "one"})["model"] == {"groups": "one"}
    assert made({GROUPS: "regions"})["config"]["model"]["groups"] == "regions"

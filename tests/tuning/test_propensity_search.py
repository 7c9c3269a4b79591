"""A propensity search before its first trial: what is refused, and what a trial's parameters mean."""

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import yaml

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning import propensity_search
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import map_here
from mtrec_ray.tuning.partitions import Partition
from mtrec_ray.tuning.profiles import count_discoveries
from mtrec_ray.tuning.propensity_search import PropensityPlans, check, search_propensity
from mtrec_ray.tuning.search import Goal
from mtrec_ray.tuning.space import GROUPS, Space

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
        (
            {"space": {GROUPS: {"partitions": ["one"], "movable": 1}}},
            r"movable = 1: a territory joins another movable one",
        ),
        ({"space": {GROUPS: {"partitions": ["taste"]}}, "buckets": 1}, "taste:4, or read more buckets"),
        (
            {"space": {GROUPS: {"partitions": ["one"]}}, "warm_start": [{"moves": 1, "move.1": "NOWHERE"}]},
            "warm_start: move.1 = 'NOWHERE' is none of",
        ),
        (
            {"space": {GROUPS: {"partitions": ["one"], "movable": 0}}, "warm_start": [{"moves": 1}]},
            "warm_start: 'moves' is not in space",
        ),
        ({"base": {"sample": {"cold_fraction": 0.3}}}, "sample.cold_fraction = 0.3 has no effect"),
        (
            {"space": {"sample.cold_fraction": {"low": 0, "high": 0.3}}},
            "sample.cold_fraction = 0.3 has no effect",
        ),
        ({"validation_fraction": 1e-4}, "validated on 0.16 of the 1600 users .* raise validation_fraction"),
        ({"validation_fraction": 0.02, "buckets": 1}, "validated on 8 of the 400 users .* or read more buckets"),
        ({"base": {"sample": {"random_fraction": 1e-4}}}, "trained on .* of the 1600 users .* raise sample.random"),
        ({"space": {"optim.day_epochs": [1, 2]}}, "optim.day_epochs has no effect on trials"),
        ({"workers": 3, "base": {"optim": {"lanes": 2}}}, "workers = 3 needs as many optim.lanes"),
        ({"workers": 3, "space": {"optim.lanes": [2, 4]}}, "workers = 3 needs as many optim.lanes"),
        (
            {"base": {"optim.lr": 0.1}},
            "'optim.lr' is a setting of section 'optim': write it indented, `optim:` and below `lr:`",
        ),
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


class TestWhatIsHandedOn:
    """The search up to its first trial: what Tune would be given, what a trial would be told, what was counted."""

    @pytest.fixture
    def begun(self, trial_lake, tmp_path, monkeypatch) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def watched(name: str, returned: Any = None) -> Any:
            original = getattr(propensity_search, name)

            def call(*arguments: Any, **settings: Any) -> Any:
                seen[name] = arguments
                return returned or original(*arguments, **settings)

            return call

        evidence = Evidence(np.random.default_rng(0).standard_normal((2, 6, 3)), np.ones((2, 6)))
        monkeypatch.setattr(propensity_search, "trials_at_once", lambda config: 1)
        monkeypatch.setattr(propensity_search, "count_discoveries", watched("count_discoveries"))
        monkeypatch.setattr(propensity_search, "gradient_evidence", watched("gradient_evidence", evidence))
        monkeypatch.setattr(propensity_search, "run", watched("run", "grid"))
        monkeypatch.setattr(propensity_search, "collect", watched("collect", "result"))
        groups = {"partitions": ["one", "affinity:2"], "random": 1, "movable": 3, "moves": 2}
        settings = {
            "metric": "ndcg@10/mean",
            "space": {GROUPS: groups, "optim.lr": [1e-3]},
            "searches": str(tmp_path),
            "validation_fraction": 0.3,
            "validation_days": 5,
            "validation_users": 500,
            "num_bootstrap": 33,
            "looks": 3,
            "buckets": 3,
        }
        search_propensity(search(trial_lake.uri, **settings | {"early_stop": True, "reduction_factor": 4}))
        return seen | {"settings": settings, "lake": trial_lake, "folder": tmp_path}

    def test_tune_is_given_the_goal_the_candidates_and_how_early_to_stop(self, begun):
        prepared = begun["run"][1]
        assert prepared.goals == (Goal("ndcg@10/mean", "max"),)
        assert [params[GROUPS] for params in prepared.first] == ["one", "affinity:2", "random:2:0"]
        assert {params["moves"] for params in prepared.first} == {0}
        assert prepared.num_groups == {"one": 1, "affinity:2": 2, "random:2:0": 2}
        assert (prepared.num_validations, prepared.reduction_factor) == (3, 4)

    def test_the_largest_territories_may_move(self, begun):
        calendar = begun["lake"].manifest.calendar
        held_back = calendar.model_copy(update={"window_end": calendar.window_end - timedelta(days=5)})
        sample = SampleConfig(validation_fraction=0.3)
        volume = count_discoveries(begun["lake"], held_back, sample, (0, 1, 2), map_here).sum(axis=(0, 2))
        names = begun["lake"].territory_names()
        largest = sorted(range(6), key=lambda territory: -volume[territory])[:3]
        assert begun["run"][1].space.movable == tuple(names[territory] for territory in largest)

    def test_a_trial_is_told_what_the_search_was(self, begun):
        plan = begun["run"][1].make_trial_spec(begun["run"][1].first[1])
        for key in ("validation_days", "validation_users", "num_bootstrap", "looks", "buckets"):
            assert plan[key] == begun["settings"][key]
        assert plan["lake_hash"] == begun["lake"].manifest.lake_hash
        assert plan["config"]["sample"]["validation_fraction"] == 0.3
        assert plan["config"]["model"]["groups"].startswith(str(begun["folder"]))

    def test_candidates_are_made_without_validation_users_and_held_back_days(self, begun):
        end = begun["lake"].manifest.calendar.window_end - timedelta(days=5)
        _, calendar, sample, buckets, _ = begun["count_discoveries"]
        assert (calendar.window_end, sample.validation_fraction, buckets) == (end, 0.3, (0, 1, 2))
        config, data = begun["gradient_evidence"][:2]
        assert (config.sample.validation_fraction, data.calendar.window_end, data.buckets) == (0.3, end, (0, 1, 2))

    def test_the_fresh_seeds_are_of_the_same_search(self, begun):
        uri, grid, prepared, _, notes, _ = begun["collect"]
        assert (uri, grid, prepared) == (f"{begun['folder']}/s", "grid", begun["run"][1])
        assert "trials read 3 of 4 buckets" in notes[0]


class TestWhatASearchStandsOn:
    @pytest.fixture
    def recorded(self, trial_lake, tmp_path, monkeypatch) -> PropensitySearchConfig:
        for name, returned in (("trials_at_once", 1), ("run", "grid"), ("collect", "result")):
            monkeypatch.setattr(propensity_search, name, lambda *_, returned=returned: returned)
        halves = Partition("x", ("north", "south"), (0, 1, 0, 1, 0, 1))
        (tmp_path / "groups.yaml").write_text(yaml.safe_dump(halves.document(trial_lake.territory_names())))
        space = {GROUPS: ["one", str(tmp_path / "groups.yaml")]}
        config = search(trial_lake.uri, space=space, searches=str(tmp_path / "searches"))
        search_propensity(config)
        return config

    def test_it_goes_on_while_nothing_changed(self, recorded):
        assert search_propensity(recorded, resume=True) == "result"

    def test_other_groups_in_the_file_are_noticed(self, recorded, trial_lake, tmp_path):
        other = Partition("x", ("north", "south"), (0, 0, 0, 1, 1, 1))
        (tmp_path / "groups.yaml").write_text(yaml.safe_dump(other.document(trial_lake.territory_names())))
        with pytest.raises(UserError, match=r"another state of groups file .*groups\.yaml"):
            search_propensity(recorded, resume=True)

    def test_another_lake_is_noticed(self, recorded, tmp_path):
        known = tmp_path / "searches" / "s" / "inputs.json"
        document = json.loads(known.read_text())
        (lake,) = [name for name in document if name.startswith("lake")]
        known.write_text(json.dumps(document | {lake: "0" * 16}))
        with pytest.raises(UserError, match="another state of lake"):
            search_propensity(recorded, resume=True)


def plans(folder: str, space: Space, partitions: dict[str, Partition]) -> PropensityPlans:
    base = {"lake": "lake", "name": "s-best", "sample": {"tau": 0.5}}
    trial_overrides = {"sample.validation_fraction": 0.25}
    return PropensityPlans(base, space, partitions, TERRITORIES, folder, {"looks": 3}, trial_overrides)


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

"""A propensity search before its first trial: refusals, arguments and TrialSpecs."""

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import yaml
from optuna.distributions import CategoricalDistribution

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning import partitions, propensity_search
from mtrec_ray.tuning.clustering import Evidence
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import TrialData
from mtrec_ray.tuning.partitions import count_discoveries, groups_document
from mtrec_ray.tuning.propensity_search import check_propensity_search, search_propensity
from mtrec_ray.tuning.space import GROUPS, GroupsFiles, Space
from tests.tuning.conftest import specs_of


def search(lake: str, **settings: Any) -> PropensitySearchConfig:
    return validate_config(
        PropensitySearchConfig, {"name": "s", "lake": lake, "space": {"optim.epochs": [1, 2]}} | settings
    )


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"metric": "pr_auc"}, "metric = 'pr_auc' is not reported.*pr_auc/all"),
        ({"space": {"lake": ["other"]}}, "space: lake has no effect: it is decided by lake"),
        ({"space": {GROUPS: {"partitions": ["one"]}}, "base": {"kind": "baseline"}}, "no effect on a baseline"),
        ({"space": {GROUPS: {"partitions": ["one"]}}, "trials": 3}, "trials = 3: 4 are needed"),
        ({"space": {GROUPS: {"partitions": ["tastes:4"]}}}, "tastes:4"),
        ({"validation_days": 80}, "less than half"),
        ({"base": {"incremental": True}}, "base: incremental = True has no effect"),
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
        ({"space": {GROUPS: {"partitions": ["taste"]}}, "buckets": 1}, "taste:4, or read more buckets"),
        ({"validation_fraction": 1e-4}, "validated on 0.16 of the 1600 users they read: raise validation_fraction"),
        ({"validation_fraction": 0.02, "buckets": 1}, "validated on 8 of the 400 users .* or buckets"),
        ({"base": {"sample": {"random_fraction": 1e-4}}}, "train on .* of the 1600 users .* sample.random_fraction"),
        ({"workers": 3, "space": {"optim.lanes": [2, 4]}}, "workers = 3 needs as many optim.lanes"),
        ({"base": {"optim": 3}}, "optim"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_any_work(settings, problem, trial_lake):
    with pytest.raises(UserError, match=problem):
        check_propensity_search(search(trial_lake.uri, **settings))


def test_check_returns_data_and_specs(trial_lake):
    groups = {"partitions": ["one", "taste:2"], "random": 2, "moves": 1}
    data, specs = check_propensity_search(search(trial_lake.uri, space={GROUPS: groups}, buckets=2, seed=5))
    base, space = specs.base, specs.space
    assert (data.buckets, data.held_back) == ((0, 1), True)
    assert (base["lake"], base["name"], base["seed"]) == (trial_lake.uri, "s-best", 5)
    assert (space.moves, space.partitions) == (1, ("one", "taste:2", "random:2:0", "random:2:1"))


class TestArguments:
    """A search up to its first trial: what its parts receive."""

    @pytest.fixture
    def started(self, trial_lake, tmp_path, monkeypatch) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def watched(module: Any, name: str, returned: Any = None) -> Any:
            original = getattr(module, name)

            def call(*arguments: Any, **settings: Any) -> Any:
                seen[name] = arguments
                return returned or original(*arguments, **settings)

            return call

        evidence = Evidence(np.random.default_rng(0).standard_normal((2, 6, 3)), np.ones((2, 6)))
        monkeypatch.setattr(propensity_search, "trials_at_once", lambda *_: 1)
        monkeypatch.setattr(propensity_search, "MOVABLE", 3)
        for module, name, returned in (
            (partitions, "count_discoveries", None),
            (partitions, "gradient_evidence", evidence),
            (propensity_search, "run_search", "result"),
        ):
            monkeypatch.setattr(module, name, watched(module, name, returned))
        groups = {"partitions": ["one", "affinity:2"], "random": 1, "moves": 2}
        settings: dict[str, Any] = {"space": {GROUPS: groups, "optim.lr": [1e-3]}, "searches": str(tmp_path)}
        settings |= {"metric": "ndcg@10/mean", "validation_fraction": 0.3, "validation_days": 5}
        settings |= {"validations": 3, "buckets": 3}
        search_propensity(search(trial_lake.uri, **settings))
        return seen | {"settings": settings, "lake": trial_lake, "folder": tmp_path}

    def test_the_prepared_search_has_the_goal_the_first_trials_early_stopping_and_a_note(self, started):
        prepared = started["run_search"][0]
        assert prepared.goals == {"ndcg@10/mean": "max"}
        assert (prepared.num_validations, "trials read 3 of 4 buckets" in prepared.notes[0]) == (3, True)
        assert [p[GROUPS] for p in prepared.first] == ["one", "affinity:2", "random:2:0"]
        assert all(p["moves"] == 0 and p["optim.lr"] == 1e-3 for p in prepared.first)
        groups = prepared.specs.groups_files.partitions
        assert {name: len(one.names) for name, one in groups.items()} == {"one": 1, "affinity:2": 2, "random:2:0": 2}

    def test_the_movable_territories_are_the_largest(self, started):
        calendar = started["lake"].manifest.calendar
        held_back = calendar.model_copy(update={"window_end": calendar.window_end - timedelta(days=5)})
        sample = SampleConfig(validation_fraction=0.3)
        data = TrialData(started["lake"], held_back, (0, 1, 2), held_back.day_bounds(0), held_back=True)
        volume = count_discoveries(data, sample, LocalReader()).sum(axis=(0, 2))
        names = started["lake"].territory_names()
        largest = sorted(range(6), key=lambda territory: -volume[territory])[:3]
        assert started["run_search"][0].specs.space.movable == tuple(names[territory] for territory in largest)

    def test_a_trial_has_the_settings_of_the_search(self, started):
        prepared = started["run_search"][0]
        config, arguments = prepared.specs.config(prepared.first[1]), prepared.specs.arguments
        for key in ("validation_days", "validations", "buckets"):
            assert getattr(arguments["search"], key) == started["settings"][key]
        assert arguments["lake_hash"] == started["lake"].manifest.lake_hash
        assert config.sample.validation_fraction == 0.3
        assert config.model.groups.startswith(str(started["folder"]))

    def test_partitions_are_made_without_validation_users_and_held_back_days(self, started):
        end = started["lake"].manifest.calendar.window_end - timedelta(days=5)
        data, sample, *_ = started["count_discoveries"]
        assert (data.calendar.window_end, sample.validation_fraction, data.buckets) == (end, 0.3, (0, 1, 2))
        config, data = started["gradient_evidence"][:2]
        assert (config.sample.validation_fraction, data.calendar.window_end, data.buckets) == (0.3, end, (0, 1, 2))


class TestResume:
    @pytest.fixture
    def recorded(self, trial_lake, tmp_path, monkeypatch) -> PropensitySearchConfig:
        for name, returned in (("trials_at_once", 1), ("run_search", "result")):
            monkeypatch.setattr(propensity_search, name, lambda *_, returned=returned: returned)
        write_groups(tmp_path, trial_lake, [0, 1, 0, 1, 0, 1])
        space = {GROUPS: ["one", str(tmp_path / "groups.yaml")]}
        config = search(trial_lake.uri, space=space, searches=str(tmp_path / "searches"))
        search_propensity(config)
        return config

    @pytest.mark.parametrize("changes", [{}, {"trials_at_once": 1}, {"cpus_per_worker": 0.5}])
    def test_settings_of_speed_may_change(self, recorded, changes):
        assert search_propensity(recorded.model_copy(update=changes), resume=True) == "result"

    def test_another_setting_and_a_changed_groups_file_are_refused(self, recorded, trial_lake, tmp_path):
        with pytest.raises(UserError, match=r"other settings: trials = 20 \(now 21\): choose another name"):
            search_propensity(recorded.model_copy(update={"trials": 21}), resume=True)
        write_groups(tmp_path, trial_lake, [0, 0, 0, 1, 1, 1])
        with pytest.raises(UserError, match=r"another state of its groups file .*groups\.yaml"):
            search_propensity(recorded, resume=True)

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda document: document["inputs"].update(lake="0" * 16), "another state of its lake"),
            (lambda document: document.update(version=1), "has format version 1, this mtrec_ray reads 3"),
        ],
    )
    def test_another_lake_or_format_is_refused(self, recorded, tmp_path, change, problem):
        path = tmp_path / "searches" / "s" / "search.yaml"
        document = yaml.safe_load(path.read_text())
        change(document)
        path.write_text(yaml.safe_dump(document))
        with pytest.raises(UserError, match=problem):
            search_propensity(recorded, resume=True)


def write_groups(folder: Any, lake: Any, group: list[int]) -> None:
    groups = Groups(names=["north", "south"], of_territory=group)
    (folder / "groups.yaml").write_text(yaml.safe_dump(groups_document(groups, lake.territory_names())))


BASE = {"lake": "lake", "name": "s-best", "sample": {"tau": 0.5}}


def test_a_trials_partition_is_a_groups_file_after_its_moves(tmp_path):
    halves = Groups(names=["group1", "group2"], of_territory=[0, 1, 0, 1])
    space = Space(partitions=("taste:2",), movable=("T001", "T002"), moves=1)
    files = GroupsFiles(str(tmp_path), ["T001", "T002", "T003", "T004"], {"taste:2": halves})
    made = specs_of(space, base=BASE, groups_files=files)
    params = {GROUPS: "taste:2", "moves": 1, "move.1": "T001", "move.1.joins": "T002"}
    path = made.settings(params)["model"]["groups"]
    with open(path, encoding="utf-8") as file:
        assert yaml.safe_load(file) == {"group1": ["T001", "T002", "T004"], "group2": ["T003"]}
    assert made.settings(params)["model"]["groups"] == path
    assert made.settings(params | {"moves": 0})["model"]["groups"] != path


def test_trial_overrides_reach_trials_but_not_the_best_config():
    space = Space({"optim.epochs": CategoricalDistribution([1, 2])})
    made = specs_of(space, base=BASE, trial_overrides={"sample.validation_fraction": 0.25})
    config, settings = made.config({"optim.epochs": 2}), made.settings({"optim.epochs": 2})
    assert isinstance(config, PropensityConfig)
    assert (config.sample.validation_fraction, config.sample.tau, config.optim.epochs) == (0.25, 0.5, 2)
    assert settings == BASE | {"optim": {"epochs": 2}}


def test_groups_may_be_plain_choices_without_partitions():
    made = specs_of(Space({GROUPS: CategoricalDistribution(["one", "regions"])}), base=BASE)
    assert made.settings({GROUPS: "one"})["model"] == {"groups": "one"}
    assert made.settings({GROUPS: "regions"})["model"]["groups"] == "regions"

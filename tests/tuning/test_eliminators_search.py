"""A search of eliminators: the choice, what is refused, and searches on a real cluster, shared and for each alone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtrec_ray.config import load_config
from mtrec_ray.errors import UserError
from mtrec_ray.files import read_json
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.eliminators_search import check, choose, search_eliminators
from mtrec_ray.tuning.results import DONE, SearchResult, TrialRow
from mtrec_ray.tuning.search import Goal, Prepared, confirm
from mtrec_ray.tuning.space import Space
from tests.tuning.conftest import fair_search


@pytest.mark.parametrize(
    ("min_ndcg_ratio", "chosen"),
    [
        (0.9, "leaks least"),
        (0.98, "as little"),  # beside one that leaks as little, and one that leaks more and is better still
        (0.995, "best"),
        (1.1, "best"),  # none keeps it
    ],
)
def test_the_choice_leaks_least_of_those_that_keep_their_accuracy(min_ndcg_ratio, chosen):
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
    assert choose(rows, min_ndcg_ratio).trial_id == chosen
    assert choose(rows[::-1], min_ndcg_ratio).trial_id == chosen


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"workers": 2}, "trains in one process"),
            ({"combinations": "gender,shoe"}, "no attribute 'shoe'"),
            ({"buckets": 3}, "buckets = 3: the lake has 2"),
            ({"base": {"optim": {"min_ndcg_ratio": 0.9}}}, "decided by min_ndcg_ratio of the search"),
            ({"space": {"optim.min_ndcg_ratio": [0.5]}}, "space: optim.min_ndcg_ratio has no say"),
            ({"base": {"optim": {"leakage_budget": 0.1}}}, "decided by min_ndcg_ratio of the search"),
            ({"space": {"optim.leakage_budget": [0.5]}}, "space: optim.leakage_budget has no say"),
            ({"space": {"adversary.wait": [1]}}, "adversary.wait"),
            ({"space": {"shape.num_prompts": {"low": -3, "high": 4}}}, "shape.num_prompts"),
            ({"space": {"combinations": ["gender"]}}, "one for all"),
            ({"warm_start": [{"adversary.weight": 1}], "trials": 1}, "trials = 1"),
            ({"warm_start": [{"adversary.wait": 1}]}, "'adversary.wait' is not in space"),
            ({"space": {"optim.validation_users": [100, 500]}}, "one for all"),
            (
                {"base": {"method": "filter"}, "space": {"shape.num_prompts": [1, 2]}},
                "shape has no effect with method = filter",
            ),
            (
                {"base": {"method": "fine_tuning", "shape": {"adapter_width": 2}}},
                "shape has no effect with method = fine_tuning",
            ),
            (
                {"base": {"method": "filter"}, "space": {"transport.weight": [1.0, 2.0]}},
                "transport has no effect with method = filter",
            ),
            (
                {"base": {"shape": {"transport_units": 0}}, "space": {"transport.weight": [1.0, 2.0]}},
                "space: transport.weight has no effect with shape.transport_units = 0",
            ),
        ],
    )
    def test_a_search_that_cannot_be_run(self, backbone, changes, says):
        with pytest.raises(UserError, match=says):
            check(fair_search(backbone, **changes))

    def test_maps_that_some_trials_have_may_be_searched(self, backbone):
        space = {"shape.transport_units": [0, 4], "transport.weight": [1.0, 2.0]}
        check(fair_search(backbone, base={"shape": {"transport_units": 0}}, space=space))
        check(fair_search(backbone, base={"method": "filter"}))

    def test_an_unfinished_backbone(self, backbone, tmp_path: Path):
        config = backbone.config.model_copy(update={"runs": str(tmp_path)})
        unfinished = backbone.model_copy(update={"status": "training", "config": config})
        unfinished.save()
        with pytest.raises(UserError, match="not finished"):
            check(fair_search(unfinished))


def apart(backbone: BackboneRecord, folder: Path, **changes: Any) -> EliminatorsSearchConfig:
    """A search for each of two attributes by itself; its warm start is what the base comes to."""
    settings = {
        "name": "apart",
        "searches": str(folder),
        "combinations": "gender,age",
        "shared": False,
        "trials": 2,
        "confirm": 1,
        "warm_start": [{"adversary.weight": 0.3}],
    }
    return fair_search(backbone, **settings | changes)


@pytest.fixture(scope="module")
def searched(ray_cluster, backbone, tmp_path_factory) -> list[SearchResult]:
    return search_eliminators(apart(backbone, tmp_path_factory.mktemp("searches")))


@pytest.mark.ray
@pytest.mark.timeout(600)
class TestEachCombinationByItself:
    def test_each_has_its_trials_and_a_config_that_train_takes(self, searched, backbone):
        assert [Path(result.uri).name for result in searched] == ["gender", "age"]
        for result, name in zip(searched, ("gender", "age"), strict=True):
            table: Any = pd.read_csv(f"{result.uri}/trials.csv")
            assert table["status"].tolist() == ["done"] * 2
            assert f"auc/{name}/{name}" in table
            assert len([key for key in table if key.startswith("auc/")]) == 1
            config = load_config(EliminatorsConfig, f"{result.uri}/best-config.yaml", [])
            assert (config.combinations, config.backbone) == (name, backbone.uri)
            assert config.adversary.weight == result.best.params["adversary.weight"]
            assert len(result.fresh) == 1

    def test_a_warm_start_that_is_the_base_is_tried_once(self, searched):
        for result in searched:
            weights = [row.params["adversary.weight"] for row in result.rows]
            assert weights.count(0.3) == 1

    def test_the_choice_is_on_the_front(self, searched):
        assert all(result.best in result.front for result in searched)

    def test_resumed_it_trains_nothing_but_what_is_missing(self, searched, backbone, monkeypatch):
        folder = Path(searched[0].uri).parent
        done = []
        (folder / "age" / "confirmed.json").unlink()

        def watched(config: EliminatorsSearchConfig, *arguments: Any) -> Any:
            done.append((config.name, (Path(config.searches) / config.name / "confirmed.json").exists()))
            return confirm(config, *arguments)

        monkeypatch.setattr("tuning.eliminators_search.confirm", watched)
        shown = []
        again = search_eliminators(apart(backbone, folder.parent), resume=True, progress=lambda *now: shown.append(now))
        assert done == [("gender", True), ("age", False)]
        assert shown == [("fresh seeds", 1, 1)]  # of age alone, and no trial
        assert [one.flat() for one in again] == [one.flat() for one in searched]

    @pytest.mark.parametrize(
        ("changes", "resume", "says"),
        [
            ({}, False, "begun before: go on with --resume"),
            ({"shared": True}, True, r"shared = False \(now True\): choose another name"),
            ({"shared": True}, False, "begun before"),
            ({"combinations": "age"}, True, r"combinations = 'gender,age' \(now 'age'\)"),
            ({"min_ndcg_ratio": 0.9}, True, r"min_ndcg_ratio = 0.98 \(now 0.9\)"),
            ({"name": "other"}, True, "no search"),
        ],
    )
    def test_a_name_that_is_taken_is_said_before_any_trial(
        self, searched, backbone, monkeypatch, changes, resume, says
    ):
        monkeypatch.setattr("tuning.eliminators_search.run", None)
        with pytest.raises(UserError, match=says):
            search_eliminators(apart(backbone, Path(searched[0].uri).parent.parent, **changes), resume)

    def test_too_few_users_are_said_before_the_name_is_taken(self, searched, backbone, tmp_path):
        base = {"optim": {"validation_users": 20}}
        with pytest.raises(UserError, match=r"raise base\.optim\.validation_users = 20"):
            search_eliminators(apart(backbone, tmp_path, base=base))
        assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_fresh_seeds_are_kept_one_by_one(ray_cluster, backbone, tmp_path, monkeypatch):
    config = apart(backbone, tmp_path, confirm=3, trials_at_once=1, retries=0)
    prepared = Prepared(Space(), (Goal("seed", "max"),), lambda params: {"config": params}, first=[])

    def trained(plan: dict[str, Any]) -> dict[str, float]:
        seed = plan["config"]["seed"]
        if seed == 1003 and not (tmp_path / "1003").exists():
            (tmp_path / "1003").touch()
            raise RuntimeError("the machine is gone")
        (tmp_path / str(seed)).touch(exist_ok=seed == 1003)
        return {"seed": float(seed)}

    monkeypatch.setattr("tuning.search._train_to_end", trained)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        confirm(config, prepared, None, {"x": 1})
    figures = confirm(config, prepared, None, {"x": 1})
    assert [one["seed"] for one in figures] == [1001, 1002, 1003]
    assert read_json(f"{tmp_path}/apart/confirmed.json") == {"params": {"x": 1}, "figures": figures}
    with pytest.raises(FileExistsError):  # of other parameters nothing is known
        confirm(config, prepared, None, {"x": 2})

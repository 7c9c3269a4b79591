"""A search of eliminators: its choice, refusals, and a search for each combination."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mtrec_ray.config import load_config
from mtrec_ray.errors import UserError
from mtrec_ray.files import read_json
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.tuning import collect, eliminators_search
from mtrec_ray.tuning.collect import train_with_fresh_seeds
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.eliminators_search import check_eliminators_search, choose_least_leakage, search_eliminators
from mtrec_ray.tuning.results import DONE, SearchResult, TrialRow
from mtrec_ray.tuning.search import PreparedSearch
from mtrec_ray.tuning.space import TrialSpecs
from tests.tuning.conftest import fair_search, specs_of

METRICS = ("leakage/mean", "ndcg@10/mean", "ndcg_ratio/mean")


@pytest.mark.parametrize(
    ("min_ndcg_ratio", "chosen", "num_notes"),
    [
        (0.9, "leaks least", 0),
        (0.98, "leaks as little", 0),  # more accurate than one with the same leakage; the best one leaks more
        (0.995, "best", 0),
        (1.1, "best", 1),  # no trial has so much
    ],
)
def test_the_choice_has_the_least_leakage_at_the_required_accuracy(min_ndcg_ratio, chosen, num_notes):
    figures = {
        "leaks as little, less accurate": (0.01, 0.490, 0.980),
        "leaks as little": (0.01, 0.495, 0.990),
        "best": (0.05, 0.5, 1.0),
        "leaks least": (0.0, 0.475, 0.95),
    }
    rows = [
        TrialRow(name, DONE, {}, {metric: {"value": value} for metric, value in zip(METRICS, values, strict=True)})
        for name, values in figures.items()
    ]
    for ordered in (rows, rows[::-1]):
        row, notes = choose_least_leakage(ordered, min_ndcg_ratio)
        assert (row.trial_id, len(notes)) == (chosen, num_notes)


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "problem"),
        [
            ({"workers": 2}, "unknown setting 'workers'"),
            ({"combinations": "gender,shoe"}, "no attribute 'shoe'"),
            ({"buckets": 3}, "buckets = 3: the lake has 2"),
            ({"space": {"optim.min_ndcg_ratio": [0.5]}}, "space: optim.min_ndcg_ratio has no effect: it is decided"),
            ({"base": {"optim": {"leakage_budget": 0.1}}}, "decided by min_ndcg_ratio of the search"),
            ({"space": {"optim.validation_users": [100, 500]}}, "one for all"),
            (
                {"base": {"method": "filter"}, "space": {"shape.num_prompts": [1, 2]}},
                "shape has no effect with method = filter",
            ),
            ({"base": {"method": "pfrec"}}, "base.method = pfrec ends by a probe of its own"),
            ({"base": {"method": "closed_form"}}, "base.method = closed_form has no settings to search over"),
            (
                {"base": {"shape": {"transport_units": 0}}, "space": {"transport.weight": [1.0, 2.0]}},
                "space: transport.weight has no effect with shape.transport_units = 0",
            ),
        ],
    )
    def test_settings_that_do_not_fit_are_refused_before_any_work(self, backbone, changes, problem):
        with pytest.raises(UserError, match=problem):
            check_eliminators_search(fair_search(backbone, **changes))

    def test_transport_settings_are_accepted_where_some_trials_have_a_transport(self, backbone):
        space = {"shape.transport_units": [0, 4], "transport.weight": [1.0, 2.0]}
        check_eliminators_search(fair_search(backbone, base={"shape": {"transport_units": 0}}, space=space))
        check_eliminators_search(fair_search(backbone, base={"method": "filter"}))

    def test_an_unfinished_backbone_is_refused(self, backbone, tmp_path: Path):
        config = backbone.config.model_copy(update={"runs": str(tmp_path)})
        unfinished = backbone.model_copy(update={"status": "training", "config": config})
        unfinished.save()
        with pytest.raises(UserError, match="not finished"):
            check_eliminators_search(fair_search(unfinished))


def two_trials(backbone: BackboneRecord, folder: Path, **changes: Any) -> EliminatorsSearchConfig:
    settings = {"searches": str(folder), "combinations": "gender", "trials": 2, "confirm": 1}
    return fair_search(backbone, **settings | changes)


def without_fresh_seeds_and_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures by hand where no trial runs: two attacks less."""
    figures = {metric: {"value": 0.5} for metric in METRICS}
    monkeypatch.setattr(eliminators_search, "NUM_PERMUTATIONS", 2)
    monkeypatch.setattr(eliminators_search, "_backbone_figures", lambda *_: figures)
    monkeypatch.setattr(collect, "_train_to_end", lambda *_: figures)


@pytest.fixture(scope="module")
def searched(ray_cluster, backbone, tmp_path_factory) -> SearchResult:
    with pytest.MonkeyPatch.context() as patch:
        without_fresh_seeds_and_backbone(patch)
        return search_eliminators(two_trials(backbone, tmp_path_factory.mktemp("searches")))


@pytest.mark.ray
@pytest.mark.timeout(600)
class TestSearch:
    def test_it_has_its_trials_and_a_config_that_train_accepts(self, searched, backbone):
        tables: list[Any] = [pd.read_csv(f"{searched.uri}/{name}.csv") for name in ("trials", "metrics")]
        trials, metrics = tables
        assert trials["status"].tolist() == ["done"] * 2
        assert {key for key in metrics["metric"] if key.startswith("auc/")} == {"auc/gender/gender"}
        config = load_config(EliminatorsConfig, f"{searched.uri}/best-config.yaml", [])
        assert (config.combinations, config.backbone) == ("gender", backbone.uri)
        assert config.adversary.weight == searched.best.params["adversary.weight"]
        assert len(searched.fresh) == 1

    def test_the_first_trial_starts_from_base_and_the_choice_is_pareto_optimal(self, searched):
        usual = EliminatorsConfig(backbone="bb", name="x").adversary.weight
        assert searched.rows[0].params == {"adversary.weight": usual}
        assert searched.best in searched.front

    def test_resume_trains_only_what_is_missing(self, searched, backbone, monkeypatch):
        without_fresh_seeds_and_backbone(monkeypatch)
        Path(searched.uri, "fresh-seeds.json").unlink()
        reported = []
        config = two_trials(backbone, Path(searched.uri).parent)
        again = search_eliminators(config, resume=True, progress=lambda *now: reported.append(now))
        assert reported == [("fresh seeds", 1, 1)]  # and no trial
        assert again.document() == searched.document()

    @pytest.mark.parametrize(
        ("changes", "resume", "problem"),
        [
            ({}, False, "started before: continue it with --resume"),
            ({"combinations": "age"}, True, r"combinations = 'gender' \(now 'age'\): choose another name"),
            ({"min_ndcg_ratio": 0.9}, True, r"min_ndcg_ratio = 0.98 \(now 0.9\)"),
            ({"name": "other"}, True, "no search"),
        ],
    )
    def test_a_name_that_does_not_fit_is_refused_before_any_trial(
        self, searched, backbone, monkeypatch, changes, resume, problem
    ):
        monkeypatch.setattr(eliminators_search, "run_search", None)
        with pytest.raises(UserError, match=problem):
            search_eliminators(two_trials(backbone, Path(searched.uri).parent, **changes), resume)

    def test_too_few_users_are_refused_before_the_name_is_taken(self, searched, backbone, tmp_path):
        base = {"optim": {"validation_users": 20}}
        with pytest.raises(UserError, match=r"raise base\.optim\.validation_users"):
            search_eliminators(two_trials(backbone, tmp_path, base=base))
        assert not list(tmp_path.iterdir())


@pytest.mark.ray
def test_fresh_seeds_are_stored_one_by_one(ray_cluster, backbone, tmp_path, monkeypatch):
    config = two_trials(backbone, tmp_path, confirm=3, trials_at_once=1)
    prepared = PreparedSearch(config, specs_of(), {"seed": "max"}, first=[])
    monkeypatch.setattr(TrialSpecs, "config", lambda self, params: PropensityConfig(lake="l", name="n"))
    monkeypatch.setattr(collect, "RETRIES", 0)

    def trained(specs: TrialSpecs, config: PropensityConfig) -> dict[str, float]:
        seed = config.seed
        if seed == 1003 and not (tmp_path / "1003").exists():
            (tmp_path / "1003").touch()
            raise RuntimeError("the machine is gone")
        (tmp_path / str(seed)).touch(exist_ok=seed == 1003)
        return {"seed": float(seed)}

    monkeypatch.setattr(collect, "_train_to_end", trained)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        train_with_fresh_seeds(prepared, None, {"x": 1})
    figures = train_with_fresh_seeds(prepared, None, {"x": 1})
    assert [one["seed"] for one in figures] == [1001, 1002, 1003]
    assert read_json(f"{tmp_path}/fair/fresh-seeds.json") == {"version": 3, "params": {"x": 1}, "figures": figures}
    with pytest.raises(FileExistsError):  # other parameters have no figures yet
        train_with_fresh_seeds(prepared, None, {"x": 2})

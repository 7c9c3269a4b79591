"""The jobs as Python functions: cheap to import, the settings and errors of the commands, one Ray session for all."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mtrec_ray as mt
from mtrec_ray import api
from mtrec_ray.commands.app import COMMANDS
from mtrec_ray.errors import UserError
from mtrec_ray.jobs.config import EvaluateConfig
from mtrec_ray.jobs.runs import ListRunsConfig


def test_the_import_is_fast_and_loads_nothing_heavy():
    program = (
        "import sys, time; start = time.process_time(); import mtrec_ray\n"
        "print(time.process_time() - start, len({'torch', 'ray', 'pandas', 'pydantic', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    seconds, num_heavy = done.stdout.split()
    assert float(seconds) < 0.2
    assert num_heavy == "0"


def test_every_command_is_a_documented_function():
    assert {command.job.__name__ for command in COMMANDS.values()} == set(api.CONFIGS) <= set(dir(mt))
    for name in api.CONFIGS:
        function = getattr(mt, name)
        assert f">>> mt.{name}(" in str(inspect.getdoc(function)), name
        parameters = inspect.signature(function).parameters
        assert {"progress", "settings"} <= set(parameters), name
        assert parameters["config"].annotation == f"{api.CONFIGS[name].partition(':')[2]} | None", name
    with pytest.raises(AttributeError, match="'mtrec_ray' has no attribute 'train_all'"):
        mt.train_all  # noqa: B018


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lake": "lake"}, "^setting 'name' is required$"),
        ({"lake": "lake", "name": "a", "optim": {"epoch": 1}}, "did you mean 'optim.epochs'"),
        ({"lake": "nowhere", "name": "a"}, "no lake at '.*nowhere'"),
    ],
)
def test_mistakes_are_those_of_the_commands(settings, message):
    with pytest.raises(UserError, match=message):
        mt.train_propensity(**settings)


def test_a_job_takes_its_config_or_settings(tmp_path, capsys):
    assert mt.list_runs(ListRunsConfig(runs=str(tmp_path))).document() == mt.list_runs(runs=str(tmp_path)).document()
    wrong: Any = EvaluateConfig(runs=["a"])
    for given in ({"config": wrong}, {"config": ListRunsConfig(), "runs": "runs"}):
        with pytest.raises(TypeError, match="list_runs takes one ListRunsConfig, or keyword settings"):
            mt.list_runs(**given)


def test_arguments_that_are_no_settings_and_progress_reach_the_job(monkeypatch):
    seen = []
    monkeypatch.setattr("mtrec_ray.tuning.propensity_search.search_propensity", lambda *a, **k: seen.append((a, k)))
    search = {"lake": "lake", "name": "s", "space": {"optim.lr": [1e-3]}}
    mt.search_propensity(**search, resume=True)
    mt.search_propensity(**search, progress=print)
    assert [keywords for _, keywords in seen] == [{"resume": True, "progress": None}, {"progress": print}]
    assert seen[0][0] == seen[1][0]


def test_the_source_decides_which_settings_a_build_has():
    with pytest.raises(UserError, match=r"unknown setting 'source.users'"):
        mt.build_lake(dataset="movielens", source={"users": 3}, out="lake")
    with pytest.raises(UserError, match="unknown source 'netflix': there are synthetic"):
        mt.build_lake(dataset="netflix")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_from_raw_data_to_a_bundle(tmp_path: Path):
    """As in a notebook: every step reads what the one before wrote, and shows its figures."""
    lake, runs = str(tmp_path / "lake"), str(tmp_path / "runs")
    source = {"users": 300, "territories": 4, "titles": 30, "events_per_user": 30.0, "num_evaluation_days": 1}
    stages = []
    built = mt.build_lake(
        dataset="synthetic",
        out=lake,
        source=source | {"user_width": 8, "title_width": 8},
        build={"num_buckets": 2},
        progress=lambda stage, *counts: stages.append(stage),
    )
    assert len(built.metrics) > 0
    assert stages

    run = mt.train_propensity(lake=lake, runs=runs, name="mtl", kind="mtl", model={"d": 8}, optim={"epochs": 1})
    assert len(run.metrics) > 0
    evaluation = mt.evaluate(runs=[f"{runs}/mtl"], out=str(tmp_path / "report"), num_bootstrap=10, num_titles=2)
    assert len(evaluation.metrics) > 2 * 4  # of the run and of popularity, in four territories
    assert evaluation.document()["version"] == 1

    short = {"epochs": 1, "evaluate_every": 1, "lanes": 2}
    mt.train_backbone(lake=lake, runs=runs, name="bb", model={"width": 8, "history": 10}, optim=short)
    eliminators = mt.train_eliminators(
        backbone=f"{runs}/bb",
        runs=runs,
        name="el",
        combinations="gender",
        transport={"passes": 2, "later_passes": 1},
        optim=short,
    )
    assert len(eliminators.metrics) > 0
    audited = mt.audit(
        run=f"{runs}/el",
        out=str(tmp_path / "audit"),
        lists=False,
        num_folds=3,
        num_permutations=2,
    )
    assert len(audited.metrics) > 0
    bundle = mt.make_bundle(
        run=f"{runs}/el",
        audit=str(tmp_path / "audit"),
        propensity=f"{runs}/mtl",
        evaluation=str(tmp_path / "report"),
        out=str(tmp_path / "bundle"),
    )
    assert (tmp_path / "bundle" / "manifest.json").exists()
    assert bundle.tables()
    assert api.list_runs(runs=runs).document()["version"] == 1

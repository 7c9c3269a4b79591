"""Small synthetic lakes, built in this process: no test here needs a cluster."""

from pathlib import Path
from typing import Any

import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.lake import build
from mtrec_ray.lake.build import build_lake
from mtrec_ray.lake.config import BuildOptions
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.sources.source import make_source
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.backbone_run import BackboneRecord
from mtrec_ray.tuning.config import EliminatorsSearchConfig
from mtrec_ray.tuning.propensity_trial import PropensityTrial
from mtrec_ray.tuning.space import Space, TrialSpecs
from tests.jobs.untrained import write_backbone


def build_here(folder: Path, num_buckets: int, **settings: Any) -> Lake:
    """A synthetic lake, its buckets one after another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "map_tasks", LocalReader().map)
        build_lake(make_source("synthetic", settings), str(folder), BuildOptions(num_buckets=num_buckets))
    return Lake.open(str(folder))


@pytest.fixture(scope="session")
def trial_lake(tmp_path_factory) -> Lake:
    """Six territories that a trial goes through in a second; 60 days and two days after them."""
    size = {"users": 1600, "territories": 6, "titles": 60, "days": 60, "num_evaluation_days": 2}
    return build_here(tmp_path_factory.mktemp("trials") / "lake", num_buckets=4, user_width=16, title_width=16, **size)


def merged(document: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The document with settings; sections are merged."""
    sections = {key: document.get(key, {}) | value for key, value in settings.items() if isinstance(value, dict)}
    return document | settings | sections


def small_config(lake: Lake, **settings: Any) -> PropensityConfig:
    """Settings of a run of about twenty steps on `trial_lake`."""
    document = {
        "lake": lake.uri,
        "name": "small",
        "model": {"d": 16},
        "sample": {"validation_fraction": 0.2, "alpha": 4.0},
        "optim": {"epochs": 2, "batch_pairs": 2048, "lanes": 2},
    }
    return validate_config(PropensityConfig, merged(document, settings))


@pytest.fixture(scope="session")
def fair_lake(tmp_path_factory) -> Lake:
    folder = tmp_path_factory.mktemp("fair") / "lake"
    return build_here(folder, num_buckets=2, users=500, territories=4, titles=60, events_per_user=40.0)


@pytest.fixture(scope="session")
def backbone(fair_lake, tmp_path_factory) -> BackboneRecord:
    """A backbone as it is before training: what it knows does not matter here."""
    runs = tmp_path_factory.mktemp("runs")
    return write_backbone(fair_lake, runs, name="bb", model={"width": 16, "history": 10})


def fair_search(backbone: BackboneRecord, **changes: Any) -> EliminatorsSearchConfig:
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
    }
    return validate_config(EliminatorsSearchConfig, document | changes)


def specs_of(space: Space | None = None, **changes: Any) -> TrialSpecs:
    """TrialSpecs of a propensity search without settings of its own."""
    fields: dict[str, Any] = {"base": {}, "trial_overrides": {}, "arguments": {}} | changes
    return TrialSpecs(trial=PropensityTrial, model=PropensityConfig, space=space or Space(), **fields)

"""A synthetic lake with planted tastes, built once, and the settings of a run of some seconds."""

from typing import Any

import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.fit import train_propensity
from mtrec_ray.training.propensity_run import PropensityRecord
from tests.training.one_worker import OneWorker
from tests.tuning.conftest import build_here, merged

SYNTHETIC = {
    "users": 6000,
    "territories": 8,
    "titles": 120,
    "user_width": 32,
    "title_width": 32,
    "evaluation_boost": 8.0,
    "num_evaluation_days": 2,
}


@pytest.fixture(scope="session")
def planted_lake(tmp_path_factory) -> str:
    return build_here(tmp_path_factory.mktemp("planted") / "lake", 8, **SYNTHETIC).uri


def run_config(lake: str, runs: str, name: str, **settings: Any) -> PropensityConfig:
    document = {
        "lake": lake,
        "runs": runs,
        "name": name,
        "incremental": True,
        "model": {"d": 32},
        "sample": {"random_fraction": 0.7, "active_fraction": 0.3, "alpha": 4.0},
        "optim": {"epochs": 6, "batch_pairs": 2048, "lanes": 4, "lr": 2e-3},
    }
    return validate_config(PropensityConfig, merged(document, settings))


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def straight(planted_lake, runs, tmp_path_factory) -> PropensityRecord:
    """A multi-task run that nobody disturbed, trained in this process."""
    with pytest.MonkeyPatch.context() as patch:
        OneWorker(patch, tmp_path_factory.mktemp("straight"))
        return train_propensity(run_config(planted_lake, runs, "straight"))

"""What is planted in a synthetic lake is found: each group has a taste of its own, and group blocks learn it."""

import numpy as np
import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.jobs.evaluate import evaluate_propensity
from mtrec_ray.jobs.evaluate_config import EvaluateConfig
from mtrec_ray.jobs.report import make_report
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.training.propensity import train_propensity
from tests.training.conftest import run_config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(600)]


def test_the_multi_task_model_beats_the_baseline_in_every_group(straight, planted_lake, runs):
    baseline = train_propensity(run_config(planted_lake, runs, "baseline", kind="baseline"))
    settings = {"runs": [baseline.uri, straight.uri], "num_bootstrap": 50, "references": False}
    report = make_report(evaluate_propensity(validate_config(EvaluateConfig, settings)))
    gains = report.intervals("pr_auc", "straight", gain=True)
    territories = Lake.open(planted_lake).manifest.territories
    for region in {territory.region for territory in territories}:
        assert np.nanmean([gains[t.name].value for t in territories if t.region == region]) > 0, region
    assert gains["all"].low > 10

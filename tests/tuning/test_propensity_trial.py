"""A propensity trial: weights equal to a run's, scores of validation users only."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.lake.manifest import Lake
from mtrec_ray.streams.groups import training_volume
from mtrec_ray.streams.ordered import LocalReader
from mtrec_ray.streams.plan import make_plan
from mtrec_ray.streams.reader import training_batches
from mtrec_ray.streams.sampling import VALIDATION, split_of
from mtrec_ray.streams.scored_users import ScoringChunk
from mtrec_ray.trainers.propensity import METRICS, PropensityScorer, PropensityTrainer, summarise
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import new_propensity_run
from mtrec_ray.tuning.config import PropensitySearchConfig
from mtrec_ray.tuning.data import Figures, TrialCache, trial_data
from mtrec_ray.tuning.propensity_trial import PropensityTrial
from mtrec_ray.workers import Workers
from tests.tuning.conftest import small_config

TIMES = {"steps_s", "reading_s", "validating_s"}


def trial_of(
    lake: Lake, cache: TrialCache | None = None, config: PropensityConfig | None = None, **changes: Any
) -> PropensityTrial:
    settings = {"name": "s", "lake": lake.uri, "space": {}, "validation_days": 7, "validations": 3} | changes
    lake_hash = settings.pop("lake_hash", lake.manifest.lake_hash)
    search = validate_config(PropensitySearchConfig, settings)
    return PropensityTrial(config or small_config(lake), cache or TrialCache(), Workers(), search, lake_hash)


def finish(trial: PropensityTrial) -> list[Figures]:
    """Figures of the remaining validations, without times."""
    reports = []
    while trial.validations_done < trial.num_validations:
        reports.append({key: value for key, value in trial.advance().items() if key not in TIMES})
    return reports


def assert_same_weights(one: PropensityTrial, other: dict[str, torch.Tensor]) -> None:
    weights = one.trainer.model.state_dict()
    assert weights.keys() == other.keys()
    for name, value in weights.items():
        assert torch.equal(value, other[name]), name


def test_each_validation_reports_metrics_with_bounds_and_times(trial_lake):
    trial = trial_of(trial_lake)
    reports = [trial.advance() for _ in range(3)]
    for figures in reports:
        assert set(figures) == {*METRICS, "train/loss", *TIMES}
        assert all(figures[key]["value"] >= 0 for key in TIMES)
        for key in METRICS:
            assert 0 <= figures[key]["low"] <= figures[key]["value"] <= figures[key]["high"] <= 1
    assert reports[-1]["train/loss"]["value"] < reports[0]["train/loss"]["value"]
    assert trial.trainer.next_step == trial.schedule.num_steps


@pytest.mark.parametrize("days", [7, 0])
def test_only_validation_users_are_scored(trial_lake, days, monkeypatch):
    scored, score = [], PropensityScorer.score

    def recorded(self: PropensityScorer, chunk: ScoringChunk) -> np.ndarray:
        scored.append(chunk.keys)
        return score(self, chunk)

    monkeypatch.setattr(PropensityScorer, "score", recorded)
    trial = trial_of(trial_lake, validations=1, validation_days=days)
    finish(trial)
    keys = np.concatenate(scored)
    assert (split_of(keys, trial.config.sample) == VALIDATION).all()
    assert len(np.unique(keys)) == len(keys) > 200


def test_resume_from_a_checkpoint_equals_a_straight_run(trial_lake, tmp_path):
    straight, stopped = trial_of(trial_lake), trial_of(trial_lake)
    reports = finish(straight)
    stopped.advance()
    stopped.save(tmp_path)
    resumed = trial_of(trial_lake)
    resumed.load(tmp_path)
    assert resumed.validations_done == 1
    assert finish(resumed) == reports[1:]
    assert_same_weights(resumed, straight.trainer.model.state_dict())


def test_a_trial_with_more_validations_than_steps_resumes(trial_lake, tmp_path):
    config = small_config(trial_lake, optim={"epochs": 1, "batch_pairs": 10_000})
    validations, trial = 7, trial_of(trial_lake, config=config, validations=7)
    assert trial.schedule.num_steps < validations
    for done in range(1, validations):
        trial.advance()
        trial.save(tmp_path)
        resumed = trial_of(trial_lake, trial.cache, config, validations=7)
        resumed.load(tmp_path)
        assert resumed.validations_done == done


def test_a_shared_cache_does_not_change_figures(trial_lake):
    cache = TrialCache()
    together = [finish(trial_of(trial_lake, cache)) for _ in range(2)]
    assert together[0] == together[1] == finish(trial_of(trial_lake))


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "baseline", "model": {"territory_input": "region"}},
        {"model": {"group_block": "hierarchical", "groups": "each"}},
        {"model": {"groups": "regions:3"}},
    ],
)
def test_the_final_weights_equal_those_of_a_run(trial_lake, changes):
    config = small_config(trial_lake, **changes)
    trial = trial_of(trial_lake, config=config)
    finish(trial)
    data = trial_data(trial_lake, config.window.resolve(trial_lake.manifest.calendar), None, 7)
    volume = partial(training_volume, data.lake, config.sample, data.calendar, reader=LocalReader())
    record = new_propensity_run(config, data.lake, data.calendar, volume)
    assert record.groups.of_territory == trial.trainer.group_of_territory.tolist()
    if config.model.group_block == "hierarchical":
        assert record.model.discoveries == tuple(volume().tolist())
    plan, prior = make_plan(data.lake, config.sample, data.calendar, reader=LocalReader())
    schedule = record.schedule(plan)
    trainer = PropensityTrainer(config, record.data(data.lake, plan, schedule, Workers(), prior))
    trainer.run(training_batches(data.lake, plan, schedule, 0, 1, reader=LocalReader(), prior=prior))
    assert_same_weights(trial, trainer.model.state_dict())
    left = 1 - schedule.period_progress(schedule.num_steps - 1)
    assert 0 < left < 0.5
    for group in trial.trainer.optimizer.param_groups:
        assert group["lr"] == pytest.approx(left * group["first_lr"])


def test_a_changed_lake_is_refused(trial_lake):
    with pytest.raises(UserError, match="has changed since run 'small' was started"):
        trial_of(trial_lake, lake_hash="0" * 16)


def test_metrics_are_named_by_measure_and_mean():
    metrics = {"pr_auc": np.array([[0.1], [0.3], [0.5]]), "ndcg@10": np.array([[0.2], [0.8], [0.9]])}
    result = SimpleNamespace(metrics=metrics, counts={"num_positives": np.array([30, 10, 40])})
    found = summarise(result)  # pyright: ignore[reportArgumentType]
    assert {key: found[key] for key in METRICS} == pytest.approx(
        {
            "pr_auc/all": 0.5,
            "pr_auc/mean": 0.2,
            "pr_auc/weighted": 0.15,
            "ndcg@10/all": 0.9,
            "ndcg@10/mean": 0.5,
            "ndcg@10/weighted": 0.35,
        }
    )


def test_a_prior_raises_accuracy_on_validation_users(trial_lake):
    found = {}
    for prior in (True, False):
        config = small_config(trial_lake, model={"d": 16, "prior": prior})
        trial = trial_of(trial_lake, config=config, validations=1)
        found[prior] = finish(trial)[0]["pr_auc/mean"]["value"]
        assert (trial.trainer.model.title_prior is not None) == prior
    assert found[True] > found[False]

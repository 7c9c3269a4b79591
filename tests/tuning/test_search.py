"""Early stopping of weak trials but not of unmoved partitions, and the progress of trials."""

import json
import pickle
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.utils import flatten_dict

from mtrec_ray.tuning.config import SearchConfig
from mtrec_ray.tuning.search import PROGRESS, PreparedSearch, TrialProgress, make_scheduler
from mtrec_ray.tuning.space import GROUPS
from tests.tuning.conftest import specs_of

PARTITIONS = [{"optim.lr": 1e-3, GROUPS: name, "moves": 0} for name in ("one", "regions")]


def scheduler(num_validations: int = 4) -> Any:
    config = SearchConfig(name="s", space={})
    return make_scheduler(PreparedSearch(config, specs_of(), {"pr_auc": "max"}, PARTITIONS, (), num_validations))


def report_of(validation: int, value: float) -> dict[str, Any]:
    return {"training_iteration": validation, "figures": {"pr_auc": {"value": value}}, "done": False}


def trial_of(name: int | str, config: dict[str, Any], **state: Any) -> Any:
    return SimpleNamespace(trial_id=str(name), config=config, status="", **{"last_result": {}} | state)


def decision(config: dict[str, Any], value: float) -> str:
    """ASHA's decision on a trial at its first validation, after six strong ones."""
    made = scheduler()
    for number in range(7):
        own, reported = (config, value) if number == 6 else ({"optim.lr": 0.1}, 0.9)
        trial = trial_of(number, own)
        made.on_trial_add(None, trial)
        decided = made.on_trial_result(None, trial, flatten_dict(report_of(1, reported)))
    return decided


@pytest.mark.parametrize("params", PARTITIONS)
def test_a_weak_unmoved_partition_continues(params):
    assert decision(params, 0.1) == ASHAScheduler.CONTINUE


@pytest.mark.parametrize("change", [{"moves": 1}, {"optim.lr": 3e-3}, {GROUPS: "taste:4"}])
def test_a_weak_trial_with_moves_or_other_settings_stops(change):
    assert decision(PARTITIONS[0] | change, 0.1) == ASHAScheduler.STOP
    assert decision(PARTITIONS[0] | change, 0.95) == ASHAScheduler.CONTINUE


def test_a_diverged_trial_decides_nothing_for_others(recwarn):
    made, failed = scheduler(), report_of(1, float("nan")) | {"failed": "training diverged", "done": True}
    for number in range(7):
        trial, report = trial_of(number, {"optim.lr": 0.1}), failed if number < 3 else report_of(1, 0.1 * number)
        made.on_trial_add(None, trial)
        decided = made.on_trial_result(None, trial, flatten_dict(report))
        if number < 3:
            made.on_trial_complete(None, trial, flatten_dict(report))
    assert decided == ASHAScheduler.CONTINUE
    assert not recwarn.list


def test_with_one_validation_no_trial_is_stopped():
    assert type(scheduler(num_validations=1)) is FIFOScheduler


def test_a_resumed_search_stops_trials_by_earlier_reports(tmp_path):
    made = scheduler()
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        reports = [report_of(n, 0.75 + n / 16) for n in (1, 2, 3)]
        lines = "".join(json.dumps(report) + "\n" for report in reports)
        (folder / "result.json").write_text(lines + '{"training_iter')  # killed while it wrote
        storage = SimpleNamespace(storage_filesystem=pafs.LocalFileSystem(), trial_fs_path=str(folder))
        made.on_trial_add(None, trial_of(number, {}, last_result={"training_iteration": 2}, storage=storage))
    (bracket,) = made._brackets
    rungs = {milestone: set(recorded.values()) for milestone, recorded in bracket._rungs}
    assert rungs == {4: set(), 2: {0.875}, 1: {0.8125}}  # the stored state does not count the third report
    new = trial_of("new", {"optim.lr": 0.1})
    made.on_trial_add(None, new)
    assert made.on_trial_result(None, new, flatten_dict(report_of(1, 0.8))) == ASHAScheduler.STOP


def test_progress_of_a_resumed_search_counts_trials_that_ended_before():
    stored = pickle.loads(pickle.dumps(TrialProgress(total=5)))
    trials = [trial_of(n, {}, is_finished=lambda n=n: n < 2) for n in range(5)]
    reported = []
    token = PROGRESS.set(lambda *now: reported.append(now))
    stored.on_trial_complete(0, trials, trials[3])
    stored.on_trial_error(0, trials, trials[4])
    PROGRESS.reset(token)
    assert reported == [("trials", 3, 5)] * 2

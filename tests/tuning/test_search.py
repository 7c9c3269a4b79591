"""Early stopping: weak trials end at a look, candidate partitions as they are do not. What is shown of the trials."""

import json
import pickle
from types import SimpleNamespace
from typing import Any

import pyarrow.fs as pafs
import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

from mtrec_ray.tuning.search import SHOWN, Goal, Prepared, _Progress, _scheduler
from mtrec_ray.tuning.space import GROUPS, Space

CANDIDATES = [{"optim.lr": 1e-3, GROUPS: name, "moves": 0} for name in ("one", "regions")]


def scheduler(**changes: Any) -> Any:
    settings = {"num_validations": 4, "reduction_factor": 2, "first": CANDIDATES} | changes
    return _scheduler(Prepared(Space(), (Goal("pr_auc/all", "max"),), lambda params: params, **settings))


def decision(config: dict[str, Any], value: float, **changes: Any) -> str:
    """What a trial is told at its first look after six strong ones."""
    made = scheduler(**changes)
    for number in range(7):
        own = config if number == 6 else {"optim.lr": 0.1}
        trial = SimpleNamespace(trial_id=str(number), config=own, status="", last_result={})
        made.on_trial_add(None, trial)
        report = {"training_iteration": 1, "pr_auc/all": value if number == 6 else 0.9, "done": False}
        told = made.on_trial_result(None, trial, report)
    return told


@pytest.mark.parametrize("candidate", CANDIDATES)
def test_a_weak_candidate_partition_goes_to_its_end(candidate):
    assert decision(candidate, 0.1) == ASHAScheduler.CONTINUE


@pytest.mark.parametrize("change", [{"moves": 1}, {"optim.lr": 3e-3}, {GROUPS: "taste:4"}])
def test_a_weak_trial_that_is_no_candidate_as_it_is_ends(change):
    assert decision(CANDIDATES[0] | change, 0.1) == ASHAScheduler.STOP
    assert decision(CANDIDATES[0] | change, 0.95) == ASHAScheduler.CONTINUE


def test_without_early_stopping_or_looks_every_trial_goes_to_its_end():
    assert type(scheduler(reduction_factor=None)) is FIFOScheduler
    assert type(scheduler(num_validations=1)) is FIFOScheduler


def test_a_resumed_search_stops_by_what_its_trials_reported_before(tmp_path):
    made = scheduler()
    for number in range(6):
        folder = tmp_path / str(number)
        folder.mkdir()
        looks = [{"training_iteration": look, "pr_auc/all": 0.75 + look / 16} for look in (1, 2, 3)]
        whole = "".join(json.dumps(look) + "\n" for look in looks)
        (folder / "result.json").write_text(whole + '{"training_iter')  # killed while it wrote
        storage = SimpleNamespace(storage_filesystem=pafs.LocalFileSystem(), trial_fs_path=str(folder))
        trial = SimpleNamespace(
            trial_id=str(number), config={}, status="", last_result={"training_iteration": 2}, storage=storage
        )
        made.on_trial_add(None, trial)
    (bracket,) = made._brackets
    rungs = {milestone: set(recorded.values()) for milestone, recorded in bracket._rungs}
    assert rungs == {
        4: set(),
        2: {0.875},
        1: {0.8125},
    }  # the third look is not known to the stored state: it comes again
    new = SimpleNamespace(trial_id="new", config={"optim.lr": 0.1}, status="", last_result={})
    made.on_trial_add(None, new)
    report = {"training_iteration": 1, "pr_auc/all": 0.8, "done": False}
    assert made.on_trial_result(None, new, report) == ASHAScheduler.STOP


def test_a_resumed_search_shows_how_many_trials_ended_before():
    stored = pickle.loads(pickle.dumps(_Progress(total=5)))
    trials = [SimpleNamespace(trial_id=str(n), config={}, is_finished=lambda n=n: n < 2) for n in range(5)]
    shown = []
    token = SHOWN.set(lambda *now: shown.append(now))
    stored.on_trial_complete(0, trials, trials[3])
    stored.on_trial_error(0, trials, trials[4])
    SHOWN.reset(token)
    assert shown == [("trials", 3, 5)] * 2

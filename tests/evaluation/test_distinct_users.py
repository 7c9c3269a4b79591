"""No interval rests on a handful of users: simulated markets of two models that are equally good."""

import numpy as np

from mtrec_ray.evaluation.distinct_users import MIN_USERS
from mtrec_ray.evaluation.intervals import interval, relative_gain
from mtrec_ray.evaluation.popularity_bias import DayTitles, TitleHistory
from mtrec_ray.evaluation.report import EvaluatedRun, EvaluationReport
from mtrec_ray.evaluation.state import EvaluationSettings, EvaluationState

NUM_TITLES = 8
SETTINGS = EvaluationSettings(num_territories=1, num_titles=NUM_TITLES, num_bootstrap=80)
DAY_TITLES = DayTitles.of(
    TitleHistory(np.ones((1, NUM_TITLES), np.int64), np.zeros(NUM_TITLES, bool)), np.ones((1, NUM_TITLES), bool)
)


def market(rng: np.random.Generator, num_users: int) -> EvaluationReport:
    """About a quarter of the users have positives; both models see tastes through as much noise, so gain nothing."""
    taste = rng.normal(0, 1, (num_users, NUM_TITLES))
    labels = rng.random(taste.shape) < 0.02 * np.exp(taste + rng.normal(0, 1, (num_users, 1)))
    keys, runs = rng.integers(0, 2**63, num_users).astype(np.uint64), []
    for variant in ("a", "b"):
        state = EvaluationState(SETTINGS, DAY_TITLES)
        logits = (taste + rng.normal(0, 1, taste.shape)).astype(np.float32)
        state.add(0, keys, logits, labels, labels | True, np.arange(NUM_TITLES))
        runs.append(EvaluatedRun(variant, {(1, "held_out"): state.summarise()}))
    return EvaluationReport(runs, ["XX"], [])


def test_few_positive_users_have_no_interval_where_the_bootstrap_would_miss_the_truth():
    rng, covered, seen = np.random.default_rng(0), 0, 0
    while seen < 60:
        report = market(rng, 5)
        if not 0 < report.num_users("pr_auc")["XX"] <= 2:
            continue
        seen += 1
        for name in ("XX", "all", "mean"):
            for metric in ("pr_auc", "ndcg@10"):
                gain = report.intervals(metric, "b", over="a")[name]
                assert np.isfinite(gain.value)
                assert np.isnan([gain.low, gain.high]).all()
                assert not gain.significant
        base, run = (one.results[1, "held_out"].metrics["pr_auc"][0] for one in report.runs)
        bootstrap = interval(relative_gain(run, base))
        covered += bootstrap.low <= 0 <= bootstrap.high
    assert covered / seen < 0.7


def test_many_positive_users_have_intervals_that_cover_the_truth():
    rng, covered, seen = np.random.default_rng(1), 0, 120
    for _ in range(seen):
        report = market(rng, 160)
        assert report.num_users("pr_auc")["XX"] == MIN_USERS
        gain = report.intervals("pr_auc", "b", over="a")["XX"]
        covered += gain.low <= 0 <= gain.high
    assert 0.86 <= covered / seen <= 1.0  # 92% expected, standard deviation 2.5%

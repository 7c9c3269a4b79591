"""Variants of runs, titles of the case study, and the scores of figure 2."""

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from mtrec_ray.config import validate_config
from mtrec_ray.evaluation.score_counts import GRID
from mtrec_ray.jobs.day_positives import comparable_titles
from mtrec_ray.jobs.report import score_histogram, variant_names
from mtrec_ray.models.two_tower import TwoTowerConfig
from mtrec_ray.streams.groups import Groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import PropensityRecord


def record(name: str, seed: int = 0, **settings) -> PropensityRecord:
    config = validate_config(PropensityConfig, {"lake": "lake", "name": name, "seed": seed} | settings)
    groups, rates = Groups(names=["all"], of_territory=[0]), (1e-3, 1e-3, 1e-3)
    trained: dict[str, Any] = {"groups": groups, "model": TwoTowerConfig(4, 4), "learning_rates": rates, "num_steps": 1}
    return PropensityRecord(status="done", config=config, lake_hash="", **trained)


@pytest.mark.parametrize("names", [("a-s0", "a-s1"), ("a_seed0", "a_seed12"), ("a.7", "a.8"), ("a-3", "a")])
def test_seed_suffixes_are_left_out(names):
    assert variant_names([record(name, seed) for seed, name in enumerate(names)]) == ["a", "a"]


BASE: dict[str, Any] = {"kind": "baseline"}


@pytest.mark.parametrize(
    ("names", "settings", "variants"),
    [
        (["mtl-s0", "mtl-s1", "base-s0", "base-s1"], [{}, {}, BASE, BASE], ["mtl", "mtl", "base", "base"]),
        (["mtl-s0", "base", "paper2"], [{}, BASE, {"optim": {"lr": 1.0}}], ["mtl", "base", "paper2"]),
        (
            ["r-s0", "r-s1", "r-s2"],
            [{"sample": {"seed": 0}}, {"sample": {"seed": 1}}, {"sample": {"seed": 2}}],
            ["r"] * 3,
        ),
        (["r-s0", "r-s1", "r-s2"], [{}, {"runner": {"workers": 2}}, {"runs": "elsewhere"}], ["r"] * 3),
        (
            ["a-s0", "a-s1", "a-s2"],
            [{}, {"optim": {"lr": 1.0}}, {"sample": {"split_seed": 1}}],
            ["a-s0", "a-s1", "a-s2"],
        ),
    ],
    ids=["two variants", "single runs", "seed of the sample", "runner and folder", "any other setting"],
)
def test_variants_differ_in_more_than_seeds_runner_and_folder(names, settings, variants):
    seeds = [int(name[-1]) if "-s" in name else 0 for name in names]
    assert (
        variant_names([record(n, seed, **own) for n, seed, own in zip(names, seeds, settings, strict=True)]) == variants
    )


def test_variants_have_distinct_names():
    records = [record("run-1", 1), record("run-2", 2), record("run", 1, optim={"lr": 1.0})]
    names = variant_names(records)
    assert names[0] == names[1] != names[2]


LOCAL = np.array([True, True, False, False, False, True])
POSITIVES = np.array([[4, 0, 90, 30, 3, 0], [0, 0, 95, 90, 60, 50]])


@pytest.mark.parametrize(
    ("positives", "count", "expected"),
    [
        (POSITIVES, 4, (1, (4, 5))),
        (POSITIVES[:1], 4, (0, (0, 4))),
        (np.array([[40, 20, 60, 45, 5, 0]]), 6, (0, (0, 1, 3, 4))),
        (np.array([[40, 20, 60, 45, 5, 0]]), 3, (0, (0, 3))),
        (POSITIVES * ~LOCAL, 4, (None, ())),
        (POSITIVES * LOCAL, 4, (None, ())),
        (POSITIVES, 0, (None, ())),
        (POSITIVES * 0, 4, (None, ())),
    ],
    ids=["territory of most local positives", "one", "two pairs", "odd", "no local", "no global", "none", "nothing"],
)
def test_comparable_titles_are_local_ones_and_the_global_ones_with_nearest_positives(positives, count, expected):
    assert comparable_titles(positives, LOCAL, count) == expected


def test_scores_are_counted_by_probability():
    """Half of the users at a logit of about -2 (0.12), half at 0 (0.5); one in 2,000 at 4 stretches no scale."""
    users, edges = np.zeros(1024), GRID.edges()
    for logit, count in ((-2.0, 1000), (0.0, 999), (4.0, 1)):
        users[np.searchsorted(edges, logit, side="right") - 1] = count
    table: Any = score_histogram({"baseline": users, "mtl": 2 * users})
    for variant, scale in (("baseline", 1), ("mtl", 2)):
        rows = table[(table["variant"] == variant) & (table["users"] > 0)]
        assert rows["users"].tolist() == [scale * 1000, scale * 1000]
        low, high = rows["low"].tolist(), rows["high"].tolist()
        assert low[0] < expit(-2.0) < high[0]
        assert high[1] == pytest.approx(0.5, abs=0.01)
    assert table["low"].min() == 0
    assert np.allclose(table["low"].to_numpy()[1:40], table["high"].to_numpy()[:39])

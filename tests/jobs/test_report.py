"""Runs that differ in nothing but the seed are one variant."""

import pytest

from mtrec_ray.config import validate_config
from mtrec_ray.jobs.report import variant_names
from mtrec_ray.streams.groups import Groups
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.training.propensity_run import PropensityRecord


def record(name: str, seed: int = 0, **settings) -> PropensityRecord:
    config = validate_config(PropensityConfig, {"lake": "lake", "name": name, "seed": seed} | settings)
    groups = Groups(names=["all"], of_territory=[0])
    return PropensityRecord(
        status="done",
        config=config,
        lake_hash="",
        groups=groups,
        model={},
        learning_rates=(1e-3, 1e-3, 1e-3),
        num_steps=1,
    )


def test_a_single_run_keeps_its_name_without_the_seed():
    assert variant_names([record("mtl-s0"), record("base", kind="baseline")]) == ["mtl", "base"]


def test_seeds_are_grouped_under_the_common_name():
    names = ["mtl-s0", "mtl-s1", "base-s0", "base-s1"]
    records = [record(n, int(n[-1]), kind="baseline" if "base" in n else "mtl") for n in names]
    assert variant_names(records) == ["mtl", "mtl", "base", "base"]


@pytest.mark.parametrize("names", [("a-s0", "a-s1"), ("a_seed0", "a_seed12"), ("a.7", "a.8"), ("a-3", "a")])
def test_endings_that_tell_the_seed_are_left_out(names):
    assert variant_names([record(name, seed) for seed, name in enumerate(names)]) == ["a", "a"]


def test_a_digit_that_belongs_to_the_name_stays():
    assert variant_names([record("paper2")]) == ["paper2"]


def test_the_sample_may_differ_in_its_seed_and_the_runner_in_everything():
    records = [
        record("run-s0", 0, sample={"seed": 0}),
        record("run-s1", 1, sample={"seed": 1}, runner={"workers": 2}),
        record("run-s2", 2, sample={"seed": 2}, runs="elsewhere"),
    ]
    assert variant_names(records) == ["run"] * 3


def test_any_other_setting_makes_another_variant():
    records = [record("a-s0", 0), record("a-s1", 1, optim={"lr": 1.0}), record("a-s2", 2, sample={"split_seed": 1})]
    assert variant_names(records) == ["a-s0", "a-s1", "a-s2"]


def test_two_variants_never_share_a_name():
    records = [record("run-1", 1), record("run-2", 2), record("run", 1, optim={"lr": 1.0})]
    names = variant_names(records)
    assert names[0] == names[1] != names[2]

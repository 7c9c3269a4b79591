"""Search spaces: errors before any trial, and what Optuna draws fits the config."""

import copy
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning import space as spaces
from mtrec_ray.tuning.propensity_search import DECIDED, FIXED
from mtrec_ray.tuning.space import GROUPS, PartitionSpace, Space, lay_over, moves_of, parse_space, usual_settings
from tests.tuning.conftest import specs_of

BASE = {"lake": "lake", "name": "search", "optim": {"epochs": 2}}
DOCUMENT = {
    "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "optim.epochs": {"low": 1, "high": 5},
    "sample.tau": {"low": 0, "high": 1, "step": 0.25},
    "model.group_block": ["dense", "hierarchical"],
}


def parse(document: dict[str, Any]) -> Space:
    space, _ = parse_space(document, {}, PropensityConfig, FIXED, DECIDED)
    spaces.check_values(space, PropensityConfig, BASE)
    return space


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ({}, ["space is empty"]),
        ({"optim.rate": [1]}, ["no setting 'optim.rate'"]),
        ({"sample.tau": {"low": 0.5, "high": 0.5}}, ["sample.tau", "0.5", "low must be below high"]),
        ({"sample.tau": {"low": 1, "high": 0}}, ["sample.tau", "low=1, high=0"]),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, ["optim.lr", "low=0", "log=True"]),
        ({"optim.lr": {"low": -1, "high": 1, "log": True}}, ["optim.lr", "low=-1", "log=True"]),
        ({"optim.lr": {"low": 1, "high": 2, "log": True, "step": 0.1}}, ["optim.lr", "step", "log"]),
        ({"optim.lr": {"low": 1e-3}}, ["optim.lr", "high"]),
        ({"optim.lr": {"low": 1e-3, "high": 1, "loog": True}}, ["optim.lr", "loog"]),
        ({"optim.lr": {"low": 1e-3, "high": float("inf")}}, ["optim.lr", "high", "finite"]),
        ({"optim.lr": {"low": "fast", "high": 1}}, ["optim.lr", "fast"]),
        ({"optim.epochs": {"low": 1.5, "high": 3}}, ["optim.epochs", "whole numbers", "1.5"]),
        ({"optim.epochs": {"low": 1, "high": 3, "step": 0.5}}, ["optim.epochs", "whole numbers", "0.5"]),
        ({"optim.epochs": {"low": 0, "high": 3}}, ["'optim.epochs' = 0"]),
        ({"sample.tau": {"low": 0, "high": 2}}, ["'sample.tau' = 2"]),
        ({"model.group_block": ["dense", "cubic"]}, ["'model.group_block' = 'cubic'"]),
        ({"model.group_block": []}, ["model.group_block = []", "list of choices"]),
        ({"model.group_block": "dense"}, ["model.group_block = 'dense'", "list of choices"]),
        ({"model.group_block": {"low": 0, "high": 1}}, ["model.group_block", "list of choices"]),
        ({"seed": [0, 1]}, ["seed", "decided by seed"]),
        ({"window.end": ["2022-01-01"]}, ["window.end", "one for all"]),
        ({"sample.test_fraction": {"low": 0.1, "high": 0.2}}, ["sample.test_fraction", "one for all"]),
        ({GROUPS: {"partitions": []}}, ["model.groups", "partitions"]),
        ({GROUPS: {"partitions": ["one"], "moves": -1}}, ["model.groups", "moves"]),
        ({GROUPS: {"partitions": ["one"], "mobile": 3}}, ["model.groups", "mobile"]),
    ],
)
def test_an_error_names_the_key_and_the_value(document, parts):
    with pytest.raises(UserError) as caught:
        parse(document)
    for part in parts:
        assert part in str(caught.value)


def test_every_key_is_drawn_with_its_own_type():
    fixed = optuna.trial.FixedTrial(
        {"optim.lr": 1e-3, "optim.epochs": 3, "sample.tau": 0.5, "model.group_block": "hierarchical"}
    )
    parse(DOCUMENT).suggest(fixed)  # pyright: ignore[reportArgumentType]
    kinds = {key: type(one).__name__.removesuffix("Distribution") for key, one in fixed.distributions.items()}
    assert list(kinds) == ["optim.lr", "optim.epochs", "sample.tau", "model.group_block"]
    assert list(kinds.values()) == ["Float", "Int", "Float", "Categorical"]
    assert fixed.distributions["optim.lr"].log  # pyright: ignore[reportAttributeAccessIssue]


def test_drawn_values_fit_the_config():
    space, study = parse(DOCUMENT), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        space.suggest(trial)
        config = validate_config(PropensityConfig, specs_of(space, base=BASE).settings(trial.params))
        assert 1e-5 <= (config.optim.lr or 0) <= 1e-2
        assert 1 <= config.optim.epochs <= 5
        assert config.sample.tau in (0, 0.25, 0.5, 0.75, 1)
        study.tell(trial, 0.0)
    assert {trial.params["optim.epochs"] for trial in study.trials} == {1, 2, 3, 4, 5}


def test_partitions_are_drawn_with_their_moves():
    space = Space(partitions=("one", "regions"), movable=("a", "b", "c"), moves=2)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    numbers = set()
    for _ in range(30):
        trial = study.ask()
        space.suggest(trial)
        moves = moves_of(trial.params)
        assert len(moves) == trial.params["moves"]
        assert {name for move in moves for name in move} <= {"a", "b", "c"}
        assert trial.params["model.groups"] in ("one", "regions")
        assert specs_of(space).settings(trial.params) == {}
        numbers.add(len(moves))
        study.tell(trial, 0.0)
    assert numbers == {0, 1, 2}


def test_moves_are_in_turn_and_at_most_their_number():
    params = {"model.groups": "one", "moves": 2, "move.1": "a", "move.1.joins": "b", "move.2": "c", "move.2.joins": "a"}
    assert moves_of(params) == [("a", "b"), ("c", "a")]
    assert moves_of(params | {"moves": 1}) == [("a", "b")]
    assert moves_of({"model.groups": "one"}) == []


def test_usual_settings_are_from_base_or_the_middle_of_the_range():
    space = parse(DOCUMENT)
    assert usual_settings(space, PropensityConfig, BASE) == {
        "optim.lr": pytest.approx((1e-5 * 1e-2) ** 0.5),  # null in base
        "optim.epochs": 2,
        "sample.tau": 1.0,
        "model.group_block": "dense",
    }
    outside = lay_over(BASE, {"optim.lr": 5e-4, "optim.epochs": 9, "model.group_block": "hierarchical"})
    usual = usual_settings(parse(DOCUMENT | {"model.group_block": ["dense"]}), PropensityConfig, outside)
    assert usual == {"optim.lr": 5e-4, "optim.epochs": 3, "sample.tau": 1.0, "model.group_block": "dense"}
    assert isinstance(usual["optim.epochs"], int)


@settings(max_examples=100, deadline=None)
@given(
    low=st.integers(0, 90),
    width=st.integers(1, 90),
    step=st.sampled_from([0.01, 0.06, 0.1, 0.3, 0.7]),
    tau=st.integers(0, 100),
)
@example(low=0, width=89, step=0.06, tau=89)  # the nearest step lies beyond the end
@example(low=0, width=30, step=0.1, tau=30)  # three steps of 0.1 are more than 0.3
@pytest.mark.filterwarnings("ignore:.*not divisible by `step`")
def test_usual_values_are_in_the_range(low, width, step, tau):
    assume(low + width <= 100)
    space = Space({"sample.tau": FloatDistribution(low / 100, (low + width) / 100, step=step)})
    usual = usual_settings(space, PropensityConfig, lay_over(BASE, {"sample.tau": tau / 100}))
    assert low / 100 <= usual["sample.tau"] <= (low + width) / 100
    study = optuna.create_study()
    study.enqueue_trial(usual)
    trial = study.ask()
    space.suggest(trial)
    assert trial.params == usual


@pytest.mark.parametrize(
    ("partitions", "random", "num_territories", "num_regions", "names"),
    [
        (
            ["one", "taste:3", "affinity:2", "random:2:0"], 2, 8, 5,
            ["one", "taste:3", "affinity:2", "random:2:0", "random:2:1", "random:3:0", "random:3:1"],
        ),
        (["regions"], 1, 8, 5, ["regions", "random:5:0"]),
        (["each", "taste"], 1, 8, 5, ["each", "taste", "random:4:0"]),
        (["one"], 1, 2, 1, ["one", "random:2:0"]),
        (["one"], 1, 3, 1, ["one", "random:2:0"]),  # not each territory alone
        (["one"], 1, 4, 1, ["one", "random:3:0"]),
    ],
)  # fmt: skip
def test_random_partitions_have_as_many_groups_as_the_named_ones(
    partitions, random, num_territories, num_regions, names
):
    space = PartitionSpace(partitions=partitions, random=random)
    assert list(space.names(num_territories, num_regions, 2)) == names


@pytest.mark.parametrize(
    ("partitions", "num_territories", "problem"),
    [(["volume:9"], 8, "volume:9.*8 territories"), (["one"], 1, r"model\.groups .* only territory .*; drop it")],
)
def test_partitions_that_the_lake_cannot_have_are_refused(partitions, num_territories, problem):
    with pytest.raises(UserError, match=problem):
        PartitionSpace(partitions=partitions).names(num_territories, 1, 2)


def test_partitions_are_not_plain_choices():
    space, groups = parse_space({GROUPS: {"partitions": ["one"]}}, {}, PropensityConfig, FIXED, DECIDED)
    assert (space, groups) == (Space(), PartitionSpace(partitions=["one"]))


def test_lay_over_does_not_change_the_document_and_needs_sections():
    document = {"lake": "lake", "optim": {"lr": 1.0, "epochs": 2}, "model": None}
    before = copy.deepcopy(document)
    found = lay_over(document, {"optim.lr": 2.0, "model.d": 8, "sample.tau": 0.5, "name": "x"})
    assert document == before
    sections = {"optim": {"lr": 2.0, "epochs": 2}, "model": {"d": 8}, "sample": {"tau": 0.5}}
    assert found == {"lake": "lake", "name": "x"} | sections
    with pytest.raises(UserError, match=r"optim\.lr: 'optim' is a plain value"):
        lay_over({"optim": 3}, {"optim.lr": 1.0})


@pytest.mark.parametrize("base", [{"seed": 3}, {"runner": {"cpus_per_worker": 3}}])
def test_a_base_with_what_the_search_decides_is_refused(base):
    with pytest.raises(UserError, match=r"base: (seed|runner\.cpus_per_worker) = 3 has no effect: it is decided by"):
        parse_space(DOCUMENT, base, PropensityConfig, FIXED, DECIDED)


def test_texts_like_1e3_are_numbers():
    """`1e-3` without a point is a text in YAML 1.1."""
    document = yaml.safe_load(
        "{optim.lr: [null, 1e-4, 1e-3], optim.batch_pairs: [1e3, 8192], sample.alpha: [auto, 1e1]}"
    )
    space = parse(document)
    assert {key: one.choices for key, one in space.distributions.items()} == {  # pyright: ignore
        "optim.lr": (None, 1e-4, 1e-3),
        "optim.batch_pairs": (1000, 8192),
        "sample.alpha": ("auto", 10.0),
    }
    text_ends = parse(yaml.safe_load("{optim.lr: {low: 1e-4, high: 1e-3, log: true}}"))
    assert text_ends.distributions == {"optim.lr": FloatDistribution(1e-4, 1e-3, log=True)}
    assert usual_settings(space, PropensityConfig, lay_over(BASE, {"optim.lr": "1e-3"}))["optim.lr"] == 1e-3


def test_choices_that_exclude_each_other_are_refused():
    choices = {"shape.num_prompts": [0, 4], "shape.adapter_width": [0, 16], "shape.personal_prompt": [False]}
    space = Space({key: CategoricalDistribution(values) for key, values in choices.items()})
    with pytest.raises(UserError, match="all three are left out"):
        spaces.check_values(space, EliminatorsConfig, {"backbone": "bb", "name": "x"})

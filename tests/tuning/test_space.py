"""Search spaces: what is wrong with one is said before any trial, and what Optuna draws fits the config."""

import copy
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig
from mtrec_ray.trainers.propensity_config import PropensityConfig
from mtrec_ray.tuning.propensity_search import FIXED
from mtrec_ray.tuning.space import (
    Range,
    Space,
    check_base,
    check_values,
    checked_starts,
    moves_of,
    parse_partitions,
    parse_space,
    usual_settings,
    with_settings,
)

BASE = {"lake": "lake", "name": "search", "optim": {"epochs": 2}}
DOCUMENT = {
    "optim.lr": {"low": 1e-5, "high": 1e-2, "log": True},
    "optim.epochs": {"low": 1, "high": 5},
    "sample.tau": {"low": 0, "high": 1, "step": 0.25},
    "model.group_block": ["dense", "shift"],
}


def parse(document: dict[str, Any]) -> Space:
    space, _ = parse_space(document, PropensityConfig, FIXED)
    check_values(space, PropensityConfig, BASE)
    return space


@pytest.mark.parametrize(
    ("document", "parts"),
    [
        ({}, ["space is empty"]),
        ({"optim.rate": [1]}, ["no setting 'optim.rate'"]),
        ({"sample.tau": {"low": 0.5, "high": 0.5}}, ["sample.tau", "from 0.5 to 0.5 is empty"]),
        ({"sample.tau": {"low": 1, "high": 0}}, ["sample.tau", "from 1 to 0 is empty"]),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, ["optim.lr", "log needs low above 0, not 0"]),
        ({"optim.lr": {"low": -1, "high": 1, "log": True}}, ["optim.lr", "log needs low above 0, not -1"]),
        ({"optim.lr": {"low": 1, "high": 2, "log": True, "step": 0.1}}, ["optim.lr", "log and step"]),
        ({"optim.lr": {"low": 1e-3}}, ["optim.lr", "high"]),
        ({"optim.lr": {"low": 1e-3, "high": 1, "loog": True}}, ["optim.lr", "loog"]),
        ({"optim.lr": {"low": 1e-3, "high": float("inf")}}, ["optim.lr", "high", "finite"]),
        ({"optim.epochs": {"low": 1.5, "high": 3}}, ["optim.epochs", "whole numbers", "1.5"]),
        ({"optim.epochs": {"low": 1, "high": 3, "step": 0.5}}, ["optim.epochs", "whole numbers", "0.5"]),
        ({"optim.epochs": {"low": 0, "high": 3}}, ["'optim.epochs' = 0"]),
        ({"sample.tau": {"low": 0, "high": 2}}, ["'sample.tau' = 2"]),
        ({"model.group_block": ["dense", "cubic"]}, ["'model.group_block' = 'cubic'"]),
        ({"model.group_block": []}, ["model.group_block = []", "list of choices"]),
        ({"model.group_block": "dense"}, ["model.group_block = 'dense'", "list of choices"]),
        ({"model.final_batch_norm": {"low": 0, "high": 1}}, ["model.final_batch_norm", "list of choices"]),
        ({"model.final_activation": {"low": 0, "high": 1}}, ["model.final_activation", "list of choices"]),
        ({"seed": [0, 1]}, ["seed", "one for all"]),
        ({"window.end": ["2022-01-01"]}, ["window.end", "one for all"]),
        ({"sample.test_fraction": {"low": 0.1, "high": 0.2}}, ["sample.test_fraction", "one for all"]),
    ],
)
def test_a_wrong_space_is_told_with_key_and_value(document, parts):
    with pytest.raises(UserError) as caught:
        parse(document)
    for part in parts:
        assert part in str(caught.value)


def test_a_trial_draws_a_value_of_its_own_type_for_every_key():
    fixed = optuna.trial.FixedTrial(
        {"optim.lr": 1e-3, "optim.epochs": 3, "sample.tau": 0.5, "model.group_block": "shift"}
    )
    parse(DOCUMENT).suggest(fixed)  # pyright: ignore[reportArgumentType]
    kinds = {key: type(distribution).__name__ for key, distribution in fixed.distributions.items()}
    assert kinds == {
        "optim.lr": "FloatDistribution",
        "optim.epochs": "IntDistribution",
        "sample.tau": "FloatDistribution",
        "model.group_block": "CategoricalDistribution",
    }
    assert fixed.distributions["optim.lr"].log  # pyright: ignore[reportAttributeAccessIssue]


def test_what_a_study_draws_fits_the_config():
    space, study = parse(DOCUMENT), optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        space.suggest(trial)
        config = validate_config(PropensityConfig, with_settings(BASE, space.settings(trial.params)))
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
        assert space.settings(trial.params) == {}
        numbers.add(len(moves))
        study.tell(trial, 0.0)
    assert numbers == {0, 1, 2}


def test_moves_are_read_in_turn_and_those_beyond_their_number_are_left():
    params = {"model.groups": "one", "moves": 2, "move.1": "a", "move.1.joins": "b", "move.2": "c", "move.2.joins": "a"}
    assert moves_of(params) == [("a", "b"), ("c", "a")]
    assert moves_of(params | {"moves": 1}) == [("a", "b")]
    assert moves_of({"model.groups": "one"}) == []


def test_usual_settings_are_those_of_base_or_the_middle_of_the_range():
    space = parse(DOCUMENT)
    assert usual_settings(space, PropensityConfig, BASE) == {
        "optim.lr": pytest.approx((1e-5 * 1e-2) ** 0.5),  # null in base
        "optim.epochs": 2,
        "sample.tau": 1.0,
        "model.group_block": "dense",
    }
    outside = with_settings(BASE, {"optim.lr": 5e-4, "optim.epochs": 9, "model.group_block": "film"})
    usual = usual_settings(space, PropensityConfig, outside)
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
def test_a_usual_value_is_one_that_the_range_holds(low, width, step, tau):
    assume(low + width <= 100)
    space = Space(ranges={"sample.tau": Range(low=low / 100, high=(low + width) / 100, step=step)})
    usual = usual_settings(space, PropensityConfig, with_settings(BASE, {"sample.tau": tau / 100}))
    assert low / 100 <= usual["sample.tau"] <= (low + width) / 100
    study = optuna.create_study()
    study.enqueue_trial(usual)
    trial = study.ask()
    space.suggest(trial)
    assert trial.params == usual


def test_random_partitions_stand_beside_the_seeds_for_each_number_of_groups():
    space, names = parse_partitions({"partitions": ["one", "taste:3", "affinity:2", "random:2:0"], "random": 2}, 8, 5)
    assert names == ("one", "taste:3", "affinity:2", "random:2:0", "random:2:1", "random:3:0", "random:3:1")
    assert (space.movable, space.moves) == (8, 3)
    assert parse_partitions({"partitions": ["regions"], "random": 1}, 8, 5)[1] == ("regions", "random:5:0")
    assert parse_partitions({"partitions": ["each", "taste"], "random": 1}, 8, 5)[1] == ("each", "taste", "random:4:0")


@pytest.mark.parametrize(("num_territories", "name"), [(2, "random:2:0"), (3, "random:2:0"), (4, "random:3:0")])
def test_of_few_territories_random_partitions_are_not_each_alone(num_territories, name):
    assert parse_partitions({"partitions": ["one"], "random": 1}, num_territories, 1)[1] == ("one", name)


def test_a_single_territory_has_no_partitions():
    with pytest.raises(UserError, match=r"space: model\.groups .* one territory alone; drop it"):
        parse_partitions({"partitions": ["one"]}, 1, 1)


@pytest.mark.parametrize(
    ("groups", "parts"),
    [
        ({"partitions": []}, ["model.groups", "partitions"]),
        ({"partitions": ["one"], "moves": -1}, ["model.groups", "moves"]),
        ({"partitions": ["one"], "mobile": 3}, ["model.groups", "mobile"]),
        ({"partitions": ["volume:9"]}, ["volume:9", "8 territories"]),
    ],
)
def test_wrong_partitions_are_told(groups, parts):
    with pytest.raises(UserError) as caught:
        parse_partitions(groups, 8, 5)
    for part in parts:
        assert part in str(caught.value)


def test_partitions_are_no_plain_choices():
    space, groups = parse_space({"model.groups": {"partitions": ["one"]}}, PropensityConfig, FIXED)
    assert (space, groups) == (Space(), {"partitions": ["one"]})


def test_settings_are_set_without_changing_the_document():
    document = {"lake": "lake", "optim": {"lr": 1.0, "decay": "none"}, "model": None}
    before = copy.deepcopy(document)
    found = with_settings(document, {"optim.lr": 2.0, "model.d": 8, "sample.tau": 0.5, "name": "x"})
    assert document == before
    assert found == {
        "lake": "lake",
        "name": "x",
        "optim": {"lr": 2.0, "decay": "none"},
        "model": {"d": 8},
        "sample": {"tau": 0.5},
    }


def test_a_plain_value_is_no_section():
    with pytest.raises(UserError, match=r"optim\.lr: 'optim' is a plain value"):
        with_settings({"optim": 3}, {"optim.lr": 1.0})


@pytest.mark.parametrize("base", [{"seed": 3}, {"optim": {"min_ndcg_ratio": 0.9}}])
def test_a_base_that_sets_what_the_search_decides(base):
    with pytest.raises(UserError, match=r"base: (seed = 3|optim\.min_ndcg_ratio = 0\.9) has no effect"):
        check_base(base, {"seed": "seed", "optim.min_ndcg_ratio": "min_ndcg_ratio of the search"})


@pytest.mark.parametrize("base", [{}, {"optim": 3}, {"optim": {"lr": 1.0}}, {"optim": None}])
def test_a_base_that_leaves_it_alone(base):
    check_base(base, {"seed": "seed", "optim.min_ndcg_ratio": "min_ndcg_ratio of the search"})


STARTED = Space(
    ranges={"optim.lr": Range(low=1e-4, high=1e-2, log=True), "optim.epochs": Range(low=2, high=8, step=2)},
    whole=frozenset({"optim.epochs"}),
    choices={"model.group_block": ["dense", "shift"]},
    partitions=("one", "taste:4"),
    moves=2,
)


def test_warm_starts_are_numbers_as_the_space_has_them():
    start = {"optim.lr": "1e-3", "optim.epochs": 4.0, "model.groups": "one", "moves": 1, "move.1": "T1"}
    (found,) = checked_starts(STARTED, [start])  # YAML reads 1e-3 as a string
    assert found == start | {"optim.lr": 1e-3, "optim.epochs": 4}
    assert isinstance(found["optim.epochs"], int)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"optim.lr": 0.05}, r"optim\.lr = 0\.05 is not in the space's 0\.0001 to 0\.01"),
        ({"optim.lr": "fast"}, "no number"),
        ({"optim.lr": None}, "no number"),
        ({"optim.epochs": 5}, "in steps of 2"),
        ({"model.group_block": "film"}, "'film' is none of dense, shift"),
        ({"model.groups": "taste:5"}, "none of one, taste:4"),
        ({"moves": 3}, "is not in the space's 0 to 2"),
        ({"move.3": "T1"}, "'move.3' is not in space"),
        ({"mover": 1}, "'mover' is not in space"),
    ],
)
def test_warm_starts_that_the_space_does_not_hold(start, says):
    with pytest.raises(UserError, match=says):
        checked_starts(STARTED, [start])


def test_numbers_that_yaml_reads_as_texts_are_numbers():
    """`1e-3` without a point is a text in YAML 1.1."""
    document = yaml.safe_load(
        "{optim.lr: [null, 1e-4, 1e-3], optim.batch_pairs: [1e3, 8192], sample.alpha: [auto, 1e1]}"
    )
    space = parse(document)
    assert space.choices == {
        "optim.lr": [None, 1e-4, 1e-3],
        "optim.batch_pairs": [1000, 8192],
        "sample.alpha": ["auto", 10.0],
    }
    assert usual_settings(space, PropensityConfig, with_settings(BASE, {"optim.lr": "1e-3"}))["optim.lr"] == 1e-3
    for start in ({"optim.lr": "1e-3"}, {"optim.lr": 0.001}):
        assert checked_starts(space, [start]) == [{"optim.lr": 1e-3}]


def test_choices_that_do_not_go_together_are_told():
    space = Space(
        choices={"shape.num_prompts": [0, 4], "shape.adapter_width": [0, 16], "shape.personal_prompt": [False]}
    )
    with pytest.raises(UserError, match="all three are left out"):
        check_values(space, EliminatorsConfig, {"backbone": "bb", "name": "x"})

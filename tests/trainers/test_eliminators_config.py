"""Combinations in a setting: order, limits, errors; what each method's settings are and refuse."""

from typing import Any

import pytest

from mtrec_ray.combinations import combination_name
from mtrec_ray.config import validate_config
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.eliminators_config import EliminatorsConfig, parse_combinations

ATTRIBUTES = {"gender": ["F", "M"], "age": ["18", "25", "35"], "occupation": ["artist", "doctor"]}


def many(number: int) -> dict[str, list[str]]:
    return {f"a{place}": ["no", "yes"] for place in range(number)}


def test_all_combinations_by_size_in_the_lakes_order_are_read_back_by_name():
    names = [combination_name(combination) for combination in parse_combinations("all", ATTRIBUTES)]
    in_order = "gender,age,occupation,gender+age,gender+occupation,age+occupation,gender+age+occupation"
    assert ",".join(names) == in_order
    assert parse_combinations(in_order, ATTRIBUTES) == parse_combinations("all", ATTRIBUTES)


def test_list_keeps_its_order_and_attributes_take_the_lakes():
    chosen = parse_combinations("occupation+gender, age ,gender + age", ATTRIBUTES)
    assert chosen == [("gender", "occupation"), ("age",), ("gender", "age")]


def test_more_than_twelve_attributes_need_a_list():
    assert len(set(parse_combinations("all", many(12)))) == 4095
    with pytest.raises(UserError, match=r"13 attributes means 8,191 eliminators: name those you need"):
        parse_combinations("all", many(13))
    assert parse_combinations("a12+a0,a5", many(13)) == [("a0", "a12"), ("a5",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gender,income", r"the lake has no attribute 'income'; it has gender, age, occupation"),
        ("gender+Age", r"the lake has no attribute 'Age'"),
        ("gender,all", r"the lake has no attribute 'all'"),
        ("age,gender,age", r"combination age is named twice"),
        ("gender+age,age+gender", r"combination gender\+age is named twice"),
        ("gender+gender", r"'gender\+gender' names an attribute twice"),
        ("age,gender+age+gender", r"'gender\+age\+gender' names an attribute twice"),
        ("", r"has an empty part"),
        (" ", r"has an empty part"),
        ("gender,", r"has an empty part"),
        ("gender+", r"has an empty part"),
    ],
)
def test_impossible_combinations_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_combinations(text, ATTRIBUTES)


@pytest.mark.parametrize("text", ["all", "gender+country", "age,country"])
@pytest.mark.parametrize("values", [["FR"], []], ids=["one value", "no value"])
def test_attribute_with_one_value_is_refused_only_if_chosen(text, values):
    attributes = ATTRIBUTES | {"country": values}
    with pytest.raises(UserError, match=r"attribute 'country' has one value only.*leave it out of combinations"):
        parse_combinations(text, attributes)
    assert parse_combinations("gender", attributes) == [("gender",)]


@pytest.mark.parametrize("text", ["all", "gender"])
def test_lake_without_attributes_is_refused(text):
    with pytest.raises(UserError, match="the lake has no sensitive attribute"):
        parse_combinations(text, {})


def config(**settings: Any) -> EliminatorsConfig:
    return validate_config(EliminatorsConfig, {"backbone": "b", "name": "e"} | settings)


def test_defaults_of_pfrec_are_the_papers_settings():
    paper, ours = config(method="pfrec"), config()
    adversary = {"weight": 1.0, "generator_lr": 1e-4, "discriminator_steps": 5, "averaging": 0.0, "class_power": 0.0}
    assert paper.adversary.model_dump() == adversary
    assert (paper.optim.epochs, paper.optim.evaluate_every, paper.optim.batch_crops) == (200, 1, 16)
    assert paper.shape == ours.shape.model_copy(update={"transport_units": 0})
    assert (paper.shape.num_prompts, paper.shape.personal_prompt) == (10, True)
    assert (ours.adversary.weight, ours.shape.transport_units, ours.optim.epochs) == (0.1, 16, 12)
    assert config(**paper.model_dump(exclude={"backbone", "name"})) == paper.model_copy(update={"name": "e"})


def test_other_settings_of_the_paper_may_be_changed():
    found = config(method="pfrec", adversary={"weight": 0.5}, optim={"epochs": 3}, shape={"personal_prompt": False})
    assert (found.adversary.weight, found.adversary.generator_lr) == (0.5, 1e-4)
    assert (found.optim.epochs, found.optim.batch_crops) == (3, 16)
    assert (found.shape.personal_prompt, found.shape.transport_units) == (False, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape.transport_units", 16),
        ("adversary.averaging", 0.99),
        ("adversary.class_power", 0.5),
        ("transport.weight", 1.0),
        ("transport.passes", 1),
        ("transport.later_passes", 1),
        ("optim.min_ndcg_ratio", 0.9),
        ("optim.leakage_budget", 0.0),
    ],
)
def test_settings_of_our_own_method_are_refused_with_pfrec(key, value):
    section, name = key.split(".")
    with pytest.raises(UserError, match=rf"^{key} has no effect with method = pfrec: drop it"):
        config(method="pfrec", **{section: {name: value}})
    config(**{section: {name: value}})


@pytest.mark.parametrize("method", ["filter", "fine_tuning"])
@pytest.mark.parametrize(("section", "settings"), [("shape", {"num_prompts": 1}), ("transport", {"passes": 1})])
def test_parts_of_eliminators_are_refused_with_other_methods(method, section, settings):
    with pytest.raises(UserError, match=f"^{section} has no effect with method = {method}: drop it"):
        config(method=method, **{section: settings})


def test_adapters_alone_are_an_ablation_and_nothing_at_all_is_none():
    alone = {"num_prompts": 0, "personal_prompt": False}
    for method in ("eliminator", "pfrec"):
        assert config(method=method, shape=alone).shape.adapter_width == 8
        with pytest.raises(UserError, match="all three are left out"):
            config(method=method, shape=alone | {"adapter_width": 0})

"""Combinations in a setting: order, limits, errors."""

import pytest

from mtrec_ray.combinations import combination_name
from mtrec_ray.errors import UserError
from mtrec_ray.trainers.eliminators_config import parse_combinations

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

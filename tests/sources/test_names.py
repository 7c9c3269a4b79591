"""Names that a lake cannot hold."""

import re

import pytest

from mtrec_ray.errors import UserError
from mtrec_ray.sources.calendar import Territory
from mtrec_ray.sources.names import COLUMNS, WORDS, check_columns, check_names
from mtrec_ray.sources.source import make_source
from tests.streams.lakes import manifest_of


@pytest.mark.parametrize(
    "name",
    [*COLUMNS["attribute"], *WORDS, "Embedding", "None", "a+b", "a,b", "a/b", "a\nb", "a\u200b", " a", "a\t", "", " "],
)
def test_attribute_name_error_names_the_settings_to_change(name):
    with pytest.raises(UserError, match=f"attribute {re.escape(repr(name))} .*source.attributes.*source.user_columns"):
        check_columns("attribute", ["gender", name])


@pytest.mark.parametrize("name", [*COLUMNS["title categorical"], "Name", "x,y"])
def test_categorical_name_error_names_the_settings_to_change(name):
    with pytest.raises(UserError, match=f"title categorical '{name}' .*title_categoricals.*title_columns"):
        check_columns("title categorical", [name])


def test_names_that_differ_in_case_only_are_an_error():
    for names in (["gender", "Gender"], ["gender", "gender"]):
        with pytest.raises(UserError, match=f"attribute '{names[1]}' is named twice, or differs from 'gender' in case"):
            check_columns("attribute", names)


@pytest.mark.parametrize("name", ["", " ", "N O ", "N\nO"])
def test_territory_without_a_plain_name_is_an_error(name):
    with pytest.raises(UserError, match=f"territory {re.escape(repr(name))} (is empty|has a)"):
        check_names(manifest_of({name: "north"}))
    with pytest.raises(UserError, match=f"region {re.escape(repr(name))} (is empty|has a)"):
        check_names(manifest_of({"NO": name}))


def test_repeated_names_and_values_are_errors():
    twice = manifest_of({}).model_copy(update={"territories": [Territory(name="NO", region="north")] * 2})
    with pytest.raises(UserError, match="territory 'NO' is named twice"):
        check_names(twice)
    with pytest.raises(UserError, match="attribute 'gender' declares the value 'f' twice"):
        check_names(manifest_of({}, attributes={"gender": ["f", "m", "f"]}))


def test_usual_names_are_accepted():
    """Of territories also the words that results use for sums."""
    attributes = {name: ["a", "b"] for name in ("gender", "age group", "household.size", "label", "title_id")}
    check_names(manifest_of({"all": "all", "mean": "none", "New York/NY": "a+b"}, attributes=attributes))


def test_own_tables_are_not_read_for_a_name_that_cannot_be(tmp_path):
    files = {"users": "u.parquet", "events": "e.parquet", "titles": "t.parquet"}
    with pytest.raises(UserError, match="attribute 'embedding' is the name of a column"):
        make_source("parquet", files | {"attributes": {"embedding": None}}, str(tmp_path))
    with pytest.raises(UserError, match="title categorical 'genres' is the name of a column"):
        make_source("parquet", files | {"title_categoricals": ["genres"]}, str(tmp_path))

"""Names that a lake can hold, of attributes, title categoricals and territories.

A name of an attribute or column is a column of the lake and a key of results, and combinations of attributes are
written as gender+age, all or none.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from mtrec_ray.errors import UserError
from mtrec_ray.sources.source import OPTIONAL_OF_TITLES, DataFacts

Kind = Literal["attribute", "title categorical"]
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "attribute": ("user_id", "territory", "embedding", "fold_embeddings", "reason"),
    "title categorical": ("title_id", *OPTIONAL_OF_TITLES, "embedding", "projection", "reason"),
}
"""Columns that the build adds to users and titles (`reason` to quarantined rows)."""
WORDS = ("all", "none", "backbone")  # In settings and results they stand for combinations of attributes
SETTINGS: dict[Kind, tuple[str, str]] = {
    "attribute": ("attributes", "user_columns"),
    "title categorical": ("title_categoricals", "title_columns"),
}
SEPARATORS = "+,/"


def check_names(facts: DataFacts) -> None:
    """UserError for a name or value that the lake of these facts cannot hold."""
    check_columns("attribute", facts.attributes)
    check_columns("title categorical", facts.title_categoricals)
    for name, values in facts.attributes.items():
        if (repeated := _repeated(values)) is not None:
            raise UserError(f"attribute {name!r} declares the value {repeated!r} twice: list each value once")
    territories = [territory.name for territory in facts.territories]
    if (repeated := _repeated(territories)) is not None:
        raise UserError(f"territory {repeated!r} is named twice: list each territory once")
    regions = [territory.region for territory in facts.territories]
    for kind, name in [*(("territory", name) for name in territories), *(("region", name) for name in regions)]:
        if problem := _problem(name):
            raise UserError(f"{kind} {name!r} {problem}: give it another name")


def check_columns(kind: Kind, names: Iterable[str]) -> None:
    """UserError for a name that no column of the lake may have beside the build's own."""
    setting, mapping = SETTINGS[kind]
    taken = {column: f"is the name of a column that every lake has ({column})" for column in COLUMNS[kind]}
    if kind == "attribute":
        taken |= dict.fromkeys(WORDS, "stands for combinations of attributes in settings and results")
    for name in names:
        problem = taken.get(name.casefold()) or _problem(name)
        if set(name) & set(SEPARATORS):
            problem = "has one of + , / in it, which separate names in settings and results"
        if problem:
            other = "".join(letter for letter in name if letter.isalnum() or letter == "_") or "column"
            fix = f"source.{setting} should name my_{other}, with source.{mapping}={{my_{other}: {name!r}}}"
            raise UserError(f"{kind} {name!r} {problem}: {fix}")
        taken[name.casefold()] = f"is named twice, or differs from {name!r} in case only"


def _repeated(values: list[str]) -> str | None:
    return next((value for value, count in Counter(values).items() if count > 1), None)


def _problem(name: str) -> str | None:
    if not name.strip():
        return "is empty"
    if not name.isprintable():
        return "has a control character"
    return "has a space at its ends" if name != name.strip() else None

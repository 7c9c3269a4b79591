"""Combinations of sensitive attributes, which one eliminator hides together."""

Combination = tuple[str, ...]  # attributes in the lake's order; the empty one is the backbone itself
NONE = "none"  # name of the empty combination


def combination_name(combination: Combination) -> str:
    """Attributes joined by plus, such as `gender+age`."""
    return "+".join(combination) or NONE

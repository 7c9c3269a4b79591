"""Combinations of sensitive attributes: what is hidden together, and how that is written."""

Combination = tuple[str, ...]
"""Attributes in the lake's order."""
NONE = "none"
"""How the combination of no attribute, the backbone itself, is written."""


def combination_name(combination: Combination) -> str:
    """Attributes joined by plus: `gender+age`; the empty one is `NONE`."""
    return "+".join(combination) or NONE

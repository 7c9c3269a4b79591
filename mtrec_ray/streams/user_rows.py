"""Dataclasses of arrays with one row a user: take some of the rows, or join several parts."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np

MAX_CELLS = 4_000_000  # users x titles of a chunk

Users = TypeVar("Users", bound=Any)


def take_rows(users: Users, rows: np.ndarray, unchanged: Sequence[str] = ()) -> Users:
    """The given rows, a mask or indices, of every field that is not `unchanged`."""
    names = [field.name for field in fields(users) if field.name not in unchanged]
    return replace(users, **{name: getattr(users, name)[rows] for name in names})


def concatenate_rows(parts: Sequence[Users], unchanged: Sequence[str] = ()) -> Users:
    """The rows of all parts; the first part's fields where they are `unchanged`."""
    names = [field.name for field in fields(parts[0]) if field.name not in unchanged]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

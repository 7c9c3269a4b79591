"""Dataclasses of arrays with one row a user: take some of the rows, or join several parts."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")


def take_rows(record: Record, rows: np.ndarray, unchanged: Sequence[str] = ()) -> Record:
    """The given rows, a mask or indices, of every field that is not `unchanged`."""
    names = [field.name for field in fields(record) if field.name not in unchanged]
    return replace(record, **{name: getattr(record, name)[rows] for name in names})


def concatenate_rows(parts: Sequence[Record], unchanged: Sequence[str] = ()) -> Record:
    """The rows of all parts; the first part's fields where they are `unchanged`."""
    names = [field.name for field in fields(parts[0]) if field.name not in unchanged]
    return replace(parts[0], **{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

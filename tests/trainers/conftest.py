"""Transports of few steps, for trainers that need not hide anything."""

import pytest

from mtrec_ray.models import transport


def shorten_transports(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transport, "MIN_BATCHES", 2)
    patch.setattr(transport, "NUM_CHECKS", 2)


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_transports(monkeypatch)

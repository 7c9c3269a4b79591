"""What every kind of trial can do, alone or as one of several workers."""

from pathlib import Path
from typing import Any, Protocol

TrialSpec = dict[str, Any]
"""Plain data that makes a trial anew in any process: `kind`, `config` (the job's settings) and what that kind needs."""


class Trial(Protocol):
    """One configuration on its way."""

    num_validations: int
    validations_done: int

    def advance(self) -> dict[str, float]:
        """Train to the next look and validate."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to go on to the same result."""
        ...

    def load(self, folder: Path) -> None: ...

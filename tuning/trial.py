"""What every kind of trial can do, and how it is made from its TrialSpec."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mtrec_ray.trainers.workers import Workers

if TYPE_CHECKING:
    from mtrec_ray.tuning.data import TrialCache

TrialSpec = dict[str, Any]
"""Plain data of a trial: `kind`, `config` (the job's settings) and what the kind needs."""


class Trial(Protocol):
    """The training of one configuration."""

    num_validations: int
    validations_done: int

    def advance(self) -> dict[str, float]:
        """Train to the next validation and return its figures."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs to continue to the same result."""
        ...

    def load(self, folder: Path) -> None: ...


def make_trial(spec: TrialSpec, cache: "TrialCache", workers: Workers) -> Trial:
    """The trial of a spec; `cache` keeps what it reads for the next trial of this process."""
    if spec["kind"] == "propensity":
        from mtrec_ray.tuning.propensity_trial import PropensityTrial

        return PropensityTrial.of(spec, workers, cache)
    from mtrec_ray.tuning.eliminators_trial import EliminatorsTrial

    return EliminatorsTrial(spec, cache)

"""The kinds of trials."""

from tuning.data import Remembered
from tuning.trial import Plan, Trial


def make_trial(plan: Plan, remembered: Remembered, rank: int = 0, world_size: int = 1) -> Trial:
    """The trial of a plan; what it reads may be remembered for the next trial of this process."""
    if plan["kind"] == "propensity":
        from tuning.propensity_trial import PropensityTrial

        return PropensityTrial.of(plan, rank, world_size, remembered)
    from tuning.eliminators_trial import EliminatorsTrial

    return EliminatorsTrial(plan, remembered)

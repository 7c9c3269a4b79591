"""The kinds of trials."""

from tuning.data import TrialCache
from tuning.trial import Plan, Trial


def make_trial(plan: Plan, cache: TrialCache, rank: int = 0, world_size: int = 1) -> Trial:
    """The trial of a plan; what it reads may be kept for the next trial of this process."""
    if plan["kind"] == "propensity":
        from tuning.propensity_trial import PropensityTrial

        return PropensityTrial.of(plan, rank, world_size, cache)
    from tuning.eliminators_trial import EliminatorsTrial

    return EliminatorsTrial(plan, cache)

"""The kinds of trials."""

from mtrec_ray.trainers.workers import Workers
from mtrec_ray.tuning.data import TrialCache
from mtrec_ray.tuning.trial import Trial, TrialSpec


def make_trial(plan: TrialSpec, cache: TrialCache, rank: int = 0, world_size: int = 1) -> Trial:
    """The trial of a plan; what it reads may be kept for the next trial of this process."""
    if plan["kind"] == "propensity":
        from mtrec_ray.tuning.propensity_trial import PropensityTrial

        return PropensityTrial.of(plan, Workers(rank, world_size), cache)
    from mtrec_ray.tuning.eliminators_trial import EliminatorsTrial

    return EliminatorsTrial(plan, cache)

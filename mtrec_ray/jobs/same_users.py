"""Find compared runs of different samples that were trained on the same users."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from mtrec_ray.streams.plan import PairPlan

ALMOST = 0.95  # fraction of the added users in common from which two samples are called the same
OF_RANDOM_SAMPLE = {"seed", "split_seed", "test_fraction", "validation_fraction", "random_fraction"}


def notes_on_samples(plans: dict[str, list[PairPlan]]) -> Iterator[str]:
    """A sentence for each two samples of other settings and the same users.

    `plans`: variant -> the plans of its runs, in the same order of seeds.
    """
    of_settings: dict[str, str] = {}
    for variant, own in plans.items():
        of_settings.setdefault(own[0].sample.model_dump_json(exclude={"seed", "alpha"}), variant)
    for first, second in combinations(of_settings.values(), 2):
        common = [shared_added_users(*pair) for pair in zip(plans[first], plans[second], strict=True)]
        if all(one is not None and one[0] >= ALMOST * one[1] for one in common):
            shared, added = map(sum, zip(*(one for one in common if one is not None), strict=True))
            pair = f"{first} and {second}"
            if added == 0:
                yield f"{pair} were trained on the same users: neither adds any to the random sample"
            else:
                yield f"{pair} were trained on the same users: of {added:,} added ones {shared:,} are in both"


def shared_added_users(first: PairPlan, second: PairPlan) -> tuple[int, int] | None:
    """Users that both runs add, and those that the larger adds; None where plans cannot tell.

    To the same random sample. A user is added if one hash of its id is below its territory's rate. So where two runs
    add from the same users, the smaller draw is part of the larger: they do if their settings say so, or if every user
    is active.
    """
    if first.sample.model_dump(include=OF_RANDOM_SAMPLE) != second.sample.model_dump(include=OF_RANDOM_SAMPLE):
        return None
    added = np.array([plan.added_users for plan in (first, second)])  # (2, territories)
    from_everybody = [
        (np.array(plan.active_users) == np.array(plan.users)) | (plan.sample.upsample == "control")
        for plan in (first, second)
    ]
    same_users = np.all(from_everybody, axis=0)
    if all(getattr(first.sample, name) == getattr(second.sample, name) for name in ("upsample", "active_days")):
        same_users[:] = True
    if (~same_users & (added > 0).all(axis=0)).any():
        return None
    return int(added.min(axis=0).sum()), int(added.sum(axis=1).max())

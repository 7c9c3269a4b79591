"""What positives of the evaluation days decide before scoring: which users, which titles."""

from typing import NamedTuple

import numpy as np

MIN_DAY_USERS = 100  # with a positive, on each day, for test users to be divided among the days


class DayPositives(NamedTuple):
    """Positives of the evaluation days, among which `shards.own_day` divides users."""

    of_cohort: np.ndarray  # (territories, titles) of all users of the cohort
    of_own_users: np.ndarray  # (territories, titles) of each day's own users
    own_users_by_day: np.ndarray  # (days,) how many of those have any

    @property
    def own_users_suffice(self) -> bool:
        """Whether each of several days keeps `MIN_DAY_USERS` of its own with a positive."""
        return len(self.own_users_by_day) > 1 and int(self.own_users_by_day.min()) >= MIN_DAY_USERS

    def notes(self) -> list[str]:
        """Which test users the days have; none for a single day."""
        if len(self.own_users_by_day) == 1:
            return []
        if self.own_users_suffice:
            return ["each day has test users of its own"]
        few = int(np.argmin(self.own_users_by_day))
        found = f"of its own, day {few + 1} would have {self.own_users_by_day[few]} with a positive"
        return [f"all days have the same test users: {found},\nfewer than {MIN_DAY_USERS}"]


def comparable_titles(positives: np.ndarray, is_local: np.ndarray, count: int) -> tuple[int | None, tuple[int, ...]]:
    """A territory and up to `count` titles of comparable positives there, half of them local.

    As in paper A, 4.4. Of the territory with most positives of local titles, or of global ones if it has fewer, (G, T)
    positives and (T,) bool: its local titles with most positives, and for each the global one whose number is nearest.
    None without such a pair.
    """
    of_kinds = [positives[:, of_kind].sum(axis=1) for of_kind in (is_local, ~is_local)]
    territory = int(np.argmax(np.minimum(*of_kinds)))
    own = positives[territory]
    ranked = np.argsort(-own, kind="stable")
    ranked = ranked[own[ranked] > 0]
    local, others = ranked[is_local[ranked]], ranked[~is_local[ranked]].tolist()
    chosen = list[int]()
    for title in local[: min(count // 2, len(others))].tolist():
        nearest = min(others, key=lambda other: abs(int(own[other]) - int(own[title])))
        others.remove(nearest)
        chosen += [title, nearest]
    return (territory, tuple(sorted(chosen))) if chosen else (None, ())

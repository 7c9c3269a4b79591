"""Whether a figure rests on enough distinct users for an interval."""

from collections.abc import Iterable

import numpy as np

MIN_USERS = 10
"""Fewer users with a positive have no interval: of 3 to 5, a 95% interval covers 79 to 87%, of one 14 to 20%."""


class DistinctUsers:
    """The `MIN_USERS` smallest keys of users, which count distinct users up to that number.

    Exact, and the same for any shards, days and territories merged in any order (k minimum values, Bar-Yossef et al.
    2002, "Counting Distinct Elements in a Data Stream").
    """

    def __init__(self) -> None:
        self.keys = np.zeros(0, dtype=np.uint64)

    def add(self, keys: np.ndarray) -> None:
        """Add the users with these keys, uint64 from `mtrec_ray.hashing.user_keys`."""
        self.keys = np.unique(np.concatenate([self.keys, keys]))[:MIN_USERS]

    def __iadd__(self, other: "DistinctUsers") -> "DistinctUsers":
        self.add(other.keys)
        return self

    def __len__(self) -> int:
        """Distinct users, at most `MIN_USERS`."""
        return len(self.keys)

    @classmethod
    def union(cls, parts: Iterable["DistinctUsers"]) -> "DistinctUsers":
        """The users of any of the parts."""
        found = cls()
        for part in parts:
            found += part
        return found

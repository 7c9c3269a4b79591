"""A bounded sample of pairs of titles watched by the same user; popular titles are damped.

A user's titles, in the order of a hash, are its pairs, two after two, and few enough that nobody dominates. Of all
pairs, a weighted sample without replacement is kept (Efraimidis and Spirakis 2006): a pair's weight is inverse to the
geometric mean of its titles' numbers of users. The sample is the same for any number of buckets, and its size does not
grow with the number of users.

Legend: `T` titles, `P` pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np

from mtrec_ray.hashing import mix, uniforms
from mtrec_ray.lake.bucket import Bucket, pair_code, user_and_title, within
from mtrec_ray.lake.interactions import Bounds
from mtrec_ray.lake.manifest import Lake

MAX_PAIRS_PER_USER = 16
PAIRS_PER_BATCH = 64

TextPair = tuple[str, str]  # Texts of two titles that a user watched


@dataclass(frozen=True)
class TitlePairs:
    """A sample of pairs, or of a part of the users."""

    titles: np.ndarray  # (P, 2) int32 title indices
    keys: np.ndarray  # (P,) float64 of the sampling; the smallest are kept

    @staticmethod
    def none() -> "TitlePairs":
        return TitlePairs(np.empty((0, 2), np.int32), np.empty(0))

    def merge(self, other: "TitlePairs", max_pairs: int) -> "TitlePairs":
        """A sample of at most `max_pairs` of both."""
        titles, keys = np.concatenate([self.titles, other.titles]), np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")[:max_pairs]
        return TitlePairs(titles[order], keys[order])

    def shuffled(self, seed: int) -> np.ndarray:
        """(P, 2) int32 in random order: by key, pairs of rare titles come first."""
        return np.random.default_rng(seed).permutation(self.titles)


def sample_title_pairs(
    index: int, lake: Lake, bounds: Bounds, title_users: np.ndarray, max_pairs: int, seed: int
) -> TitlePairs:
    """Of one bucket: at most `max_pairs` pairs from the events within `bounds`.

    `title_users`, (T,), are the users of each title within `bounds`; titles with 0 are left out.
    """
    bucket = Bucket.read(lake, index)
    events = np.flatnonzero(within(bucket.event_time, *bounds))
    events = events[title_users[bucket.event_title[events]] > 0]
    user, title = user_and_title(np.unique(pair_code(bucket.event_user[events], bucket.event_title[events])))
    order = np.lexsort((mix(bucket.keys[user], "title of a pair", seed, title.astype(np.uint64)), user))
    user, title = user[order], title[order].astype(np.int32)
    counts = np.bincount(user, minlength=len(bucket.keys))
    rank = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.flatnonzero((rank % 2 == 0) & (rank + 1 < counts[user]) & (rank < 2 * MAX_PAIRS_PER_USER))
    pairs = np.stack([title[first], title[first + 1]], axis=1)  # (P, 2)
    draws = uniforms(bucket.keys[user[first]], "pair of titles", seed, rank[first].astype(np.uint64))
    popularity = np.sqrt(title_users[pairs].prod(axis=1))
    return TitlePairs.none().merge(TitlePairs(pairs, -np.log1p(-draws) * popularity), max_pairs)


def batches_without_repeats(pairs: Sequence[TextPair]) -> Iterator[list[TextPair]]:
    """Batches of PAIRS_PER_BATCH pairs, round after round; none holds a text twice.

    The texts of other pairs are a pair's negatives, so pairs that repeat a text are left out of a batch. Where too few
    pairs differ, a batch has as many as are found in one round.
    """
    batch: list[TextPair] = []
    texts: set[str] = set()
    num_read = 0
    for pair in cycle(pairs):
        num_read += 1
        if texts.isdisjoint(pair):
            batch.append(pair)
            texts.update(pair)
        if len(batch) == PAIRS_PER_BATCH or num_read == len(pairs):
            yield batch
            batch, texts, num_read = [], set(), 0

"""What is popular where, and since when: the prior of a pair's logit.

The prior of (user, title) at a **cutoff** is the log of how much likelier than the average pair it is to be a
discovery soon after. It counts training users' discoveries and the user's own events, all before the cutoff; its few
weights are fitted on training users over the whole window. It is a sum:

* titles: a title's share of its territory's discoveries, by conditional logistic regression on log counts of the last
  7, 30, 90 and 365 days and of all; a count is shrunk to the region's share, and that to all territories';
* users: the discoveries of users with as recent a last event and as many discoveries;
* seen: whether the user has watched the title before, which makes a discovery rarer (a shop) or likelier (a series).

The window is cut into parts. Their starts are cutoffs, and so are the starts of the days after it: a pair is trained
with the prior of the cutoff before it, a model predicts with that of the last cutoff before it (logit adjustment, Menon
et al. 2021, with the prior kept). So the towers learn what the prior does not say.

Legend: `N` users of a bucket, `S` cutoffs, `P` parts of the window, `G` territories, `T` titles, `K` recencies.
"""

# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from mtrec_ray.lake.bucket import Bucket, Catalogue, to_datetime64, user_and_title
from mtrec_ray.lake.manifest import Calendar, Lake
from mtrec_ray.streams.config import SampleConfig
from mtrec_ray.streams.sampling import TRAIN, split_of

RECENCIES = (7, 30, 90, 365, None)  # days before a cutoff whose discoveries are counted; None is all
MAX_PARTS = 64
MAX_CELLS = 1 << 26  # counts in the driver's memory
SHRINKAGE = 100.0  # discoveries that a region's, or all territories', share of a title is worth
FLOOR = 0.1  # added to each count: discoveries that no history foretells
RIDGE = 1.0  # pulls the weights of the recencies to 1 / K; worth one discovery
LAST_EVENT = (7, 30, 90, 365)  # days since a user's last event, upper ends of the classes
DISCOVERIES = (0, 1, 2, 4, 8, 16, 32)  # discoveries of a user, upper ends of the classes
DAY_US = 86_400_000_000
NUM_FIT_PARTS = 16  # last parts of the window that the weights of the recencies are fitted on
NUM_SEEN_PARTS = 8  # last parts of the window in which discoveries of watched titles are counted
NUM_ACTIVITIES = (len(LAST_EVENT) + 2) * (len(DISCOVERIES) + 1)


@dataclass(frozen=True)
class Prior:
    """The prior at every cutoff of a run."""

    cutoffs: np.ndarray  # (S,) datetime64[us]: of the window's P parts, then of the days after it
    num_parts: int  # P
    titles: np.ndarray  # (S, G, T) float16
    users: np.ndarray  # (NUM_ACTIVITIES,) float32, by `activity`
    rates: np.ndarray  # (P,) mean probability of a discovery in the window's parts
    seen: float = 0.0  # added where the user has watched the title before the cutoff

    def after(self, period: int) -> np.ndarray:
        """(G, T) prior of titles for predictions after period 0, the window, or a later one."""
        return self.titles[self.num_parts + period]

    def of_pairs(
        self, bucket: Bucket, period: int, user_row: np.ndarray, title_index: np.ndarray, time: np.ndarray
    ) -> np.ndarray:
        """(n,) float16 prior of a period's pairs; `time` (n,): when discovered or offered."""
        cutoff = self.cutoff_of(period, time)
        found = self.titles[cutoff, bucket.territory[user_row], title_index].astype(np.float32)
        for one in np.unique(cutoff):
            own = cutoff == one
            found[own] += self.users[activity(bucket, self.cutoffs[one])[user_row[own]]]
        found += self.seen * bucket.seen(user_row, title_index, self.cutoffs[cutoff])
        return found.astype(np.float16)

    def cutoff_of(self, period: int, time: np.ndarray) -> np.ndarray:
        """(n,) int64 index of the last cutoff before the times, which lie in a period."""
        if period:
            return np.full(len(time), self.num_parts - 1 + period)
        return (np.searchsorted(self.cutoffs[: self.num_parts], time, side="right") - 1).clip(min=0)

    def unseen(
        self, bucket: Bucket, period: int, user_row: np.ndarray, title_index: np.ndarray, time: np.ndarray
    ) -> np.ndarray:
        """(n,) bool: whether the user had not watched the title by the pair's cutoff."""
        return ~bucket.seen(user_row, title_index, self.cutoffs[self.cutoff_of(period, time)])

    def count_seen(self, bucket: Bucket, sample: SampleConfig, offer_mask: np.ndarray) -> np.ndarray:
        """(2,) discoveries of titles that were watched before: found, expected.

        Of training users, in the last parts of the window.
        """
        training, (codes, first) = split_of(bucket.keys, sample) == TRAIN, bucket.first_events
        user, title = user_and_title(codes)
        kept = training[user] & offer_mask[bucket.territory[user], title]
        user, title, first = user[kept], title[kept], first[kept]
        rows = bucket.first_discoveries
        viewer = bucket.event_user[rows]
        rows = rows[training[viewer] & offer_mask[bucket.territory[viewer], bucket.event_title[rows]]]
        counts = np.zeros(2)
        for part in range(max(1, self.num_parts - NUM_SEEN_PARTS), self.num_parts):
            start, end = self.cutoffs[part : part + 2]
            inside = rows[(bucket.event_time[rows] >= start) & (bucket.event_time[rows] < end)]
            counts[0] += bucket.seen(bucket.event_user[inside], bucket.event_title[inside], start).sum()
            own = first < start
            logs = self.titles[part, bucket.territory[user[own]], title[own]].astype(np.float64)
            counts[1] += np.exp(logs + self.users[activity(bucket, start)[user[own]]]).sum() * self.rates[part]
        return counts

    def with_seen(self, found: float, expected: float) -> "Prior":
        """This prior with the log ratio of the two, if anything is known."""
        return replace(self, seen=float(np.log((found + 1.0) / (expected + 1.0))))

    def dump(self) -> bytes:
        """As safetensors."""
        plain = {"cutoffs": self.cutoffs.astype(np.int64), "num_parts": np.array([self.num_parts])}
        plain |= {"seen": np.array([self.seen]), "rates": self.rates}
        return save({"titles": self.titles, "users": self.users} | plain)

    @classmethod
    def load(cls, data: bytes) -> "Prior":
        arrays = load(data)
        cutoffs = arrays.pop("cutoffs").astype("datetime64[us]")
        return cls(cutoffs, int(arrays.pop("num_parts")[0]), seen=float(arrays.pop("seen")[0]), **arrays)


def activity(bucket: Bucket, cutoff: Any) -> np.ndarray:
    """(N,) int64 class of each user by last event and discoveries before a cutoff.

    The cutoff is a datetime64[us].
    """
    days = np.full(len(bucket.keys), np.inf)
    before = bucket.event_time < cutoff
    since = (cutoff - bucket.event_time[before]).astype(np.int64) / DAY_US
    np.minimum.at(days, bucket.event_user[before], since)
    rows = bucket.first_discoveries
    rows = rows[bucket.event_time[rows] < cutoff]
    counts = np.bincount(bucket.event_user[rows], minlength=len(bucket.keys))
    recency = np.where(np.isinf(days), len(LAST_EVENT) + 1, np.searchsorted(LAST_EVENT, days))
    return recency * (len(DISCOVERIES) + 1) + np.searchsorted(DISCOVERIES, counts)


@dataclass(frozen=True)
class PriorGrid:
    """The cutoffs of a run, and the intervals between all times from which a recency counts."""

    cutoffs: np.ndarray  # (S,) datetime64[us]
    num_parts: int
    edges: np.ndarray  # ascending datetime64[us]: interval i ends at edge i

    @staticmethod
    def of(calendar: Calendar, num_periods: int, num_cells: int) -> "PriorGrid | None":
        """None where a window has no order of time, or the catalogue is too large for two parts."""
        start, end = calendar.window_start, calendar.window_end
        num_parts = max(4, int((end - start) / timedelta(seconds=calendar.day_s)))
        num_parts = min(num_parts, MAX_PARTS, MAX_CELLS // (len(RECENCIES) * max(1, num_cells)))
        if not calendar.ordered or num_parts < 2:
            return None
        parts = [start + (end - start) * part / num_parts for part in range(num_parts)]
        days = [calendar.day_bounds(period + 1)[0] for period in range(num_periods)]
        cutoffs = np.array([to_datetime64(time) for time in (*parts, *days)])
        first = [cutoffs - np.timedelta64(days, "D") for days in RECENCIES if days]
        return PriorGrid(cutoffs, num_parts, np.unique(np.concatenate([cutoffs, *first])))


@dataclass(frozen=True)
class PriorCounts:
    """Discoveries of one bucket's training users."""

    cells: np.ndarray  # flat index (interval, territory, title), ascending
    discoveries: np.ndarray  # of each cell
    users: np.ndarray  # (P, NUM_ACTIVITIES) users by their activity at the start of each part
    found: np.ndarray  # (P, NUM_ACTIVITIES) their discoveries in the part
    of_territory: np.ndarray  # (G,) users


def count_prior(bucket: Bucket, sample: SampleConfig, catalogue: Catalogue, grid: PriorGrid) -> PriorCounts:
    """Of one bucket, with the window's catalogue."""
    training = split_of(bucket.keys, sample) == TRAIN
    num_territories, num_titles = catalogue.offer_mask.shape
    rows = bucket.first_discoveries
    user, title, time = bucket.event_user[rows], bucket.event_title[rows], bucket.event_time[rows]
    kept = training[user] & (time < grid.edges[-1]) & catalogue.offer_mask[bucket.territory[user], title]
    user, title, time = user[kept], title[kept], time[kept]
    interval = np.searchsorted(grid.edges, time, side="right").astype(np.int64)
    flat = (interval * num_territories + bucket.territory[user]) * num_titles + title
    cells, discoveries = np.unique(flat, return_counts=True)
    users, found = np.zeros((2, grid.num_parts, NUM_ACTIVITIES), np.int64)
    part = np.searchsorted(grid.cutoffs, time, side="right") - 1
    for one in range(grid.num_parts):
        own = activity(bucket, grid.cutoffs[one])
        users[one] = np.bincount(own[training], minlength=NUM_ACTIVITIES)
        found[one] = np.bincount(own[user[part == one]], minlength=NUM_ACTIVITIES)
    of_territory = np.bincount(bucket.territory[training], minlength=num_territories)
    return PriorCounts(cells, discoveries, users, found, of_territory)


class PriorFit:
    """Sums the counts of buckets, in any order, and fits the prior."""

    def __init__(self, lake: Lake, catalogue: Catalogue, grid: PriorGrid) -> None:
        self.grid, self.offered = grid, catalogue.offer_mask
        regions = [territory.region for territory in lake.manifest.territories]
        names = sorted(set(regions))
        self.region_of = np.array([names.index(region) for region in regions])
        self.counts = np.zeros((len(grid.edges), *self.offered.shape), np.int32)
        self.users, self.found = np.zeros((2, grid.num_parts, NUM_ACTIVITIES), np.int64)
        self.of_territory = np.zeros(len(self.offered), np.int64)

    def add(self, counts: PriorCounts) -> None:
        self.counts.ravel()[counts.cells] += counts.discoveries.astype(np.int32)
        self.users += counts.users
        self.found += counts.found
        self.of_territory += counts.of_territory

    def fit(self) -> Prior:
        """The prior at all cutoffs."""
        grid, before = self.grid, np.cumsum(self.counts, axis=0, dtype=np.int32)  # (edges, G, T) before each edge
        at = np.searchsorted(grid.edges, grid.cutoffs)
        inside = np.diff(before[at[: grid.num_parts + 1]], axis=0)  # (P, G, T) discoveries of each part
        features = [self._features(before, cutoff) for cutoff in range(len(grid.cutoffs))]  # (G, T, K) each
        known = np.any(before[at[: grid.num_parts]], axis=(1, 2))  # (P,) whether anything is before the part
        rows = [part for part in range(grid.num_parts) if known[part] and inside[part].any()][-NUM_FIT_PARTS:]
        weights = fit_shares([features[part] for part in rows], [inside[part] for part in rows], self.offered)
        log_rate = self._territories(inside)
        titles = np.stack([log_rate[:, None] + log_lift(one @ weights, self.offered) for one in features])
        titles[: grid.num_parts][~known] = log_rate[:, None]
        pairs = float(self.of_territory @ self.offered.sum(axis=1))
        rates = inside.sum(axis=(1, 2)) / max(1.0, pairs)
        return Prior(grid.cutoffs, grid.num_parts, titles.astype(np.float16), self._users(), rates)

    def _features(self, before: np.ndarray, cutoff: int) -> np.ndarray:
        """(G, T, K) float32 log of the shrunk counts of each recency."""
        found = np.empty((*self.offered.shape, len(RECENCIES)), np.float32)
        end = self.grid.cutoffs[cutoff]
        for k, days in enumerate(RECENCIES):
            own = before[np.searchsorted(self.grid.edges, end)].astype(np.float64)
            if days:
                own -= before[np.searchsorted(self.grid.edges, end - np.timedelta64(days, "D"))]
            everywhere = own.sum(axis=0) + 1.0
            share = everywhere / everywhere.sum()  # (T,)
            of_region = np.zeros((self.region_of.max() + 1, own.shape[1]))
            np.add.at(of_region, self.region_of, own)
            of_region = (of_region + SHRINKAGE * share) / (of_region.sum(axis=1, keepdims=True) + SHRINKAGE)
            found[:, :, k] = np.log(own + SHRINKAGE * of_region[self.region_of] + FLOOR)
        return found

    def _territories(self, inside: np.ndarray) -> np.ndarray:
        """(G,) log of a pair's rate of discovery in each territory, relative to all pairs."""
        pairs = self.of_territory * self.offered.sum(axis=1)
        expected = inside.sum() * pairs / max(1, pairs.sum())
        return np.log((inside.sum(axis=(0, 2)) + SHRINKAGE) / (expected + SHRINKAGE))

    def _users(self) -> np.ndarray:
        """(NUM_ACTIVITIES,) log of the rate of discovery, relative to all users of a part."""
        rate = self.found.sum(axis=1) / np.maximum(1, self.users.sum(axis=1))  # (P,)
        expected = (self.users * rate[:, None]).sum(axis=0)
        return np.log((self.found.sum(axis=0) + 1.0) / (expected + 1.0)).astype(np.float32)


def log_lift(scores: np.ndarray, offered: np.ndarray) -> np.ndarray:
    """Log of each title's share times the number of offered titles.

    (G, T), (G, T) -> (G, T), 0 where not offered.
    """
    scores = np.where(offered, scores, -np.inf)
    highest = np.max(scores, axis=1, initial=-1e9, keepdims=True)
    mean = np.exp(scores - highest).sum(axis=1, keepdims=True) / np.maximum(1, offered.sum(axis=1, keepdims=True))
    return np.where(offered, scores - highest - np.log(np.maximum(mean, 1e-300)), 0.0)


def fit_shares(features: Sequence[np.ndarray], counts: Sequence[np.ndarray], offered: np.ndarray) -> np.ndarray:
    """(K,) weights w that maximise sum of counts * log softmax(features w).

    The softmax is over a territory's offered titles. Conditional logistic regression (McFadden 1974) by Newton's method
    with step halving; (G, T, K) features and (G, T) counts of each part.
    """
    num_weights = len(RECENCIES)
    start = np.full(num_weights, 1 / num_weights)

    def evaluate(weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        value = -RIDGE / 2 * np.square(weights - start).sum()
        gradient, hessian = RIDGE * (start - weights), RIDGE * np.eye(num_weights)
        for x, y in zip(features, counts, strict=True):
            for g in np.flatnonzero(y.any(axis=1)):
                own, n = x[g, offered[g]].astype(np.float64), y[g, offered[g]].astype(np.float64)
                scores = own @ weights
                log_sum = scores.max() + np.log(np.exp(scores - scores.max()).sum())
                share = np.exp(scores - log_sum)
                mean = share @ own
                value += n @ (scores - log_sum)
                gradient = gradient + n @ own - n.sum() * mean
                hessian = hessian + n.sum() * ((own * share[:, None]).T @ own - np.outer(mean, mean))
        return value, gradient, hessian

    weights = start
    value, gradient, hessian = evaluate(weights)
    for _ in range(50):
        step, length = np.linalg.solve(hessian, gradient), 1.0
        if gradient @ step < 1e-3:  # twice the gain that is left
            break
        while (found := evaluate(weights + length * step))[0] < value and length > 1e-6:
            length /= 2
        weights, (value, gradient, hessian) = weights + length * step, found
    return weights
